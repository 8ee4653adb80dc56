//! Switches on one planted bug of the simulation: `MILLSTREAM_PLANTED_BUG=N` (docs/simulation.md). Without the variable
//! nothing is planted.

#[allow(clippy::disallowed_methods)] // a build script reads what the build was told
fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=MILLSTREAM_PLANTED_BUG");
    match std::env::var("MILLSTREAM_PLANTED_BUG") {
        Ok(bug) if !bug.is_empty() => println!("cargo::rustc-cfg=planted_bug=\"{bug}\""),
        _ => {}
    }
}
