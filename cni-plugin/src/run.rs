//! The whole plugin as a function: environment, standard input and a way to the agent in, output and exit code out.
use std::{
    ffi::OsString,
    io::{self, Read},
    path::Path,
};

use serde::Serialize;
use serde_json::Value;

use crate::{
    client::Transport,
    protocol::{MAX_REQUEST, Request, Response, Verb},
    spec::{CniError, Command, ErrorCode, NetConf, Parameters, Version, VersionInfo},
};

/// What the process leaves behind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Standard output: one JSON document, or nothing for a DEL that succeeded.
    pub stdout: String,
    /// Standard error: at most one line, for the person who reads the runtime's log.
    pub stderr: String,
    /// The exit code: 0 or 1.
    pub code: u8,
}

/// Does what the runtime asks.
pub fn run(env: &dyn Fn(&str) -> Option<OsString>, stdin: &mut dyn Read, transport: &dyn Transport) -> Outcome {
    // The configuration is read first, even when the environment turns out to be wrong: it names the version in which
    // the runtime wants to read the error.
    let input = read_config(stdin);
    let version = input.as_ref().ok().and_then(version_of).unwrap_or_default();
    match answer(env, input, transport) {
        Ok(stdout) => Outcome { stdout, stderr: String::new(), code: 0 },
        Err(error) => {
            let document = ErrorDocument { cni_version: version, error: &error };
            Outcome { stdout: json(&document), stderr: one_line(&format!("weft-cni: {error}")), code: 1 }
        }
    }
}

fn answer(
    env: &dyn Fn(&str) -> Option<OsString>,
    input: Result<Value, CniError>,
    transport: &dyn Transport,
) -> Result<String, CniError> {
    match Command::from_env(env)? {
        Command::Version => {
            let asked = input.as_ref().ok().and_then(version_of).unwrap_or_default();
            Ok(json(&VersionInfo::for_caller(asked)))
        }
        Command::Add => {
            let parameters = Parameters::for_add(env)?;
            let config = input?;
            let conf = NetConf::from_json(&config)?;
            conf.refuse_unserved()?;
            let request = Request::new(Verb::Add, parameters, config);
            match transport.call(Path::new(&conf.agent_socket), &request)? {
                Response::Done(Some(result)) => Ok(json(&result.in_version(conf.cni_version))),
                Response::Done(None) => {
                    Err(CniError::new(ErrorCode::AGENT_FAULT, "weft-agent answered ADD without a result")
                        .with_details("this is a bug: please report it with the agent's log"))
                }
                Response::Failed(error) => Err(error),
            }
        }
        Command::Del => {
            let parameters = Parameters::for_del(env)?;
            let config = input?;
            let conf = NetConf::from_json(&config)?;
            match transport.call(Path::new(&conf.agent_socket), &Request::new(Verb::Del, parameters, config))? {
                Response::Done(_) => Ok(String::new()),
                Response::Failed(error) => Err(error),
            }
        }
        Command::Check => Err(unserved(Command::Check, Version::V0_4_0, &input?)),
        Command::Gc => Err(unserved(Command::Gc, Version::V1_1_0, &input?)),
        Command::Status => Err(unserved(Command::Status, Version::V1_1_0, &input?)),
    }
}

/// Why a command is refused that this release does not serve; `since` is the version that brought it.
fn unserved(command: Command, since: Version, config: &Value) -> CniError {
    let cure = match command {
        Command::Check => "set \"disableCheck\": true in the configuration list",
        Command::Gc => "set \"disableGC\": true in the configuration list",
        _ => "set \"cniVersion\": \"1.0.0\" in the configuration list: the runtime then does not ask",
    };
    let command = command.as_str();
    match NetConf::from_json(config) {
        Err(error) => error,
        Ok(conf) if conf.cni_version < since => CniError::new(
            ErrorCode::INCOMPATIBLE_VERSION,
            format!("{command} came with CNI version {since}, the configuration is of {}", conf.cni_version),
        )
        .with_details(format!("raise \"cniVersion\" in the configuration, or do not call {command}")),
        Ok(_) => CniError::new(
            ErrorCode::INVALID_ENVIRONMENT,
            format!("CNI_COMMAND {command} is not yet served by this release of Weft"),
        )
        .with_details(cure),
    }
}

fn read_config(stdin: &mut dyn Read) -> Result<Value, CniError> {
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
    serde_json::from_slice(&bytes).map_err(|e| {
        CniError::new(
            ErrorCode::DECODING_FAILURE,
            format!("the network configuration on standard input is not valid JSON: {e}"),
        )
        .with_details("correct the .conflist that the runtime reads (usually in /etc/cni/net.d)")
    })
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
