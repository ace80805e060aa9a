//! Watches over the executors from outside: wakes one that sleeps though it should not, and ends
//! the process if one does not answer.
//!
//! glommio 0.9 can park an executor with runnable tasks: an event that lands between its poll and
//! its check of the preempt timer is consumed by the park. Only a wake from another thread through
//! a task's own raw waker frees it for certain; a channel, a socket or a timer of the executor can
//! be among what was lost. So each executor has a task that waits for nothing but that waker, a
//! plain thread calls it every 5 ms while the executor's beat stands still, and after 400 calls
//! without an answer (2 s of our own running, so a stopped process is not blamed, nor an executor
//! that waited for a core) the process aborts: a start that hangs included. A supervisor restarts it;
//! nothing acknowledged is lost.
//!
//! The first of these calls is also a measure: from it on the task is runnable, and when the executor
//! polls it it says so. What lies between, less what the thread waited for a core and less the time in
//! which the process was stopped, is a stall: a runnable task that was not run though it could be.
//!
//! The same task is the doorbell of the shard's [`Mailbox`]: other threads ring it once until it
//! has answered. A task holds its wakers in 16 bits, so bells must not pile up.

use crate::base::code::Code;
use crate::base::ids::ShardId;
use crate::base::report::Report;
use crate::runtime::process::{self, CoreTimes, CoreTimesFile};
use crate::runtime::sys;
use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Poll, Waker};
use std::time::Duration;

/// How often the beats are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(5);
/// So many looks at a beat that stands still, each with a poke, mean that the executor is deaf.
const DEAF_LOOKS: u32 = 400;
/// The same before the shard serves: reading back a large state and a long log is one turn each, and
/// ending the process for it would only begin it anew. Two minutes.
const DEAF_LOOKS_OPENING: u32 = 24_000;
/// A beat that stood still for so many looks counts as a stall: pokes were not answered at once.
const STALL_LOOKS: u32 = 10;
/// An answer within this time is not looked into.
const PROMPT: Duration = Duration::from_millis(10);

/// What one executor shares with the threads around it.
#[derive(Debug, Default)]
pub struct Pulse {
    /// Not behind a lock: a thread that loses its core in the middle of a wake must not keep the
    /// executor from answering.
    waker: OnceLock<Waker>,
    /// Moves on whenever the executor runs.
    beat: AtomicU64,
    /// Whether the next ring must call the waker: set by the task, cleared by the first ring.
    armed: AtomicBool,
    /// The executor runs, and reads back what its shard holds.
    opening: AtomicBool,
    /// Pokes so far.
    pub pokes: AtomicU64,
    /// Times that pokes went unanswered for 50 ms, for want of a core or not.
    pub stalls: AtomicU64,
    /// The longest from a poke to its answer while the shard served, in nanoseconds, less the time in
    /// which the thread waited for a core or the process was stopped.
    pub longest_stall_ns: AtomicU64,
    /// The executor's thread; 0 until it runs.
    pub thread: AtomicU32,
    /// When the poke was given that is still to be answered; 0 = none is.
    asked_ns: AtomicU64,
    /// When the last one was answered.
    answered_ns: AtomicU64,
    /// How long the executor's thread had waited for a core by then; [`NOT_ASKED`] of a prompt answer.
    waited_ns: AtomicU64,
}

/// The kernel was not asked.
const NOT_ASKED: u64 = u64::MAX;

impl Pulse {
    /// Says that the executor runs.
    pub fn beat(&self) {
        self.beat.fetch_add(1, Ordering::Relaxed);
    }

    /// How often it has said so.
    #[must_use]
    pub fn beats(&self) -> u64 {
        self.beat.load(Ordering::Relaxed)
    }

    /// Says whether the shard is being read back.
    pub fn set_opening(&self, opening: bool) {
        self.opening.store(opening, Ordering::Relaxed);
    }

    /// Wakes the executor unless a ring before this one is still to be answered.
    pub fn ring(&self) {
        if self.armed.swap(false, Ordering::SeqCst) {
            self.poke();
        }
    }

    fn poke(&self) {
        if let Some(waker) = self.waker.get() {
            waker.wake_by_ref();
        }
    }

