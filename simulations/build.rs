//! Exports the overridden libc symbols from the executable.
//!
//! `src/os.rs` defines `getrandom` and `clock_gettime`. Statically linked callers find the definitions by
//! themselves; crates that look `getrandom` up with `dlsym` (getrandom 0.3 and 0.4) find them only in the
//! dynamic symbol table. A build script can ask for that, so that no RUSTFLAGS are needed.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rustc-link-arg-bins=-Wl,--export-dynamic-symbol=getrandom");
    println!("cargo::rustc-link-arg-bins=-Wl,--export-dynamic-symbol=clock_gettime");
}
