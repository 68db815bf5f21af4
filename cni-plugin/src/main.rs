//! `weft-cni`: what a container runtime executes to connect a container or to disconnect it.
#![forbid(unsafe_code)]

use std::{
    io::{self, IsTerminal, Read, Write},
    process::ExitCode,
};

use cni_plugin::{client::SocketTransport, run::run};

fn main() -> ExitCode {
    let stdin = io::stdin();
    // A person who tries the program by hand gets an answer, not a program that waits for a configuration.
    let mut input: Box<dyn Read> = if stdin.is_terminal() { Box::new(io::empty()) } else { Box::new(stdin) };
    let outcome = run(&|name| std::env::var_os(name), &mut input, &SocketTransport::default());
    if !outcome.stderr.is_empty() {
        // The runtime reads standard output; that standard error is closed must not keep the answer back.
        drop(writeln!(io::stderr(), "{}", outcome.stderr));
    }
    let mut stdout = io::stdout().lock();
    match stdout.write_all(outcome.stdout.as_bytes()).and_then(|()| stdout.flush()) {
        Ok(()) => ExitCode::from(outcome.code),
        Err(_) => ExitCode::FAILURE,
    }
}
