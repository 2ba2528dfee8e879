//! Relocations in their packed form: a program that starts reads them all, and the daemon waits in every container.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rustc-link-arg-bins=-Wl,--pack-dyn-relocs=relr");
}
