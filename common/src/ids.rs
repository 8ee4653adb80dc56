//! Numbers that must never be mistaken for each other, each as a type of its own.

use std::fmt;

macro_rules! number {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub $inner);

        impl $name {
            /// The number after this one.
            #[must_use]
            pub fn next(self) -> Self {
                Self(self.0 + 1)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl From<$inner> for $name {
            fn from(n: $inner) -> Self {
                Self(n)
            }
        }
    };
}

number! {
    /// The interval between two barriers. Counts checkpoints; rises over the whole life of a job, restarts included.
    Epoch(u64)
}
number! {
    /// Who may write: rises with each leader of a job. A lower generation is fenced.
    Generation(u64)
}
number! {
    /// A deployment of the whole pipelined region. Rises with each restart; frames and reports of an older execution
    /// are dropped. A live rescale does not change it.
    Execution(u64)
}
number! {
    /// A deployment of one subtask, as `status` shows it. A live rescale gives new subtasks a new attempt and leaves
    /// the others theirs.
    Attempt(u64)
}
number! {
    /// The number of a version record of a job: checkpoints, compactions and take-overs count alike.
    VersionNumber(u64)
}
number! {
    /// Identifies one range table of a job; rises with each rescale.
    AssignmentId(u64)
}
number! {
    /// Identifies a state of an operator inside a job's tree. Allotted in the version, never used again.
    StateId(u16)
}
number! {
    /// Identifies a task (a chain of operators in the plan) inside a job's tree. Allotted in the version, never used
    /// again.
    TaskId(u16)
}
number! {
    /// One parallel instance of a task, counted from 0. A scale-in removes the highest.
    SubtaskIndex(u32)
}
