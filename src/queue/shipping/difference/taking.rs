//! What comes, held against what was asked for; what is to be written of it, and where it lies then.

use super::own::OwnBody;
use super::{Asked, Compare, Difference, Found, FoundPage, Open, OpenPage, Own, Target, Whose};
use crate::base::bugs::{self, Bug};
use crate::base::checksum::Hash128;
use crate::base::ids::{GroupId, JobId};
use crate::base::limits::LEAF_JOBS;
use crate::queue::discarded::Discarded;
use crate::queue::load::body_of;
use crate::queue::page::{LEAF_BYTES, PageError, read_leaf};
use crate::queue::residence::NEVER_GIVEN;
use crate::queue::shipping::NamedBranch;
use crate::queue::view::{BodyLocation, PageKey, PageKind, StoredPage};
use crate::queue::writing::{Piece, StoredTree, WrittenState};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

impl Difference {
    // What comes.

    /// The node that was wanted next has come; the hash of its bytes, and its branches.
    ///
    /// # Errors
    /// If it is not that node.
    pub fn take_node(&mut self, hash: Hash128, branches: Vec<NamedBranch>) -> Result<(), String> {
        let asked = self.next_asked()?;
        if asked.wanted.level == 0 || asked.hash != hash {
            return Err(format!("a node came in place of {:?}", asked.wanted));
        }
        let it = Compare {
            tree: asked.tree,
            level: asked.wanted.level,
            number: asked.wanted.key.number,
            hash,
            target: asked.target,
            own: None,
        };
        self.open_node(&it, branches, asked.own);
        Ok(())
    }

    /// The page that was wanted next has come. The bodies of its jobs that were wanted follow.
    ///
    /// # Errors
    /// If it is not that page, or cannot be one.
    pub fn take_page(&mut self, bytes: Bytes) -> Result<(), String> {
        let asked = self.next_asked()?;
        let key = asked.wanted.key;
        if asked.wanted.level != 0 || Hash128::of(&bytes) != asked.hash {
            return Err(format!("a page came in place of {:?}", asked.wanted));
        }
        let mut page = OpenPage::new(key, bytes, (asked.tree, asked.hash, asked.target));
        if key.kind == PageKind::Leaf {
            let Own::Bodies(mut own) = asked.own else {
                unreachable!("a leaf is wanted for the bodies that are not here");
            };
            if key.number > JobId::SEQ_MAX / LEAF_JOBS {
                return Err(at_page(key, NEVER_GIVEN));
            }
            let records = page.bytes.slice(..page.bytes.len().min(LEAF_BYTES));
            let records = read_leaf(&records).map_err(|what| at_page(key, what))?;
            for (slot, record) in records {
                let slot = slot as u8;
                page.records.insert(slot, record);
                match own.remove(&slot) {
                    Some(body) if body.is_of(&record) => page.carry(slot, body),
                    Some(_) => return Err(at_page(key, "a body that is here is of another job")),
                    None => page.left.push_back((slot, None)),
                }
            }
        }
        self.brought += 1;
        self.arriving = Some(page);
        Ok(())
    }

    /// The body of the job at a slot of the page that came last.
    ///
    /// # Errors
    /// If it is not the one that was wanted next, or not what its record tells.
    pub fn take_body(&mut self, slot: u8, bytes: &Bytes) -> Result<(), String> {
        let group = self.own.group.group;
        let page = self.arriving.as_ref().filter(|_| self.body.is_none());
        let page = page.ok_or("a body came that no page waits for")?;
        let next = page.left.front().filter(|(_, body)| body.is_none());
        if next.map(|(slot, _)| *slot) != Some(slot) {
            return Err(at_page(page.key, "a body came in place of another"));
        }
        let body = body_of(&page.records[&slot], bytes).map_err(|what| {
            let job = job_of(group, page.key, slot);
            PageError::of_body(Some(job), what).to_string()
        })?;
        self.body = Some(body);
        Ok(())
    }

    fn next_asked(&mut self) -> Result<Asked, String> {
        let is_free = self.arriving.is_none() && self.told > 0;
        let asked = is_free.then(|| self.asked.pop_front()).flatten();
        let asked = asked.ok_or("something came that nobody waits for")?;
        self.told -= 1;
        Ok(asked)
    }

    // What is written.

    /// What is to be written next; `None` while nothing is.
    ///
    /// # Panics
    /// If what was handed out before has no place yet.
    pub fn next_piece(&mut self) -> Option<Piece> {
        assert!(self.open.is_none(), "something has no place yet");
        let group = self.own.group.group;
        if let Some(node) = self.whole.pop() {
            let open = &self.nodes[&node];
            let branches = open.branches.iter().map(|((slot, summary, _), stored)| {
                (*slot, *summary, stored.expect("all below it is written"))
            });
            self.open = Some(Open::Node(node));
            return Some(Piece::Node {
                key: open.key,
                level: open.level,
                branches: branches.collect(),
            });
        }
        let (page, whose) = match (&mut self.own_page, &mut self.arriving) {
            (Some(page), _) => (page, Whose::Own),
            (None, Some(page)) => (page, Whose::Theirs),
            (None, None) => return None,
        };
        let Some((slot, body)) = page.left.front_mut() else {
            page.bodies.sort_unstable_by_key(|(slot, _)| *slot);
            self.open = Some(Open::Page(whose));
            return Some(Piece::Page {
                key: page.key,
                bytes: page.bytes.clone(),
                bodies: page.bodies.clone(),
            });
        };
        let body = body.take().or_else(|| self.body.take())?;
        let job = job_of(group, page.key, *slot);
        self.open = Some(Open::Body(whose));
        Some(Piece::Body { job, body })
    }

