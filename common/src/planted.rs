//! Bugs that can be planted, to see whether the simulation finds them (docs/simulation.md).
//!
//! They are in the program only with `--cfg planted_bugs`, which the simulation is built with for that purpose alone; else
//! [`bug_is_planted`] is a constant. One of them at a time is switched on.

#[cfg(planted_bugs)]
static PLANTED: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);

/// Whether the bug of this number is planted.
#[cfg(planted_bugs)]
#[must_use]
pub fn bug_is_planted(bug: u32) -> bool {
    PLANTED.load(std::sync::atomic::Ordering::Relaxed) == bug
}

/// Whether the bug of this number is planted.
#[cfg(not(planted_bugs))]
#[inline(always)]
#[must_use]
pub const fn bug_is_planted(_bug: u32) -> bool {
    false
}

/// Switches on the bug of this number; 0 for none. False when there are none in this program.
#[cfg(planted_bugs)]
pub fn plant(bug: u32) -> bool {
    PLANTED.store(bug, std::sync::atomic::Ordering::Relaxed);
    true
}

/// Switches on the bug of this number; 0 for none. False when there are none in this program.
#[cfg(not(planted_bugs))]
#[must_use]
pub const fn plant(_bug: u32) -> bool {
    false
}
