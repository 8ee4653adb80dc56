//! What the store must know of each state: where key groups stand in its keys, and how its operands merge.

use std::collections::BTreeMap;
use std::sync::Arc;

use millstream_common::{Error, KeyGroup, Result, StateId};

use crate::entry::{MergeOperator, MergeOperators};
use crate::key;
use crate::schema::{ACCUMULATORS, AccumulatorMerge, Schema};

/// Where the key group stands in the store keys of a state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// `[state][key group][key]`
    Point,
    /// `[state][time][key group][key]`
    TimeOrdered,
    /// `[state][key group][key, ended][map key]`: many entries under one key ([`key::map_key`]), read by their whole keys
    /// or all together.
    Map,
}

/// One state, as far as the store cares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StateLayout {
    /// How its keys are ordered.
    pub layout: Layout,
    /// The name of its merge operator; empty when it has no operands.
    pub merge_operator: String,
}

/// The layouts of all states of a job. Cheap to clone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Layouts(Arc<BTreeMap<StateId, Known>>);

/// A state, with its merge operator when that follows from its schemas.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Known {
    layout: StateLayout,
    accumulators: Option<AccumulatorMerge>,
}

impl Layouts {
    /// The layouts of these states, with the schemas that each has had, oldest first.
    #[must_use]
    pub fn described<'a>(states: impl IntoIterator<Item = (StateId, StateLayout, &'a [Schema])>) -> Self {
        let known = |(id, layout, history): (StateId, StateLayout, &[Schema])| {
            // A history that does not add up was refused before it came into a version; if it is there all the same, who
            // needs the operator is told so.
            let wanted = layout.merge_operator == ACCUMULATORS;
            let accumulators = wanted.then(|| AccumulatorMerge::new(history).ok()).flatten();
            (id, Known { layout, accumulators })
        };
        Self(Arc::new(states.into_iter().map(known).collect()))
    }

    /// The layouts of these states, of whose values nothing is known.
    #[must_use]
    pub fn new(states: impl IntoIterator<Item = (StateId, StateLayout)>) -> Self {
        Self::described(states.into_iter().map(|(id, layout)| (id, layout, &[][..])))
    }

    /// States without merge operands.
    #[must_use]
    pub fn plain(states: impl IntoIterator<Item = (StateId, Layout)>) -> Self {
        Self::new(states.into_iter().map(|(id, layout)| (id, StateLayout { layout, merge_operator: String::new() })))
    }

    /// The layout of a state.
    #[must_use]
    pub fn get(&self, state: StateId) -> Option<&StateLayout> {
        self.0.get(&state).map(|k| &k.layout)
    }

    /// The merge operator of a state: the one of `named` that goes by its name, or the one that its schemas give. `None`
    /// when it has none.
    pub(crate) fn operator<'a>(
        &'a self,
        state: StateId,
        named: &'a MergeOperators,
    ) -> Result<Option<&'a dyn MergeOperator>> {
        match self.0.get(&state) {
            None => Ok(None),
            Some(k) if k.layout.merge_operator.is_empty() => Ok(None),
            Some(Known { accumulators: Some(merge), .. }) => Ok(Some(merge)),
            Some(k) => named.get(&k.layout.merge_operator).map(Some),
        }
    }

    /// The merge operator of the state of a key that has operands.
    pub(crate) fn operator_of<'a>(
        &'a self,
        store_key: &[u8],
        named: &'a MergeOperators,
    ) -> Result<&'a dyn MergeOperator> {
        let state = self.locate(store_key)?.state;
        match self.operator(state, named)? {
            Some(operator) => Ok(operator),
            None => named.get(""),
        }
    }

    /// The states with their layouts, by id.
    pub fn iter(&self) -> impl Iterator<Item = (StateId, &StateLayout)> {
        self.0.iter().map(|(id, k)| (*id, &k.layout))
    }

    /// State, key group and (for time-ordered states) time of a store key.
    pub fn locate(&self, store_key: &[u8]) -> Result<Place> {
        let state = key::state_of(store_key).ok_or_else(|| bad_key(store_key))?;
        let layout = self.get(state).ok_or_else(|| unknown_state(state))?.layout;
        let (group, time_ms) = key::key_group(store_key, layout).ok_or_else(|| bad_key(store_key))?;
        Ok(Place { state, group, time_ms })
    }
}

/// Where a store key stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Its state.
    pub state: StateId,
    /// Its key group.
    pub group: KeyGroup,
    /// Its time, for time-ordered states.
    pub time_ms: Option<i64>,
}

pub(crate) fn unknown_state(state: StateId) -> Error {
    Error::internal(format!("state {state} has no layout: it is not in the table of states")).code(9203)
}

pub(crate) fn bad_key(store_key: &[u8]) -> Error {
    Error::internal(format!("{store_key:02x?} is too short to be a store key")).code(9204)
}