    /// Says when the poke was given that is answered now. Only a late answer costs more than a look at a
    /// word.
    fn note_answer(&self) {
        let asked_ns = self.asked_ns.load(Ordering::Acquire);
        if asked_ns == 0 {
            return;
        }
        let now_ns = sys::boot_time_ns();
        let late = now_ns.saturating_sub(asked_ns) > PROMPT.as_nanos() as u64;
        let times = late.then(|| process::core_times(self.thread.load(Ordering::Relaxed)));
        let waited_ns = times.flatten().map_or(NOT_ASKED, |times| times.waited_ns);
        self.answered_ns.store(now_ns, Ordering::Relaxed);
        self.waited_ns.store(waited_ns, Ordering::Relaxed);
        self.asked_ns.store(0, Ordering::Release);
    }

    /// The task that answers: to be spawned first on the executor. `awake` is called at each wake.
    pub async fn answer(&self, mut awake: impl FnMut()) {
        poll_fn(|context| {
            self.waker.get_or_init(|| context.waker().clone());
            self.armed.store(true, Ordering::SeqCst);
            self.beat();
            self.note_answer();
            awake();
            Poll::<()>::Pending
        })
        .await;
    }
}

/// What other threads tell a shard. Bounded only where the sender asks: helpers answer what the
/// shard ordered, shards use [`Mailbox::try_send`].
#[derive(Debug)]
pub struct Mailbox<T> {
    letters: Mutex<VecDeque<T>>,
    pulse: Arc<Pulse>,
}

impl<T> Mailbox<T> {
    /// A mailbox whose bell is the executor's.
    #[must_use]
    pub fn new(pulse: Arc<Pulse>) -> Self {
        Self {
            letters: Mutex::default(),
            pulse,
        }
    }

    /// Puts a letter in and rings.
    pub fn send(&self, letter: T) {
        lock(&self.letters).push_back(letter);
        self.pulse.ring();
    }

    /// Puts a letter in and rings, or gives it back if `bound` letters wait.
    ///
    /// # Errors
    /// The letter, if the box is full.
    pub fn try_send(&self, letter: T, bound: usize) -> Result<(), T> {
        {
            let mut letters = lock(&self.letters);
            if letters.len() >= bound {
                return Err(letter);
            }
            letters.push_back(letter);
        }
        self.pulse.ring();
        Ok(())
    }

    /// Moves all letters to `into`.
    pub fn take(&self, into: &mut VecDeque<T>) {
        into.append(&mut lock(&self.letters));
    }

    /// Whether no letter waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        lock(&self.letters).is_empty()
    }
}

/// A mutex whose holder panicked: the process ends anyway.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How one executor is seen.
#[derive(Default)]
struct Watch {
    beat: u64,
    still: u32,
    asked: Option<Asked>,
    times: Option<CoreTimesFile>,
}

/// A poke whose answer is awaited.
#[derive(Clone, Copy)]
struct Asked {
    /// When the poke was given.
    at_ns: u64,
    /// Looks since.
    looks: u32,
    /// How long the executor's thread had waited for a core by then.
    waited_ns: u64,
    /// What the thread that pokes had had of cores.
    poker: CoreTimes,
}

/// What a look at a beat asks for.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Runs,
    Poke,
    Stalls,
    Deaf,
}

impl Watch {
    fn look(&mut self, beat: u64, waits_for_core: impl FnOnce() -> bool) -> Verdict {
        if beat != self.beat {
            self.beat = beat;
            self.still = 0;
            return Verdict::Runs;
        }
        // Not held against it: on a crowded machine a turn may take long.
        if self.still >= STALL_LOOKS && waits_for_core() {
            return Verdict::Poke;
        }
        self.still += 1;
        match self.still {
            DEAF_LOOKS.. => Verdict::Deaf,
            STALL_LOOKS => Verdict::Stalls,
            _ => Verdict::Poke,
        }
    }

    /// Before a poke: notes when the executor was asked, unless it still owes an answer.
    fn ask(&mut self, pulse: &Pulse, poker: &CoreTimesFile) {
        let thread = pulse.thread.load(Ordering::Relaxed);
        // Before the executor runs there is no waker to call, and what it reads back may take long.
        if self.asked.is_some() || thread == 0 || pulse.opening.load(Ordering::Relaxed) {
            return;
        }
        let times = self.times.get_or_insert_with(|| CoreTimesFile::of(thread));
        let at_ns = sys::boot_time_ns();
        self.asked = Some(Asked {
            at_ns,
            looks: 0,
            waited_ns: times.read().waited_ns,
            poker: poker.read(),
        });
        pulse.asked_ns.store(at_ns, Ordering::Release);
    }

