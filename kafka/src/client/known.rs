//! What a client remembers of its cluster: whom to ask first, and who coordinates what. Decisions only.

use std::collections::BTreeMap;

/// So many brokers are remembered beside those that the user names.
const LEARNT_MAX: usize = 16;
/// So many coordinators of each kind. Ids are many where a sink has many subtasks; when there is no room, all are asked for again.
const COORDINATORS_MAX: usize = 4_096;

/// What a coordinator looks after.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Coordinates {
    Group,
    Transaction,
}

#[derive(Debug)]
pub(super) struct Known {
    bootstrap: Vec<String>,
    /// In the order in which they are asked: who answered last is the first, who did not is the last.
    brokers: Vec<String>,
    groups: BTreeMap<String, String>,
    transactions: BTreeMap<String, String>,
}

impl Known {
    pub(super) fn new(bootstrap: &[String]) -> Self {
        let (bootstrap, brokers) = (bootstrap.to_vec(), bootstrap.to_vec());
        Self { bootstrap, brokers, groups: BTreeMap::new(), transactions: BTreeMap::new() }
    }

    /// Whom to ask what any broker can answer.
    pub(super) fn order(&self) -> Vec<String> {
        self.brokers.clone()
    }

    /// It may take long to say that nobody is there: until it has answered, others are asked before it.
    pub(super) fn is_asked(&mut self, broker: &str) {
        if let Some(i) = self.brokers.iter().position(|b| b == broker) {
            self.brokers[i..].rotate_left(1);
        }
    }

    pub(super) fn has_answered(&mut self, broker: &str) {
        match self.brokers.iter().position(|b| b == broker) {
            Some(i) => self.brokers[..=i].rotate_right(1),
            None if self.brokers.len() < self.bootstrap.len() + LEARNT_MAX => self.brokers.insert(0, broker.to_owned()),
            None => {}
        }
    }

    /// It did not answer; what it coordinated has another coordinator by now, or soon.
    pub(super) fn has_failed(&mut self, broker: &str) {
        self.is_asked(broker);
        self.groups.retain(|_, b| b != broker);
        self.transactions.retain(|_, b| b != broker);
    }

    /// These are the brokers of the cluster now.
    pub(super) fn are<'a>(&mut self, cluster: impl Iterator<Item = &'a String> + Clone) {
        let (brokers, bootstrap) = (&mut self.brokers, &self.bootstrap);
        brokers.retain(|b| bootstrap.contains(b) || cluster.clone().any(|c| c == b));
        for broker in cluster {
            if brokers.len() < bootstrap.len() + LEARNT_MAX && !brokers.contains(broker) {
                brokers.push(broker.clone());
            }
        }
    }

    pub(super) fn coordinator(&self, of: Coordinates, key: &str) -> Option<String> {
        match of {
            Coordinates::Group => self.groups.get(key).cloned(),
            Coordinates::Transaction => self.transactions.get(key).cloned(),
        }
    }

    pub(super) fn coordinates(&mut self, broker: &str, of: Coordinates, key: &str) {
        let coordinators = self.coordinators(of);
        if coordinators.len() >= COORDINATORS_MAX {
            coordinators.clear();
        }
        coordinators.insert(key.to_owned(), broker.to_owned());
    }

    /// Who coordinates this is to be asked again.
    pub(super) fn has_moved(&mut self, of: Coordinates, key: &str) {
        self.coordinators(of).remove(key);
    }

    fn coordinators(&mut self, of: Coordinates) -> &mut BTreeMap<String, String> {
        match of {
            Coordinates::Group => &mut self.groups,
            Coordinates::Transaction => &mut self.transactions,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(names: &[&str]) -> Vec<String> {
        names.iter().map(|n| (*n).to_owned()).collect()
    }

    #[test]
    fn who_answered_last_comes_first_and_who_is_asked_or_fails_comes_last() {
        let mut known = Known::new(&named(&["a", "b", "c"]));
        assert_eq!(known.order(), ["a", "b", "c"]);
        known.is_asked("a");
        assert_eq!(known.order(), ["b", "c", "a"]);
        known.has_answered("c");
        assert_eq!(known.order(), ["c", "b", "a"]);
        known.has_answered("c");
        assert_eq!(known.order(), ["c", "b", "a"]);
        known.has_failed("c");
        assert_eq!(known.order(), ["b", "a", "c"]);
    }

    #[test]
    fn brokers_of_the_cluster_come_and_go_and_named_ones_stay() {
        let mut known = Known::new(&named(&["a"]));
        known.are(named(&["b", "c"]).iter());
        assert_eq!(known.order(), ["a", "b", "c"]);
        known.has_answered("b");
        known.are(named(&["b", "d"]).iter());
        assert_eq!(known.order(), ["b", "a", "d"]);
        let many: Vec<String> = (0..100).map(|n| n.to_string()).collect();
        known.are(many.iter());
        assert_eq!(known.order().len(), 1 + LEARNT_MAX);
        known.has_answered("another");
        assert!(!known.order().contains(&"another".to_owned()));
    }

    #[test]
    fn a_coordinator_is_known_until_it_moves_or_fails() {
        let mut known = Known::new(&named(&["a"]));
        let (group, id) = (Coordinates::Group, Coordinates::Transaction);
        known.coordinates("b", id, "x");
        known.coordinates("b", id, "y");
        known.coordinates("c", id, "z");
        known.coordinates("c", group, "x");
        assert_eq!(known.coordinator(id, "x").as_deref(), Some("b"));
        assert_eq!(known.coordinator(group, "x").as_deref(), Some("c"));
        known.has_moved(id, "x");
        assert_eq!(known.coordinator(id, "x"), None);
        known.has_failed("c");
        assert_eq!((known.coordinator(id, "z"), known.coordinator(group, "x")), (None, None));
        assert_eq!(known.coordinator(id, "y").as_deref(), Some("b"));
    }

    #[test]
    fn what_is_remembered_has_an_end() {
        let mut known = Known::new(&named(&["a"]));
        for n in 0..COORDINATORS_MAX * 3 {
            known.coordinates("a", Coordinates::Transaction, &n.to_string());
            assert!(known.transactions.len() <= COORDINATORS_MAX);
            assert!(known.coordinator(Coordinates::Transaction, &n.to_string()).is_some());
        }
    }
}