    fn open_page(&mut self, whose: Whose) -> &mut OpenPage {
        let page = match whose {
            Whose::Theirs => &mut self.arriving,
            Whose::Own => &mut self.own_page,
        };
        page.as_mut().expect("it is open")
    }

    /// The body that was handed out is written there.
    ///
    /// # Panics
    /// If none was.
    pub fn body_placed(&mut self, at: BodyLocation) {
        let Some(Open::Body(whose)) = self.open.take() else {
            panic!("no body was handed out");
        };
        let page = self.open_page(whose);
        let (slot, _) = page.left.pop_front().expect("its body was handed out");
        page.bodies.push((slot, at));
    }

    /// The page or node that was handed out is written there.
    ///
    /// # Errors
    /// If it is a node, and not what was named.
    ///
    /// # Panics
    /// If none was.
    pub fn placed(&mut self, stored: StoredPage) -> Result<(), String> {
        let whose = match self.open.take() {
            Some(Open::Page(whose)) => whose,
            Some(Open::Node(node)) => {
                let node = self.nodes.remove(&node).expect("it is open");
                if node.hash != stored.hash {
                    return Err(at_page(node.key, "what is below it is not what was named"));
                }
                self.add(node.tree, stored);
                self.put(node.tree, node.target, stored);
                return Ok(());
            }
            _ => panic!("neither page nor node was handed out"),
        };
        let page = match whose {
            Whose::Theirs => self.arriving.take(),
            Whose::Own => self.own_page.take(),
        };
        let page = page.expect("it is open");
        let mut payloads: BTreeMap<u64, (u64, u64)> = BTreeMap::new();
        for (_, at) in &page.bodies {
            let used = payloads.entry(at.file).or_default();
            *used = (used.0 + at.disk_bytes(), used.1 + 1);
        }
        let payloads = payloads.into_iter();
        let payloads = payloads.map(|(file, (bytes, count))| (file, bytes, count));
        let written = FoundPage {
            stored,
            payloads: payloads.collect(),
        };
        if let Target::Flat = page.target {
            self.pages.insert(page.key, Some(stored));
        } else {
            self.add(page.tree, stored);
            self.add_bodies(page.tree, &written.payloads);
            self.put(page.tree, page.target, stored);
        }
        self.found.0.insert((page.key, page.hash), written);
        Ok(())
    }

    /// What a root of the other's state names here; and what is to be freed, which is as much as came and what
    /// of this node's own nobody else holds any more.
    ///
    /// # Panics
    /// If something is missing yet.
    #[must_use]
    pub fn finish(mut self) -> (WrittenState, Discarded) {
        assert!(self.is_done(), "something is missing yet");
        let pages = std::mem::take(&mut self.pages).into_iter();
        let pages = pages.map(|(key, stored)| (key, stored.expect("it is written")));
        let trees = std::mem::take(&mut self.trees).into_iter();
        let trees = trees.map(|tree| StoredTree {
            key: tree.key,
            level: tree.level,
            summary: tree.summary,
            stored: tree.stored.expect("it is written"),
            runs: tree.runs,
            payloads: tree.payloads,
        });
        let state = WrittenState {
            pages: pages.collect(),
            trees: trees.collect(),
        };
        (state, Discarded::rest(self))
    }

    /// It is given up: what was written so far, for another state, and what of this node's own is damaged.
    #[must_use]
    pub fn into_found(self) -> (Found, BTreeSet<(PageKey, u8)>) {
        (self.found, self.damaged)
    }
}

impl OpenPage {
    pub(super) fn new(
        key: PageKey,
        bytes: Bytes,
        (tree, hash, target): (usize, Hash128, Target),
    ) -> Self {
        Self {
            tree,
            key,
            hash,
            bytes,
            target,
            records: BTreeMap::new(),
            bodies: Vec::new(),
            left: VecDeque::new(),
        }
    }

    /// The body of a job is here.
    pub(super) fn carry(&mut self, slot: u8, body: OwnBody) {
        let first = self.bodies.first().map(|(_, at)| *at);
        match body.at {
            Some(_) if bugs::on(Bug::BodyOfAnotherJob) && first.is_some() => {
                self.bodies.push((slot, first.expect("it was just seen")));
            }
            Some(at) => self.bodies.push((slot, at)),
            None => self.left.push_back((slot, body.body)),
        }
    }
}

fn job_of(group: GroupId, key: PageKey, slot: u8) -> JobId {
    let seq = key.number * LEAF_JOBS + u64::from(slot);
    JobId::new(group, key.queue, key.partition, seq)
}

fn at_page(key: PageKey, what: &str) -> String {
    PageError::of_page(key, what).to_string()
}