    /// After a poke: only from here on it is known to be given, whatever kept this thread.
    fn poked(&mut self, poker: &CoreTimesFile) {
        if let Some(asked) = &mut self.asked
            && asked.looks == 0
        {
            asked.poker = poker.read();
            asked.at_ns = sys::boot_time_ns();
        }
    }

    /// At each look: keeps the longest stall once the answer has come.
    fn hear(&mut self, pulse: &Pulse, poker: &CoreTimesFile) {
        let Some(asked) = &mut self.asked else {
            return;
        };
        asked.looks += 1;
        if pulse.asked_ns.load(Ordering::Acquire) != 0 {
            return;
        }
        let waited_ns = pulse.waited_ns.load(Ordering::Relaxed);
        if waited_ns != NOT_ASKED && !pulse.opening.load(Ordering::Relaxed) {
            let answered_ns = pulse.answered_ns.load(Ordering::Relaxed);
            let stall = asked.stall_ns(answered_ns, waited_ns, sys::boot_time_ns(), poker.read());
            pulse.longest_stall_ns.fetch_max(stall, Ordering::Relaxed);
        }
        self.asked = None;
    }
}

impl Asked {
    /// How long the answer took that the executor can be blamed for.
    ///
    /// The thread that pokes is as much stopped as the executor is when the process or the whole machine
    /// is: what it slept longer than it wanted, and did not wait for a core.
    fn stall_ns(&self, answered_ns: u64, waited_ns: u64, heard_ns: u64, poker: CoreTimes) -> u64 {
        let waited = waited_ns.saturating_sub(self.waited_ns);
        let wanted = (LOOK_EVERY * self.looks).as_nanos() as u64;
        let busy = poker.since(self.poker);
        let stopped = heard_ns.saturating_sub(self.at_ns + wanted + busy);
        answered_ns.saturating_sub(self.at_ns + waited + stopped)
    }
}

/// Starts the thread that looks after these executors, before they are started themselves.
///
/// # Errors
/// If no thread can be started.
pub fn start(pulses: Vec<Arc<Pulse>>) -> std::io::Result<()> {
    std::thread::Builder::new()
        .name("rrq-poker".into())
        .spawn(move || {
            let mut watches: Vec<Watch> = pulses.iter().map(|_| Watch::default()).collect();
            let mut ran_ns = vec![0; pulses.len()];
            let own_times = CoreTimesFile::of(process::this_thread());
            loop {
                std::thread::sleep(LOOK_EVERY);
                for (shard, (pulse, watch)) in pulses.iter().zip(&mut watches).enumerate() {
                    let thread = pulse.thread.load(Ordering::Relaxed);
                    let waits = || process::waits_for_core(thread, &mut ran_ns[shard]);
                    let verdict = watch.look(pulse.beat.load(Ordering::Relaxed), waits);
                    watch.hear(pulse, &own_times);
                    let opening = pulse.opening.load(Ordering::Relaxed);
                    match verdict {
                        Verdict::Runs => continue,
                        Verdict::Deaf if opening && watch.still < DEAF_LOOKS_OPENING => {}
                        Verdict::Poke => {}
                        Verdict::Stalls => {
                            pulse.stalls.fetch_add(1, Ordering::Relaxed);
                        }
                        Verdict::Deaf => abort(ShardId(shard as u16)),
                    }
                    pulse.pokes.fetch_add(1, Ordering::Relaxed);
                    watch.ask(pulse, &own_times);
                    pulse.poke();
                    watch.poked(&own_times);
                }
            }
        })?;
    Ok(())
}

