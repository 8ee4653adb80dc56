//! Which transactional ids of a writer may be used when. Decisions only.
//!
//! A writer has a few ids, one a slot. One that was pre-committed is used again when its commit was confirmed and a newer
//! version that no longer lists it is durable: until then a restart would commit what it finds under the id.

use millstream_common::planted::bug_is_planted;
use millstream_common::{Epoch, Error, Result};

/// So many transactions of a writer wait for their commits at most.
pub(super) const SLOTS_MAX: u32 = 64;

/// What a slot is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Slot {
    Free,
    /// Rows are, or soon will be, written under it.
    Taken,
    /// Its transaction waits for a commit, or may be asked for by a restart.
    PreCommitted(Epoch),
    /// Somebody may still make a producer for it: never used.
    Spent,
}

/// The slots of a writer.
#[derive(Clone, Debug, Default)]
pub(super) struct Slots(Vec<Slot>);

impl Slots {
    /// The first free one, which is taken now.
    pub(super) fn take(&mut self) -> Result<u32> {
        if self.waiting() >= u64::from(SLOTS_MAX) {
            let what = format!("{SLOTS_MAX} transactions of a subtask wait for their commits");
            return Err(Error::unavailable(what)
                .code(2441)
                .next("see why commits do not come through: the log says what the brokers answer"));
        }
        let free = self.0.iter().position(|s| *s == Slot::Free).unwrap_or(self.0.len());
        if free == self.0.len() {
            self.0.push(Slot::Free);
        }
        self.0[free] = Slot::Taken;
        Ok(free as u32)
    }

    /// Transactions of which no durable version says that they were committed.
    pub(super) fn waiting(&self) -> u64 {
        self.0.iter().filter(|s| matches!(s, Slot::PreCommitted(_))).count() as u64
    }

    /// The transaction of a taken slot waits for its commit with this epoch.
    pub(super) fn pre_commit(&mut self, slot: u32, epoch: Epoch) {
        if let Some(s) = self.0.get_mut(slot as usize) {
            *s = Slot::PreCommitted(epoch);
        }
    }

    /// A taken slot is left alone from now on.
    pub(super) fn spend(&mut self, slot: u32) {
        if let Some(s) = self.0.get_mut(slot as usize) {
            *s = Slot::Spent;
        }
    }

    /// A version up to `epoch` is durable and lists these slots.
    pub(super) fn on_version(&mut self, epoch: Epoch, listed: &[u32]) {
        for (i, s) in (0u32..).zip(&mut self.0) {
            // A planted bug: it is used again as soon as its version is durable.
            let is_listed = listed.contains(&i) && !bug_is_planted(36);
            if matches!(s, Slot::PreCommitted(of) if *of <= epoch) && !is_listed {
                *s = Slot::Free;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The slots that a version frees.
    fn freed_by(slots: &mut Slots, epoch: Epoch, listed: &[u32]) -> Vec<u32> {
        let before = slots.clone();
        slots.on_version(epoch, listed);
        let was_free = |i: usize| before.0.get(i).is_none_or(|s| *s == Slot::Free);
        let now = slots.0.iter().enumerate().filter(|(_, s)| **s == Slot::Free);
        now.filter(|(i, _)| !was_free(*i)).map(|(i, _)| i as u32).collect()
    }

    #[test]
    fn a_slot_is_free_when_a_version_that_came_after_its_own_does_not_list_it() {
        let mut slots = Slots::default();
        assert_eq!(slots.take().unwrap(), 0);
        slots.pre_commit(0, Epoch(5));
        // A version from before it says nothing of it.
        assert!(freed_by(&mut slots, Epoch(4), &[]).is_empty());
        assert_eq!(slots.take().unwrap(), 1);
        assert!(freed_by(&mut slots, Epoch(5), &[0]).is_empty());
        slots.pre_commit(1, Epoch(6));
        assert_eq!(freed_by(&mut slots, Epoch(6), &[1]), [0]);
        assert_eq!(slots.take().unwrap(), 0);
        assert_eq!(slots.take().unwrap(), 2);
    }

    #[test]
    fn a_spent_slot_is_never_used_again() {
        let mut slots = Slots::default();
        assert_eq!(slots.take().unwrap(), 0);
        slots.spend(0);
        assert!(freed_by(&mut slots, Epoch(9), &[]).is_empty());
        assert_eq!(slots.take().unwrap(), 1);
    }

    #[test]
    fn the_pool_has_an_end() {
        let mut slots = Slots::default();
        let spent = slots.take().unwrap();
        slots.spend(spent);
        for n in 0..SLOTS_MAX {
            let slot = slots.take().unwrap();
            slots.pre_commit(slot, Epoch(u64::from(n)));
        }
        assert_eq!(slots.take().unwrap_err().number(), 2441);
    }
}
