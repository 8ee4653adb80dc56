//! Splits that come while a job runs.

use millstream_proto::control::to_worker::Message as Down;

use super::drain_tests::Cluster;
use crate::source::{Discovery, Split};

impl Cluster {
    fn finds(&mut self, ids: &[&str], complete: bool) {
        let new = ids.iter().map(|id| Split { id: (*id).to_owned(), payload: Vec::new() }).collect();
        self.turn(|m, t| m.on_discovered("s", Discovery { new, complete }, t));
    }

    /// Whom which splits were given to, subtask by subtask, without a barrier.
    fn added(&self) -> Vec<(String, u32, String)> {
        let added = self.told.iter().filter_map(|(w, m)| match m {
            Down::AddSplits(a) => Some(a.splits.iter().map(move |s| (w.clone(), s.subtask, s.split_id.clone()))),
            _ => None,
        });
        added.flatten().collect()
    }
}

fn given(all: &[(&str, u32, &str)]) -> Vec<(String, u32, String)> {
    all.iter().map(|(w, i, id)| ((*w).to_owned(), *i, (*id).to_owned())).collect()
}

#[test]
fn a_split_that_is_found_goes_to_who_has_the_fewest() {
    let mut c = Cluster::running(2, &[("a", 1), ("b", 1)]);
    // Subtask 0 reads the split that the job began with.
    c.finds(&["1", "2", "3"], false);
    assert_eq!(c.added(), given(&[("a", 0, "2"), ("b", 1, "1"), ("b", 1, "3")]).into_iter().collect::<Vec<_>>());
    c.finds(&["1", "3"], false);
    assert_eq!(c.added().len(), 3, "they are known");
}

#[test]
fn amid_a_rescale_it_waits_for_its_end() {
    let mut c = Cluster::running(1, &[("a", 1), ("b", 1)]);
    c.turn(|m, t| m.want_rescale(2, 1, t));
    c.settle_until(|m| matches!(m, Down::PrepareRescale(_)));
    c.finds(&["1"], false);
    assert!(c.added().is_empty());
    c.settle();
    assert!(matches!(c.replies.get(&1), Some(Ok(()))));
    assert_eq!(c.added(), given(&[("b", 1, "1")]));
}

#[test]
fn a_job_that_starts_again_has_it_too() {
    let mut c = Cluster::running(1, &[("a", 1)]);
    c.is_lost("a");
    c.finds(&["1"], false);
    assert!(c.added().is_empty());
    let execution = c.master.execution;
    c.joins("b", 1);
    c.turn(|m, t| m.on_timer(super::Timer::Restart { execution }, t));
    c.settle();
    let deployed = |m: &Down| matches!(m, Down::Deploy(d) if d.splits.iter().any(|s| s.split_id == "1"));
    assert!(c.told.iter().any(|(_, m)| deployed(m)) && c.added().is_empty());
}