fn abort(shard: ShardId) -> ! {
    let seconds = (LOOK_EVERY * DEAF_LOOKS).as_secs();
    eprintln!(
        "{}",
        Report::error(
            Code::ShardStalled,
            format!("shard {shard} did not run for {seconds} s")
        )
        .why("its thread is stuck; the process ends so that a restart can go on at once")
        .fix("restart rrq-node: nothing acknowledged is lost")
    );
    std::process::abort()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_beat_that_moves_is_never_poked() {
        let mut watch = Watch::default();
        assert!((1..1000).all(|beat| watch.look(beat, || false) == Verdict::Runs));
    }

    #[test]
    fn a_beat_that_stands_still_is_poked_then_deaf_from_the_start_on() {
        let mut watch = Watch::default();
        for look in 1..DEAF_LOOKS {
            let expected = if look == STALL_LOOKS {
                Verdict::Stalls
            } else {
                Verdict::Poke
            };
            assert_eq!(watch.look(0, || false), expected, "look {look}");
        }
        assert_eq!(watch.look(0, || false), Verdict::Deaf);
        assert_eq!(watch.look(1, || false), Verdict::Runs);
    }

    #[test]
    fn an_executor_that_waits_for_a_core_is_poked_and_not_called_deaf() {
        let mut watch = Watch::default();
        let stalls = (0..2 * DEAF_LOOKS).filter(|_| watch.look(0, || true) == Verdict::Stalls);
        assert_eq!(stalls.count(), 1);
        for _ in STALL_LOOKS + 1..DEAF_LOOKS {
            assert_eq!(watch.look(0, || false), Verdict::Poke);
        }
        assert_eq!(watch.look(0, || false), Verdict::Deaf);
    }

    const MS: u64 = 1_000_000;

    fn times(ran_ms: u64, waited_ms: u64) -> CoreTimes {
        CoreTimes {
            ran_ns: ran_ms * MS,
            waited_ns: waited_ms * MS,
        }
    }

    #[test]
    fn a_stall_is_what_neither_a_busy_core_nor_a_stopped_process_explains() {
        let asked = Asked {
            at_ns: 1000 * MS,
            looks: 20,
            waited_ns: 70 * MS,
            poker: times(1, 10),
        };
        // 20 looks on time: nothing but the executor is to blame.
        let answer = |at_ms: u64, waited_ms: u64, heard_ms: u64, poker| {
            asked.stall_ns(at_ms * MS, waited_ms * MS, heard_ms * MS, poker) / MS
        };
        assert_eq!(answer(1098, 70, 1100, times(1, 10)), 98);
        // It waited 60 ms for a core.
        assert_eq!(answer(1098, 130, 1100, times(1, 10)), 38);
        // 3 s in which the looks did not come, and not for want of a core.
        assert_eq!(answer(4098, 70, 4100, times(1, 10)), 98);
        // The same for want of a core: the executor's thread had one.
        assert_eq!(answer(4098, 70, 4100, times(1, 3010)), 3098);
        // Looked at long after the answer, and stopped only then: never below zero.
        assert_eq!(answer(1020, 70, 4100, times(1, 10)), 0);
    }

    #[test]
    fn a_late_answer_is_measured_once_and_a_prompt_one_is_not() {
        let pulse = Pulse::default();
        pulse
            .thread
            .store(process::this_thread(), Ordering::Relaxed);
        let poker = CoreTimesFile::of(process::this_thread());
        let mut watch = Watch::default();
        let longest = || pulse.longest_stall_ns.load(Ordering::Relaxed);
        watch.ask(&pulse, &poker);
        pulse.note_answer();
        watch.hear(&pulse, &poker);
        assert!(watch.asked.is_none());
        assert_eq!(longest(), 0);
        for _ in 0..10 {
            watch.ask(&pulse, &poker);
            watch.poked(&poker);
            std::thread::sleep(LOOK_EVERY);
            watch.hear(&pulse, &poker);
        }
        assert_eq!(longest(), 0, "not before the answer");
        pulse.note_answer();
        watch.hear(&pulse, &poker);
        let stall = longest();
        assert!(stall > 20 * MS, "{stall} ns");
        // Rings without a poke are no answers.
        pulse.note_answer();
        watch.hear(&pulse, &poker);
        assert_eq!(longest(), stall);
    }

    #[test]
    fn a_full_mailbox_gives_the_letter_back() {
        let mailbox = Mailbox::new(Arc::new(Pulse::default()));
        assert_eq!(mailbox.try_send(1, 2), Ok(()));
        assert_eq!(mailbox.try_send(2, 2), Ok(()));
        assert_eq!(mailbox.try_send(3, 2), Err(3));
        let mut letters = VecDeque::new();
        mailbox.take(&mut letters);
        assert_eq!(letters, [1, 2]);
        assert!(mailbox.is_empty());
    }
}
