//! The network configuration that the runtime hands over on standard input.
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};

use super::{
    error::{CniError, ErrorCode, short},
    params::validate_network_name,
    result::{AddResult, Dns},
    version::Version,
};

/// Where the agent listens when the configuration does not say otherwise.
pub const DEFAULT_AGENT_SOCKET: &str = "/run/weft/cni.sock";

/// A plugin's network configuration (specification section 1), with Weft's own keys. Keys that are not listed are left
/// alone: they reach the agent in the configuration's JSON text.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct NetConf {
    /// The specification version of this call.
    #[serde(rename = "cniVersion")]
    pub cni_version: Version,
    /// The network's name.
    pub name: String,
    /// The plugin's name, `weft-cni`.
    #[serde(rename = "type", default)]
    pub plugin: String,
    /// The agent's socket, an absolute path.
    #[serde(rename = "agentSocket", default = "default_agent_socket")]
    pub agent_socket: String,
    /// The plugin that gives addresses, when it is not Weft itself.
    #[serde(default)]
    pub ipam: Option<Map<String, Value>>,
    /// What the runtime asks for beyond the network itself (port mappings, bandwidth …), by capability.
    #[serde(rename = "runtimeConfig", default)]
    pub runtime_config: Option<Map<String, Value>>,
    /// The result of the plugin before this one in a chain, or at DEL of the ADD that is undone.
    #[serde(rename = "prevResult", default)]
    pub prev_result: Option<Value>,
    /// What the runtime still has, at GC; read it by [`valid_attachments`](Self::valid_attachments).
    #[serde(rename = "cni.dev/valid-attachments", default, deserialize_with = "even_null")]
    pub valid_attachments: Option<Value>,
    /// The same under the name that libcni first gave it, against the specification.
    #[serde(rename = "cni.dev/attachments", default, deserialize_with = "even_null")]
    pub attachments: Option<Value>,
    /// Name resolution for the container, handed on in the result.
    #[serde(default)]
    pub dns: Option<Dns>,
    /// Arguments by convention, older than `runtimeConfig`.
    #[serde(default)]
    pub args: Option<Value>,
}

fn default_agent_socket() -> String {
    DEFAULT_AGENT_SOCKET.to_owned()
}

/// `null` is a value, too: only a key that is missing is none.
fn even_null<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Value>, D::Error> {
    Value::deserialize(deserializer).map(Some)
}

impl NetConf {
    /// Reads a configuration.
    ///
    /// # Errors
    /// [`ErrorCode::INCOMPATIBLE_VERSION`] for a `cniVersion` that is not ours, [`ErrorCode::INVALID_CONFIG`] for a
    /// missing or wrong name or socket, [`ErrorCode::DECODING_FAILURE`] for a value of the wrong type.
    pub fn from_json(config: &Value) -> Result<Self, CniError> {
        let object = config.as_object().ok_or_else(|| {
            CniError::new(ErrorCode::INVALID_CONFIG, "the network configuration is not a JSON object").with_details(
                "the runtime must hand over one plugin's configuration on standard input, \
                 such as {\"cniVersion\":\"1.1.0\",\"name\":\"weft\",\"type\":\"weft-cni\"}",
            )
        })?;
        asked_version(object)?;
        match object.get("name") {
            Some(Value::String(name)) => validate_network_name(name)?,
            Some(other) => return Err(invalid("name", &format!("{} is not a string", short(other)))),
            None => return Err(invalid("name", "it is missing")),
        }
        let conf = Self::deserialize(config).map_err(|e| {
            CniError::new(
                ErrorCode::DECODING_FAILURE,
                format!("the network configuration has a wrong value: {}", short(e)),
            )
            .with_details("correct it in the .conflist that the runtime reads (usually in /etc/cni/net.d)")
        })?;
        if !conf.agent_socket.starts_with('/') {
            return Err(invalid("agentSocket", &format!("{:?} is not an absolute path", short(&conf.agent_socket))));
        }
        Ok(conf)
    }
}

/// An attachment that the runtime still has (specification section 2, GC).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
pub struct ValidAttachment {
    /// The container, as the runtime names it.
    #[serde(rename = "containerID")]
    pub container_id: String,
    /// The interface in the container.
    pub ifname: String,
}

impl NetConf {
    /// The attachments that the runtime still has; `None` when the configuration does not list them. `null` is how some
    /// runtimes write an empty list.
    ///
    /// # Errors
    /// [`ErrorCode::INVALID_CONFIG`] for what is no such list.
    pub fn valid_attachments(&self) -> Result<Option<Vec<ValidAttachment>>, CniError> {
        let (key, value) = match (&self.valid_attachments, &self.attachments) {
            (Some(value), _) => ("cni.dev/valid-attachments", value),
            (None, Some(value)) => ("cni.dev/attachments", value),
            (None, None) => return Ok(None),
        };
        let list = Option::<Vec<ValidAttachment>>::deserialize(value);
        let wrong = |e| invalid(key, &format!("it is not a list of containerID and ifname: {}", short(e)));
        list.map(|list| Some(list.unwrap_or_default())).map_err(wrong)
    }

    /// The name of the plugin that gives addresses, when it is not Weft itself.
    pub fn ipam_type(&self) -> Option<&str> {
        self.ipam.as_ref()?.get("type")?.as_str().filter(|kind| !kind.is_empty())
    }

