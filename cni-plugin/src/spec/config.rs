//! The network configuration that the runtime hands over on standard input.
use serde::Deserialize;
use serde_json::{Map, Value};

use super::{
    error::{CniError, ErrorCode},
    params::validate_network_name,
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
}

fn default_agent_socket() -> String {
    DEFAULT_AGENT_SOCKET.to_owned()
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
            Some(other) => return Err(invalid("name", &format!("{other} is not a string"))),
            None => return Err(invalid("name", "it is missing")),
        }
        let conf = Self::deserialize(config).map_err(|e| {
            CniError::new(ErrorCode::DECODING_FAILURE, format!("the network configuration has a wrong value: {e}"))
                .with_details("correct it in the .conflist that the runtime reads (usually in /etc/cni/net.d)")
        })?;
        if !conf.agent_socket.starts_with('/') {
            return Err(invalid("agentSocket", &format!("{:?} is not an absolute path", conf.agent_socket)));
        }
        Ok(conf)
    }

    /// Refuses what the configuration asks for and this release does not do yet, so that nothing is ignored silently.
    ///
    /// # Errors
    /// [`ErrorCode::UNSUPPORTED_FIELD`], with key and value in the message, as the specification wants it.
    pub fn refuse_unserved(&self) -> Result<(), CniError> {
        let unserved = |key: &str, value: &Value, cure: &str| {
            let mut value = value.to_string();
            if value.len() > 200 {
                value.truncate(value.floor_char_boundary(200));
                value.push('…');
            }
            Err(CniError::new(ErrorCode::UNSUPPORTED_FIELD, format!("Weft does not serve {key} = {value} yet"))
                .with_details(cure))
        };
        if let Some(kind) = self.ipam.as_ref().and_then(|ipam| ipam.get("type")).filter(|kind| is_set(kind)) {
            return unserved("ipam.type", kind, "remove `ipam` from the configuration: Weft gives addresses itself");
        }
        if let Some((key, value)) = self.runtime_config.iter().flatten().find(|(_, value)| is_set(value)) {
            return unserved(
                &format!("runtimeConfig.{key}"),
                value,
                &format!("remove {key:?} from `capabilities` in the configuration, or ask the runtime without it"),
            );
        }
        if let Some(previous) = self.prev_result.as_ref().filter(|previous| is_set(previous)) {
            return unserved("prevResult", previous, "make weft-cni the first plugin of the list");
        }
        Ok(())
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
        Some(Value::String(s)) => s.parse().or_else(|e| incompatible(format!("{e}"))),
        Some(other) => incompatible(format!("\"cniVersion\" is {other}, not a string")),
        None => incompatible("the configuration has no \"cniVersion\", which means 0.1.0".to_owned()),
    }
}

/// Whether a value asks for anything.
fn is_set(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => false,
        Value::String(s) => !s.is_empty(),
        Value::Array(a) => !a.is_empty(),
        Value::Object(o) => !o.is_empty(),
        Value::Bool(true) | Value::Number(_) => true,
    }
}

fn invalid(key: &str, why: &str) -> CniError {
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
    fn what_is_not_served_is_refused_with_key_and_value() {
        for (extra, wanted) in [
            (json!({"ipam": {"type": "host-local"}}), "ipam.type = \"host-local\""),
            (json!({"runtimeConfig": {"mac": "02:00:00:00:00:01"}}), "runtimeConfig.mac = \"02:00:00:00:00:01\""),
            (json!({"runtimeConfig": {"portMappings": [{"hostPort": 1}]}}), "portMappings = [{\"hostPort\":1}]"),
            (json!({"prevResult": {"ips": []}}), "prevResult = {\"ips\":[]}"),
        ] {
            let error = with(&extra).refuse_unserved().unwrap_err();
            assert_eq!(error.code, ErrorCode::UNSUPPORTED_FIELD);
            assert!(error.msg.contains(wanted), "{error}");
        }
    }

    #[test]
    fn what_is_empty_asks_for_nothing() {
        for extra in [
            json!({"ipam": {}}),
            json!({"ipam": {"type": ""}}),
            json!({"ipam": null, "runtimeConfig": null, "prevResult": null}),
            json!({"runtimeConfig": {"portMappings": [], "bandwidth": {}, "mac": ""}}),
        ] {
            assert_eq!(with(&extra).refuse_unserved(), Ok(()), "{extra}");
        }
    }

    #[test]
    fn a_long_value_is_cut_between_characters() {
        let error = with(&json!({"runtimeConfig": {"x": "ä".repeat(500)}})).refuse_unserved().unwrap_err();
        assert!(error.msg.len() < 300, "{}", error.msg.len());
    }

    fn with(extra: &Value) -> NetConf {
        let mut config = json!({"cniVersion": "1.1.0", "name": "weft", "type": "weft-cni"});
        for (k, v) in extra.as_object().unwrap() {
            config[k] = v.clone();
        }
        NetConf::from_json(&config).unwrap()
    }
}
