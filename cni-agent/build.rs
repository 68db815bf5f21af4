//! Takes the BPF object that `cargo xtask build` has built into the agent.
//!
//! Without `WEFT_BPF_OBJECT` an empty one is embedded, so that `cargo test` needs no BPF toolchain; such an agent refuses to start.
use std::{env, fs, path::PathBuf};

fn main() -> std::io::Result<()> {
    println!("cargo::rerun-if-env-changed=WEFT_BPF_OBJECT");
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or(std::io::ErrorKind::NotFound)?).join("weft.bpf.o");
    match env::var_os("WEFT_BPF_OBJECT").map(PathBuf::from) {
        Some(object) => {
            println!("cargo::rerun-if-changed={}", object.display());
            fs::copy(object, out)?;
        }
        None => fs::write(out, [])?,
    }
    Ok(())
}
