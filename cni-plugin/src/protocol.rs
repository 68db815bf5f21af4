//! What plugin and agent say to each other over the agent's unix socket.
//!
//! The plugin connects, writes one [`Request`] as JSON, shuts down its writing half, and reads one [`Response`] until
//! the end of the stream. Nothing else is ever sent; a connection carries one call.
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::spec::{
    self, AddResult, CniError, ErrorCode, short, validate_container_id, validate_ifname, validate_netns,
};

/// The number of this protocol. It is raised when one side could misunderstand the other; a field that may be absent
/// does not need that. 2 brought CHECK, GC, STATUS and what a delegated IPAM plugin gave.
pub const PROTOCOL: u32 = 2;
/// The oldest protocol that the agent still serves: in an upgrade the agent is new before the plugin is.
pub const OLDEST_PROTOCOL: u32 = 1;
/// The largest request in bytes. Configurations have a few hundred; a `prevResult` adds a few hundred more.
pub const MAX_REQUEST: usize = 1 << 20;
/// The largest response in bytes.
pub const MAX_RESPONSE: usize = 1 << 20;

/// What the agent is asked to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Verb {
    /// Connect a container.
    #[serde(rename = "ADD")]
    Add,
    /// Disconnect it.
    #[serde(rename = "DEL")]
    Del,
    /// Compare a container's connection with what ADD made.
    #[serde(rename = "CHECK")]
    Check,
    /// Disconnect the containers that the runtime no longer lists.
    #[serde(rename = "GC")]
    Gc,
    /// Say whether ADD would be served.
    #[serde(rename = "STATUS")]
    Status,
}

impl Verb {
    /// As it stands in the request.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Add => "ADD",
            Self::Del => "DEL",
            Self::Check => "CHECK",
            Self::Gc => "GC",
            Self::Status => "STATUS",
        }
    }

    /// Whether the call is about one container's interface, and so names both.
    pub const fn is_about_an_attachment(self) -> bool {
        matches!(self, Self::Add | Self::Del | Self::Check)
    }
}

/// A call of the plugin.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Request {
    /// [`PROTOCOL`] of the sender.
    pub protocol: u32,
    /// What to do.
    pub command: Verb,
    /// The container, as the runtime names it. Empty for GC and STATUS.
    #[serde(default)]
    pub container_id: String,
    /// The path of its network namespace. May be empty for DEL; empty for GC and STATUS.
    #[serde(default)]
    pub netns: String,
    /// The interface in the container. Empty for GC and STATUS.
    #[serde(default)]
    pub ifname: String,
    /// `CNI_ARGS`.
    #[serde(default)]
    pub args: BTreeMap<String, String>,
    /// The network configuration as the runtime sent it.
    #[serde(default)]
    pub config: Value,
    /// What the IPAM plugin gave that the configuration names; `None` when Weft gives addresses itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ipam: Option<AddResult>,
}

impl Request {
    /// A request of this protocol.
    pub fn new(command: Verb, parameters: spec::Parameters, config: Value) -> Self {
        let spec::Parameters { container_id, netns, ifname, args, path: _ } = parameters;
        Self { protocol: PROTOCOL, command, container_id, netns, ifname, args, config, ipam: None }
    }

    /// A request about a whole network: GC and STATUS.
    pub fn about_network(command: Verb, config: Value) -> Self {
        let (container_id, netns, ifname) = (String::new(), String::new(), String::new());
        let args = BTreeMap::new();
        Self { protocol: PROTOCOL, command, container_id, netns, ifname, args, config, ipam: None }
    }

