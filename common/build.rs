//! Plants the bugs of the simulation: `MILLSTREAM_PLANTED_BUGS=1` (docs/simulation.md). Without the variable none of them is
//! in the program.

#[allow(clippy::disallowed_methods)] // a build script reads what the build was told
fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=MILLSTREAM_PLANTED_BUGS");
    if std::env::var("MILLSTREAM_PLANTED_BUGS").is_ok_and(|v| v == "1") {
        println!("cargo::rustc-cfg=planted_bugs");
    }
}
