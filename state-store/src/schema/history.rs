//! How the schema of a state may change when a program opens it.

use millstream_common::{Error, Result};

use super::{ACCUMULATORS, AccumulatorMerge, Form, Schema, Upgrade};
use crate::tree::StateEntry;

impl StateEntry {
    /// Makes this the entry of a program that wants `wanted`. Refused, with both shown, when the values that are stored
    /// cannot become what the program wants.
    pub(crate) fn evolve(&mut self, wanted: &Self) -> Result<()> {
        let place = |e: &Self| (e.task, e.layout);
        // What has had no operands may have some from now on.
        let merges = self.merge_operator.is_empty() || self.merge_operator == wanted.merge_operator;
        if place(self) != place(wanted) || !merges {
            return Err(self.refuse(wanted, "its task, layout or merge operator differs"));
        }
        self.evolve_values(wanted)?;
        self.merge_operator.clone_from(&wanted.merge_operator);
        Ok(())
    }

    /// Refuses accumulators that the store could not merge.
    pub(crate) fn check_merge(&self) -> Result<()> {
        if self.merge_operator != ACCUMULATORS {
            return Ok(());
        }
        let place = || format!("state '{}' of operator '{}'", self.name, self.operator_uid);
        AccumulatorMerge::new(&self.schemas).map(drop).map_err(|e| e.at(place()))
    }

    fn evolve_values(&mut self, wanted: &Self) -> Result<()> {
        let Some(new) = wanted.schemas.last() else {
            let same = self.value_schema == wanted.value_schema;
            return if same { Ok(()) } else { Err(self.refuse(wanted, "its values are encoded otherwise")) };
        };
        if self.schemas.is_empty() {
            // All that is known of its values is a text: if that is the same, so are they. The release knew no TTL.
            if self.value_schema != wanted.value_schema {
                return Err(self.refuse(wanted, "an earlier release wrote it, which did not describe its values"));
            }
            self.schemas = vec![Schema { ttl: None, ..new.clone() }];
        }
        let Some(old) = self.schemas.last().cloned() else { return Ok(()) };
        if let Form::Opaque(text) = &old.value
            && *text == wanted.value_schema
            && self.schemas.len() == 1
            && old.ttl == new.ttl
            && (old.key.is_empty() || !new.key.is_empty())
            && (old.map_key.is_empty() || !new.map_key.is_empty())
        {
            // The same words: the program only says more of the same bytes.
            self.schemas = vec![new.clone()];
            return Ok(());
        }
        let upgrade = Upgrade::new(&old, new).map_err(|why| self.refuse(wanted, &why))?;
        let key = if new.key.is_empty() { old.key.clone() } else { new.key.clone() };
        let map_key = if new.map_key.is_empty() { old.map_key.clone() } else { new.map_key.clone() };
        let known = Schema { key, map_key, ..new.clone() };
        if !upgrade.is_same() {
            self.schemas.push(known);
            // A program that knows of no tags compares the words: it must not take this state for the one it knew.
            self.value_schema = format!("{} @{}", wanted.value_schema, self.schemas.len());
            return Ok(());
        }
        // Only names differ, or the length of the TTL. What was added before has the default that it had then.
        let mut renamed = known;
        keep_defaults(&old.value, &mut renamed.value);
        if let Some(last) = self.schemas.last_mut() {
            *last = renamed;
        }
        Ok(())
    }

    fn refuse(&self, wanted: &Self, why: &str) -> Error {
        let show = |s: &Self| {
            let schema = s.schemas.last().map_or_else(|| format!("'{}'", s.value_schema), ToString::to_string);
            format!("{:?} {schema} merged by '{}' in task {}", s.layout, s.merge_operator, s.task)
        };
        Error::config(format!(
            "state '{}' of operator '{}' is stored as {}, the program wants {}: {why}",
            self.name,
            self.operator_uid,
            show(self),
            show(wanted)
        ))
        .code(1202)
        .next("go back to the program that wrote it, or give the new state another name")
    }

    /// Whether this may stand in a version where `old` stood in the one before: the same state, whose schemas are still
    /// known. (The last one may have got other names.)
    #[must_use]
    pub fn may_follow(&self, old: &Self) -> bool {
        let place = |e: &Self| (e.id, e.task, e.operator_uid.clone(), e.name.clone(), e.layout);
        let merges = old.merge_operator.is_empty() || self.merge_operator == old.merge_operator;
        let last = old.schemas.len().saturating_sub(1);
        let described = !self.schemas.is_empty() || self.value_schema == old.value_schema;
        place(self) == place(old)
            && merges
            && described
            && self.schemas.len() >= old.schemas.len()
            && self.schemas[..last] == old.schemas[..last]
    }
}

/// Gives the fields of `new` the defaults that they have in `old`; both have the same bytes.
fn keep_defaults(old: &Form, new: &mut Form) {
    match (old, new) {
        (Form::Record { fields: old, .. }, Form::Record { fields: new, .. }) => {
            for (old, new) in old.iter().zip(new) {
                new.default.clone_from(&old.default);
                keep_defaults(&old.form, &mut new.form);
            }
        }
        (Form::List(old), Form::List(new)) | (Form::Framed(old), Form::Framed(new)) => keep_defaults(old, new),
        _ => {}
    }
}
