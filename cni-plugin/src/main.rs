//! `weft-cni`: what a container runtime executes to connect a container or to disconnect it.
#![forbid(unsafe_code)]

use std::{
    io::{self, IsTerminal, Read, Write},
    process::ExitCode,
};

use cni_plugin::{
    about::about,
    client::SocketTransport,
    delegate::Processes,
    device::Namespaces,
    run::{Edges, run},
    tombstone::Files,
};

fn main() -> ExitCode {
    // A runtime gives no arguments: this is a person who looks what the program is.
    if std::env::args_os().len() > 1 {
        return match writeln!(io::stdout(), "{}", about()) {
            Ok(()) => ExitCode::SUCCESS,
            Err(_) => ExitCode::FAILURE,
        };
    }
    let stdin = io::stdin();
    // A person who tries the program by hand gets an answer, not a program that waits for a configuration.
    let mut input: Box<dyn Read> = if stdin.is_terminal() { Box::new(io::empty()) } else { Box::new(stdin) };
    let edges = Edges {
        agent: &SocketTransport::default(),
        plugins: &Processes::default(),
        devices: &Namespaces,
        tombstones: &Files,
    };
    let outcome = run(&|name| std::env::var_os(name), &mut input, &edges);
    if !outcome.stderr.is_empty() {
        // The runtime reads standard output; that standard error is closed must not keep the answer back.
        drop(writeln!(io::stderr(), "{}", outcome.stderr));
    }
    let mut stdout = io::stdout().lock();
    if std::env::var_os("CNI_COMMAND").is_none() && stdout.is_terminal() {
        // The words above are for people, the document below is for runtimes.
        return ExitCode::from(outcome.code);
    }
    match stdout.write_all(outcome.stdout.as_bytes()).and_then(|()| stdout.flush()) {
        Ok(()) => ExitCode::from(outcome.code),
        Err(_) => ExitCode::FAILURE,
    }
}
