//! The `weft` command. See `weft --help`.
use std::process::ExitCode;

fn main() -> ExitCode {
    cni_agent::cli::main(std::env::args_os())
}