    /// Reads a request and checks every field that the agent acts upon: nobody has to trust the sender.
    ///
    /// # Errors
    /// [`ErrorCode::VERSION_SKEW`] for another protocol, [`ErrorCode::DECODING_FAILURE`] for what is not a request,
    /// [`ErrorCode::INVALID_ENVIRONMENT`] for a wrong field.
    pub fn decode(bytes: &[u8]) -> Result<Self, CniError> {
        #[derive(Deserialize)]
        struct Envelope {
            protocol: u32,
        }
        let not_a_request = |e: serde_json::Error| {
            CniError::new(ErrorCode::DECODING_FAILURE, format!("the agent cannot read the request: {}", short(e)))
                .with_details("only weft-cni talks to this socket; is it of the same release as the agent?")
        };
        // The number first: a newer request may have another shape, and must be told why it is refused.
        let Envelope { protocol } = serde_json::from_slice(bytes).map_err(not_a_request)?;
        if !(OLDEST_PROTOCOL..=PROTOCOL).contains(&protocol) {
            return Err(skew(&format!(
                "the plugin speaks protocol {protocol}, the agent {OLDEST_PROTOCOL} to {PROTOCOL}"
            )));
        }
        let request: Self = serde_json::from_slice(bytes).map_err(not_a_request)?;
        if request.command.is_about_an_attachment() {
            validate_container_id(&request.container_id)?;
            validate_ifname(&request.ifname)?;
            if request.command != Verb::Del || !request.netns.is_empty() {
                validate_netns(&request.netns)?;
            }
        }
        Ok(request)
    }

    /// The request as it goes over the socket.
    ///
    /// # Errors
    /// [`ErrorCode::INVALID_CONFIG`] when it is larger than [`MAX_REQUEST`].
    pub fn encode(&self) -> Result<Vec<u8>, CniError> {
        let bytes = serde_json::to_vec(self).map_err(|e| {
            CniError::new(ErrorCode::DECODING_FAILURE, format!("cannot write the request as JSON: {e}"))
        })?;
        if bytes.len() > MAX_REQUEST {
            return Err(CniError::new(
                ErrorCode::INVALID_CONFIG,
                format!("configuration and arguments are too large: {} bytes of {MAX_REQUEST}", bytes.len()),
            )
            .with_details("shorten the network configuration"));
        }
        Ok(bytes)
    }
}

/// The agent's answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Response {
    /// Done. ADD has a result, in the shape of [`spec::Version::LATEST`]; DEL has none.
    #[serde(rename = "ok")]
    Done(Option<AddResult>),
    /// Not done.
    #[serde(rename = "error")]
    Failed(CniError),
}

impl Response {
    /// Reads an answer.
    ///
    /// # Errors
    /// [`ErrorCode::TRY_AGAIN_LATER`] when there is none, because the agent stopped meanwhile;
    /// [`ErrorCode::VERSION_SKEW`] when it is not one.
    pub fn decode(bytes: &[u8]) -> Result<Self, CniError> {
        if bytes.is_empty() {
            return Err(CniError::new(
                ErrorCode::TRY_AGAIN_LATER,
                "the agent closed the connection before it answered",
            )
            .with_details("it is being restarted, or has crashed: see its log"));
        }
        // By way of a value, as everything else is read in the plugin: one reader of each type keeps the program small.
        let value = serde_json::from_slice(bytes).and_then(|value: Value| Self::deserialize(&value));
        value.map_err(|e| skew(&format!("the agent's answer cannot be read: {}", short(e))))
    }