    /// The result that came before: of the plugin in front of this one (ADD), or of the ADD that is checked or undone.
    ///
    /// # Errors
    /// [`ErrorCode::DECODING_FAILURE`] for what is no result.
    pub fn previous(&self) -> Result<Option<AddResult>, CniError> {
        let Some(value) = self.prev_result.as_ref().filter(|previous| is_set(previous)) else { return Ok(None) };
        AddResult::from_plugin(value, self.cni_version).map(Some).map_err(|e| {
            CniError::new(ErrorCode::DECODING_FAILURE, format!("the configuration's prevResult is no CNI result: {e}"))
                .with_details("the runtime must hand over the result of the plugin before, unchanged")
        })
    }
}

/// The version that a configuration asks for, even if nothing else in it is right.
///
/// # Errors
/// [`ErrorCode::INCOMPATIBLE_VERSION`] when it is missing or none of ours.
fn asked_version(config: &Map<String, Value>) -> Result<Version, CniError> {
    let incompatible = |msg: String| {
        Err(CniError::new(ErrorCode::INCOMPATIBLE_VERSION, msg)
            .with_details(format!("set \"cniVersion\" in the configuration to one of {}", Version::list())))
    };
    match config.get("cniVersion") {
        Some(Value::String(s)) => s.parse().or_else(|e| incompatible(short(e))),
        Some(other) => incompatible(format!("\"cniVersion\" is {}, not a string", short(other))),
        None => incompatible("the configuration has no \"cniVersion\", which means 0.1.0".to_owned()),
    }
}

/// Whether a value asks for anything.
pub(super) fn is_set(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => false,
        Value::String(s) => !s.is_empty(),
        Value::Array(a) => !a.is_empty(),
        Value::Object(o) => !o.is_empty(),
        Value::Bool(true) | Value::Number(_) => true,
    }
}

pub(super) fn invalid(key: &str, why: &str) -> CniError {
    CniError::new(ErrorCode::INVALID_CONFIG, format!("the network configuration's {key:?} is not usable: {why}"))
        .with_details("correct it in the .conflist that the runtime reads (usually in /etc/cni/net.d)")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_minimal_configuration_gets_the_usual_socket() {
        let conf = NetConf::from_json(&json!({"cniVersion": "0.3.1", "name": "weft"})).unwrap();
        assert_eq!(conf.agent_socket, DEFAULT_AGENT_SOCKET);
        assert_eq!(conf.cni_version, Version::V0_3_1);
        assert_eq!(conf.refuse_unserved(), Ok(()));
    }

    #[test]
    fn unknown_keys_are_left_alone() {
        let conf = json!({"cniVersion": "1.1.0", "name": "weft", "cni.dev/valid-attachments": [], "x": {"y": 1}});
        assert!(NetConf::from_json(&conf).is_ok());
    }

    #[test]
    fn each_fault_has_the_code_of_the_specification() {
        for (config, code) in [
            (json!(null), ErrorCode::INVALID_CONFIG),
            (json!([]), ErrorCode::INVALID_CONFIG),
            (json!({}), ErrorCode::INCOMPATIBLE_VERSION),
            (json!({"name": "weft"}), ErrorCode::INCOMPATIBLE_VERSION),
            (json!({"name": "weft", "cniVersion": "0.2.0"}), ErrorCode::INCOMPATIBLE_VERSION),
            (json!({"name": "weft", "cniVersion": 1}), ErrorCode::INCOMPATIBLE_VERSION),
            (json!({"cniVersion": "1.1.0"}), ErrorCode::INVALID_CONFIG),
            (json!({"cniVersion": "1.1.0", "name": 4}), ErrorCode::INVALID_CONFIG),
            (json!({"cniVersion": "1.1.0", "name": ""}), ErrorCode::INVALID_CONFIG),
            (json!({"cniVersion": "1.1.0", "name": "../etc"}), ErrorCode::INVALID_CONFIG),
            (json!({"cniVersion": "1.1.0", "name": "weft", "ipam": 3}), ErrorCode::DECODING_FAILURE),
            (json!({"cniVersion": "1.1.0", "name": "weft", "agentSocket": "cni.sock"}), ErrorCode::INVALID_CONFIG),
        ] {
            let error = NetConf::from_json(&config).unwrap_err();
            assert_eq!(error.code, code, "{config}: {error}");
            assert!(!error.details.is_empty(), "no cure: {error}");
        }
    }

    #[test]
    fn what_the_runtime_still_has_is_a_list_or_not_told() {
        let key = "cni.dev/valid-attachments";
        assert_eq!(with(&json!({})).valid_attachments(), Ok(None));
        for empty in [json!({key: []}), json!({key: null}), json!({"cni.dev/attachments": []})] {
            assert_eq!(with(&empty).valid_attachments(), Ok(Some(vec![])), "{empty}");
        }
        let one = ValidAttachment { container_id: "c1".into(), ifname: "eth0".into() };
        let list = json!([{"containerID": "c1", "ifname": "eth0"}]);
        for listed in
            [json!({key: list}), json!({key: list, "cni.dev/attachments": []}), json!({"cni.dev/attachments": list})]
        {
            assert_eq!(with(&listed).valid_attachments(), Ok(Some(vec![one.clone()])), "{listed}");
        }
        for bad in [json!({key: {}}), json!({key: [{"containerID": "c1"}]}), json!({key: ["c1"]})] {
            assert_eq!(with(&bad).valid_attachments().unwrap_err().code, ErrorCode::INVALID_CONFIG);
        }
    }

    fn with(extra: &Value) -> NetConf {
        let mut config = json!({"cniVersion": "1.1.0", "name": "weft", "type": "weft-cni"});
        for (k, v) in extra.as_object().unwrap() {
            config[k] = v.clone();
        }
        NetConf::from_json(&config).unwrap()
    }
}
