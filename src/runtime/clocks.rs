//! What the node's log says of wall clocks: when this node's is wrong, when the voters' do not agree, when
//! they moved. Once each, not again with every small change.

use crate::shard::wall::VotersClock;

/// Further than this from the median a clock is worth a line, in milliseconds.
const WRONG_MS: u64 = 1_000;
/// A move of the median by more is a step, in milliseconds.
const STEP_MS: u64 = 60_000;

/// What is to be said now that the voters' clocks say something else than before.
#[must_use]
pub fn words(before: Option<VotersClock>, now: VotersClock) -> Vec<String> {
    let mut words = Vec::new();
    let was_agreed = before.is_none_or(|before| before.is_agreed);
    let shown = |ms: u64| ms as f64 / 1e3;
    if was_agreed && !now.is_agreed {
        words.push(
            "most voters' wall clocks are not within a minute of one another: run-ats follow none of them by \
             more than that; look at the time service of every node"
                .to_owned(),
        );
    }
    if !was_agreed && now.is_agreed {
        words.push("most voters' wall clocks agree again".to_owned());
    }
    let moved = before.map_or(0, |before| now.ahead_ms.abs_diff(before.ahead_ms));
    if moved > STEP_MS && now.is_agreed {
        let moved = shown(moved);
        words.push(format!(
            "most voters' wall clocks moved by {moved:.0} s: run-ats follow them"
        ));
    }
    let is_wrong = |clock: VotersClock| clock.own_ms.unsigned_abs() > WRONG_MS;
    if is_wrong(now) && !before.is_some_and(is_wrong) {
        let side = if now.own_ms > 0 { "ahead of" } else { "behind" };
        let off = shown(now.own_ms.unsigned_abs());
        words.push(format!(
            "this node's wall clock is {off:.1} s {side} the median of the voters', which counts: look at its \
             time service"
        ));
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_odd_is_said_once() {
        let clock = |ahead_ms, own_ms, is_agreed| VotersClock {
            ahead_ms,
            own_ms,
            is_agreed,
        };
        let well = clock(5, 20, true);
        assert!(words(None, well).is_empty());
        let wrong = clock(5, 7_200, true);
        let said = words(Some(well), wrong);
        assert_eq!(said.len(), 1);
        assert!(
            said[0].starts_with("this node's wall clock is 7.2 s ahead of"),
            "{said:?}"
        );
        assert!(words(Some(wrong), clock(5, 7_300, true)).is_empty());
        assert!(words(None, clock(5, -7_300, true))[0].contains("7.3 s behind"));
        let disputed = words(Some(well), clock(90_000, 20, false));
        assert!(
            disputed[0].starts_with("most voters' wall clocks are not"),
            "{disputed:?}"
        );
        assert_eq!(disputed.len(), 1, "nothing follows them");
        let again = words(Some(clock(90_000, 20, false)), well);
        assert!(again[0].ends_with("agree again"), "{again:?}");
        let moved = words(Some(well), clock(120_005, 20, true));
        assert!(moved[0].contains("moved by 120 s"), "{moved:?}");
    }
}