    /// The answer as it goes over the socket.
    pub fn encode(&self) -> Vec<u8> {
        // Strings, numbers and lists only, so serde_json has nothing to refuse; if it did, the plugin still gets an answer.
        serde_json::to_vec(self)
            .unwrap_or_else(|_| br#"{"error":{"code":100,"msg":"the agent cannot write its answer as JSON"}}"#.to_vec())
    }
}

impl From<Result<Option<AddResult>, CniError>> for Response {
    fn from(result: Result<Option<AddResult>, CniError>) -> Self {
        match result {
            Ok(done) => Self::Done(done),
            Err(error) => Self::Failed(error),
        }
    }
}

fn skew(what: &str) -> CniError {
    CniError::new(ErrorCode::VERSION_SKEW, format!("weft-cni and weft-agent do not fit together: {what}"))
        .with_details("install the plugin of the agent's release, or finish the upgrade of the agent")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn a_request_is_what_the_working_agreement_says() {
        let request = Request {
            protocol: 1,
            command: Verb::Add,
            container_id: "c1".into(),
            netns: "/run/netns/c1".into(),
            ifname: "eth0".into(),
            args: BTreeMap::from([("K8S_POD_NAME".into(), "web".into())]),
            config: json!({"cniVersion": "1.1.0", "name": "weft"}),
            ipam: None,
        };
        let wire = json!({"protocol": 1, "command": "ADD", "containerId": "c1", "netns": "/run/netns/c1",
            "ifname": "eth0", "args": {"K8S_POD_NAME": "web"}, "config": {"cniVersion": "1.1.0", "name": "weft"}});
        assert_eq!(serde_json::from_slice::<Value>(&request.encode().unwrap()).unwrap(), wire);
        assert_eq!(Request::decode(wire.to_string().as_bytes()), Ok(request));
    }

    #[test]
    fn an_answer_is_what_the_working_agreement_says() {
        for (response, wire) in [
            (Response::Done(None), json!({"ok": null})),
            (Response::Done(Some(AddResult::default())), json!({"ok": {"cniVersion": "1.1.0"}})),
            (
                Response::Failed(CniError::new(ErrorCode(103), "full").with_details("add a CIDR")),
                json!({"error": {"code": 103, "msg": "full", "details": "add a CIDR"}}),
            ),
        ] {
            assert_eq!(serde_json::from_slice::<Value>(&response.encode()).unwrap(), wire);
            assert_eq!(Response::decode(wire.to_string().as_bytes()), Ok(response));
        }
    }

    #[test]
    fn another_protocol_is_refused_before_its_shape_is_looked_at() {
        for (other, wire) in [(0, r#"{"protocol":0,"verb":"ADD"}"#), (3, r#"{"protocol":3,"verb":"ADD"}"#)] {
            let error = Request::decode(wire.as_bytes()).unwrap_err();
            assert_eq!(error.code, ErrorCode::VERSION_SKEW);
            assert!(error.msg.contains(&format!("protocol {other}, the agent 1 to 2")), "{error}");
        }
    }

    #[test]
    fn a_request_with_a_wrong_field_is_refused() {
        for (key, value, code) in [
            ("containerId", json!("../x"), 4),
            ("ifname", json!("a/b"), 4),
            ("netns", json!(""), 4),
            ("netns", json!("relative"), 4),
            ("command", json!("PING"), 6),
            ("args", json!([1]), 6),
        ] {
            let mut wire =
                json!({"protocol": 1, "command": "ADD", "containerId": "c1", "netns": "/n", "ifname": "eth0"});
            wire[key] = value;
            let error = Request::decode(wire.to_string().as_bytes()).unwrap_err();
            assert_eq!(error.code, ErrorCode(code), "{wire}: {error}");
        }
    }

    #[test]
    fn a_request_over_the_limit_is_not_sent() {
        let p = spec::Parameters {
            container_id: "c".into(),
            netns: String::new(),
            ifname: "e".into(),
            args: BTreeMap::new(),
            path: vec![],
        };
        let error = Request::new(Verb::Del, p, json!("x".repeat(MAX_REQUEST))).encode().unwrap_err();
        assert_eq!(error.code, ErrorCode::INVALID_CONFIG);
    }

    #[test]
    fn calls_that_are_about_no_container_need_none() {
        for command in ["GC", "STATUS"] {
            let request = Request::decode(json!({"protocol": 2, "command": command}).to_string().as_bytes()).unwrap();
            assert_eq!((request.container_id.as_str(), request.ifname.as_str()), ("", ""));
        }
        for command in ["ADD", "DEL", "CHECK"] {
            let error = Request::decode(json!({"protocol": 2, "command": command}).to_string().as_bytes()).unwrap_err();
            assert_eq!(error.code, ErrorCode::INVALID_ENVIRONMENT, "{command}: {error}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _request = Request::decode(&bytes);
            let _response = Response::decode(&bytes);
        }
    }
}
