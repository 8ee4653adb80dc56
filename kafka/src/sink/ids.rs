//! Transactional ids: `PREFIX-GENERATION-EXECUTION-SUBTASK-UNIQUE-SLOT`, the fourth of sixteen hexadecimal digits.
//!
//! Generation and execution say which deployment wrote, so that a later one knows what it may abort. The writer's own number
//! tells instances of a subtask apart that follow one another within a deployment.

use millstream_common::{Execution, Generation};
use millstream_engine::sink::SinkContext;

/// The ids of a writer.
#[derive(Clone, Debug)]
pub(super) struct WriterIds(String);

impl WriterIds {
    pub(super) fn new(prefix: &str, of: &SinkContext) -> Self {
        Self(format!("{prefix}-{}-{}-{}-{:016x}-", of.generation, of.execution, of.subtask, of.unique))
    }

    pub(super) fn id(&self, slot: u32) -> String {
        format!("{}{slot}", self.0)
    }

    /// The slot of an id of this writer; none of others'.
    pub(super) fn slot(&self, id: &str) -> Option<u32> {
        number(id.strip_prefix(&self.0)?)
    }
}

/// What all ids of a sink begin with, and perhaps some of others: prefixes may begin with one another.
pub(super) fn of_sink(prefix: &str) -> String {
    format!("{prefix}-")
}

/// The deployment that an id of this sink belongs to; none of another sink's.
pub(super) fn deployment(prefix: &str, id: &str) -> Option<(Generation, Execution)> {
    let mut parts = id.strip_prefix(prefix)?.strip_prefix('-')?.split('-');
    let mut next = || parts.next();
    let (generation, execution) = (number(next()?)?, number(next()?)?);
    let (_, unique, _) = (number::<u32>(next()?)?, next()?, number::<u32>(next()?)?);
    let is_unique = unique.len() == 16 && u64::from_str_radix(unique, 16).is_ok();
    (is_unique && next().is_none()).then_some((Generation(generation), Execution(execution)))
}

/// A number as it is written here.
fn number<T: std::str::FromStr + ToString>(text: &str) -> Option<T> {
    text.parse().ok().filter(|n: &T| n.to_string() == text)
}

#[cfg(test)]
mod tests {
    use millstream_common::SubtaskIndex;

    use super::*;

    fn ids(prefix: &str, subtask: u32, unique: u64) -> WriterIds {
        WriterIds::new(prefix, &SinkContext::new(SubtaskIndex(subtask), Generation(3), Execution(7), unique))
    }

    #[test]
    fn an_id_tells_its_deployment_and_its_writer_its_slot() {
        let of = ids("job", 2, 255);
        assert_eq!(of.id(5), "job-3-7-2-00000000000000ff-5");
        assert_eq!(deployment("job", &of.id(5)), Some((Generation(3), Execution(7))));
        assert_eq!(of.slot(&of.id(5)), Some(5));
        assert_eq!(ids("job", 2, 254).slot(&of.id(5)), None, "another instance");
        assert_eq!(ids("job", 1, 255).slot(&of.id(5)), None, "another subtask");
    }

    #[test]
    fn other_sinks_ids_belong_to_no_deployment_of_this_one() {
        let of = "00000000000000ff-0";
        for id in [
            format!("job-1-3-7-2-{of}"),
            format!("job-x-3-7-2-{of}"),
            format!("jobs-3-7-2-{of}"),
            format!("job-3-7-2-{of}-1"),
            format!("job-3-07-2-{of}"),
            "job-3-7-2-ff-0".to_owned(),
            "job-3-7".to_owned(),
            "job".to_owned(),
        ] {
            assert_eq!(deployment("job", &id), None, "{id}");
        }
        assert!(deployment("job-1", &format!("job-1-3-7-2-{of}")).is_some());
    }
}
