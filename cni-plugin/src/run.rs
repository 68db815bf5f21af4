//! The whole plugin as a function: environment, standard input and ways to the world in, output and exit code out.
//!
//! Here is what all verbs share; [`attachment`] has those about one container's interface, [`network`] those about a
//! whole network.
mod attachment;
mod call;
mod chain;
mod network;
mod without_agent;

use std::{
    ffi::OsString,
    io::{self, Read},
};

use serde::Serialize;
use serde_json::Value;

pub use self::call::Edges;
use self::call::{Call, Input};
use crate::{
    about::about,
    protocol::MAX_REQUEST,
    spec::{CniError, Command, ErrorCode, Parameters, Version, VersionInfo},
};

/// What the process leaves behind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Standard output: one JSON document, or nothing for a verb without result that succeeded.
    pub stdout: String,
    /// Standard error: at most one line, for the person who reads the runtime's log; more for one who runs the program
    /// by hand.
    pub stderr: String,
    /// The exit code: 0 or 1.
    pub code: u8,
}

/// Does what the runtime asks.
pub fn run(env: &dyn Fn(&str) -> Option<OsString>, stdin: &mut dyn Read, edges: &Edges<'_>) -> Outcome {
    // The configuration is read first, even when the environment turns out to be wrong: it names the version in which
    // the runtime wants to read the error.
    let input = read_config(stdin);
    let version = input.as_ref().ok().and_then(|input| version_of(&input.config)).unwrap_or_default();
    match answer(env, input, version, edges) {
        Ok(stdout) => Outcome { stdout, stderr: String::new(), code: 0 },
        Err(error) => {
            let document = ErrorDocument { cni_version: version, error: &error };
            let by_hand = env("CNI_COMMAND").is_none();
            let stderr = if by_hand { about() } else { one_line(&format!("weft-cni: {error}")) };
            Outcome { stdout: json(&document), stderr, code: 1 }
        }
    }
}

/// What goes to standard output.
fn answer(
    env: &dyn Fn(&str) -> Option<OsString>,
    input: Result<Input, CniError>,
    version: Version,
    edges: &Edges<'_>,
) -> Result<String, CniError> {
    // Parameters before the configuration: what the environment lacks is told even if there is no configuration.
    let nothing = |()| String::new();
    match Command::from_env(env)? {
        Command::Version => Ok(json(&VersionInfo::for_caller(version))),
        Command::Add => {
            let parameters = Parameters::for_add(env)?;
            attachment::add(&Call::new(env, input?, edges)?, parameters).map(|result| json(&result))
        }
        Command::Del => {
            let parameters = Parameters::for_del(env)?;
            attachment::del(&Call::new(env, input?, edges)?, parameters).map(nothing)
        }
        Command::Check => {
            let parameters = Parameters::for_add(env)?;
            attachment::check(&Call::new(env, input?, edges)?, parameters).map(nothing)
        }
        Command::Gc => network::gc(&Call::new(env, input?, edges)?).map(nothing),
        Command::Status => network::status(&Call::new(env, input?, edges)?).map(nothing),
    }
}

fn read_config(stdin: &mut dyn Read) -> Result<Input, CniError> {
    let mut bytes = Vec::new();
    let limit = MAX_REQUEST as u64 + 1;
    stdin.take(limit).read_to_end(&mut bytes).map_err(|e: io::Error| {
        CniError::new(ErrorCode::IO_FAILURE, format!("cannot read the network configuration from standard input: {e}"))
            .with_details("the runtime must hand the configuration over on standard input")
    })?;
    if bytes.len() > MAX_REQUEST {
        return Err(CniError::new(
            ErrorCode::INVALID_CONFIG,
            format!("the network configuration is larger than {MAX_REQUEST} bytes"),
        )
        .with_details("shorten it"));
    }
    let config = serde_json::from_slice(&bytes).map_err(|e| {
        CniError::new(
            ErrorCode::DECODING_FAILURE,
            format!("the network configuration on standard input is not valid JSON: {e}"),
        )
        .with_details("correct the .conflist that the runtime reads (usually in /etc/cni/net.d)")
    })?;
    Ok(Input { bytes, config })
}

/// The version that a configuration names, if it is one of ours.
fn version_of(config: &Value) -> Option<Version> {
    config.get("cniVersion")?.as_str()?.parse().ok()
}

#[derive(Serialize)]
struct ErrorDocument<'a> {
    #[serde(rename = "cniVersion")]
    cni_version: Version,
    #[serde(flatten)]
    error: &'a CniError,
}

fn json(document: &impl Serialize) -> String {
    // Strings, numbers and lists only, so serde_json has nothing to refuse; if it did, the runtime still gets its JSON.
    serde_json::to_string(document).unwrap_or_else(|_| {
        r#"{"cniVersion":"1.1.0","code":100,"msg":"weft-cni cannot write its answer as JSON"}"#.to_owned()
    })
}

/// Control characters would break the one line, or the terminal that shows it.
fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}
