//! Millstream: benches.
