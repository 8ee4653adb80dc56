//! The decisions of a commit. Pure.

use millstream_common::planted::bug_is_planted;
use millstream_common::{Applied, Error, ErrorKind, Generation};

/// What became of one create-if-absent.
#[derive(Debug)]
pub(super) enum Sent {
    Created,
    Exists,
    Failed(Error),
}

impl Sent {
    /// The record may stand, or may come to stand, although nobody said so.
    pub(super) fn is_doubtful(&self) -> bool {
        matches!(self, Self::Failed(e) if e.applied() == Applied::Maybe)
    }
}

/// What stands under the number.
#[derive(Debug)]
pub(super) enum ReadBack {
    Ours,
    Theirs { generation: Generation },
    Absent,
    Failed(Error),
}

/// What to do next.
#[derive(Debug)]
pub(super) enum Next {
    Committed,
    Lost {
        winner: Generation,
    },
    ReadBack,
    /// Send the same PUT again, after a pause.
    Repeat(String),
    Fail(Error),
}

/// Whether trying again can change anything.
fn may_pass(error: &Error) -> bool {
    error.kind() == ErrorKind::Unavailable
}

/// After a create. `in_doubt`: this attempt or one before may have happened unseen.
pub(super) fn after_create(sent: Sent, in_doubt: bool) -> Next {
    match sent {
        Sent::Created => Next::Committed,
        // Perhaps by an earlier attempt of ours.
        Sent::Exists => Next::ReadBack,
        // What stands is decided; what does not may still come.
        Sent::Failed(e) if may_pass(&e) && e.applied() == Applied::Maybe => Next::ReadBack,
        Sent::Failed(e) if may_pass(&e) => Next::Repeat(e.to_string()),
        Sent::Failed(e) => Next::Fail(if in_doubt { e.maybe_applied() } else { e }),
    }
}

/// After reading back what has the number.
pub(super) fn after_read_back(found: ReadBack) -> Next {
    match found {
        // A planted bug: whoever finds its number taken believes that it was fenced.
        ReadBack::Ours if bug_is_planted(18) => Next::Lost { winner: Generation(0) },
        ReadBack::Ours => Next::Committed,
        ReadBack::Theirs { generation } => Next::Lost { winner: generation },
        ReadBack::Absent if bug_is_planted(24) => Next::Fail(super::declared_dead()),
        // The store refused one of two requests at the same time, or a delayed one is on its way: nobody has won.
        ReadBack::Absent => Next::Repeat("nobody has the number yet".to_owned()),
        ReadBack::Failed(e) if may_pass(&e) => Next::Repeat(e.to_string()),
        // Whoever holds the number, it may be this record.
        ReadBack::Failed(e) => Next::Fail(e.maybe_applied()),
    }
}
