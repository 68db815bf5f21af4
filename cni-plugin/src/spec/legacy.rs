//! Results as other plugins write them, of any version.
use std::net::IpAddr;

use serde::{Deserialize, Deserializer, de};
use serde_json::Value;

use super::{
    error::short,
    result::{AddResult, Cidr, Dns, IpConfig, Route},
    version::Version,
};

/// The shape until 0.2.0: one address a family, and no interfaces.
#[derive(Deserialize)]
struct Oldest {
    #[serde(default)]
    ip4: Option<OldestIp>,
    #[serde(default)]
    ip6: Option<OldestIp>,
    #[serde(default, deserialize_with = "null_is_default")]
    dns: Dns,
}

#[derive(Deserialize)]
struct OldestIp {
    ip: Cidr,
    #[serde(default)]
    gateway: Option<IpAddr>,
    #[serde(default, deserialize_with = "null_is_default")]
    routes: Vec<Route>,
}

impl AddResult {
    /// Reads a result that another plugin wrote, and brings it into the newest shape. One that names no version has the
    /// shape of `asked`, the version of the configuration that the plugin got.
    ///
    /// # Errors
    /// What does not fit, in words.
    pub fn from_plugin(value: &Value, asked: Version) -> Result<Self, String> {
        let object = value.as_object().ok_or("it is not a JSON object")?;
        let version = match object.get("cniVersion") {
            None | Some(Value::Null) => asked.as_str(),
            Some(Value::String(version)) if version.is_empty() => asked.as_str(),
            Some(Value::String(version)) => version,
            Some(other) => return Err(format!("its \"cniVersion\" is {}, not a string", short(other))),
        };
        if matches!(version, "0.1.0" | "0.2.0") {
            return Oldest::deserialize(value).map(Self::from).map_err(short);
        }
        version.parse::<Version>().map_err(short)?;
        let result = Self::deserialize(value).map_err(short)?;
        Ok(result.in_version(Version::LATEST))
    }
}

impl From<Oldest> for AddResult {
    fn from(Oldest { ip4, ip6, dns }: Oldest) -> Self {
        let mut result = Self { dns, ..Self::default() };
        for OldestIp { ip, gateway, routes } in [ip4, ip6].into_iter().flatten() {
            result.ips.push(IpConfig { version: None, address: ip, gateway, interface: None });
            result.routes.extend(routes);
        }
        result
    }
}

/// Programs in Go write an empty list as `null`.
pub(super) fn null_is_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Option::deserialize(deserializer).map(Option::unwrap_or_default)
}

/// A version; what says nothing about it counts as the newest, which [`AddResult::from_plugin`] knows better.
pub(super) fn version_or_latest<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Version, D::Error> {
    let text: Option<String> = Option::deserialize(deserializer)?;
    match text.as_deref() {
        None | Some("") => Ok(Version::LATEST),
        Some(text) => text.parse().map_err(de::Error::custom),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const ASKED: Version = Version::V1_0_0;

    #[test]
    fn the_oldest_shape_is_read() {
        let old = json!({"cniVersion": "0.2.0",
            "ip4": {"ip": "10.0.0.5/24", "gateway": "10.0.0.1", "routes": [{"dst": "0.0.0.0/0"}]},
            "ip6": {"ip": "fd00::5/64", "routes": null}, "dns": {"nameservers": ["10.0.0.1"]}});
        let new = json!({"cniVersion": "1.1.0",
            "ips": [{"address": "10.0.0.5/24", "gateway": "10.0.0.1"}, {"address": "fd00::5/64"}],
            "routes": [{"dst": "0.0.0.0/0"}], "dns": {"nameservers": ["10.0.0.1"]}});
        let read = AddResult::from_plugin(&old, ASKED).unwrap();
        assert_eq!(serde_json::to_value(read).unwrap(), new);
    }

    #[test]
    fn a_result_without_version_has_the_one_that_was_asked_for() {
        for version in [json!(null), json!(""), json!("0.3.1")] {
            let value = json!({"cniVersion": version, "ips": [{"version": "4", "address": "10.0.0.5/24"}]});
            let read = AddResult::from_plugin(&value, ASKED).unwrap();
            assert_eq!((read.cni_version, read.ips.len(), read.ips[0].version), (Version::LATEST, 1, None));
        }
        assert!(AddResult::from_plugin(&json!({}), ASKED).is_ok());
    }

    #[test]
    fn null_is_as_good_as_an_empty_list() {
        let nulls = json!({"interfaces": null, "ips": null, "routes": null, "dns": null});
        assert_eq!(AddResult::from_plugin(&nulls, ASKED), Ok(AddResult::default()));
        let inner = json!({"dns": {"nameservers": null, "domain": null, "search": null, "options": null},
            "interfaces": [{"name": "eth0", "mac": null, "sandbox": null}]});
        assert_eq!(AddResult::from_plugin(&inner, ASKED).unwrap().interfaces[0].name, "eth0");
    }

    #[test]
    fn what_is_no_result_says_why() {
        for (value, why) in [
            (json!([]), "object"),
            (json!({"cniVersion": "9.0.0"}), "9.0.0"),
            (json!({"cniVersion": 1}), "not a string"),
            (json!({"ips": [{"address": "10.0.0.5"}]}), "10.0.0.5"),
            (json!({"cniVersion": "0.1.0", "ip4": {}}), "ip"),
        ] {
            let error = AddResult::from_plugin(&value, ASKED).unwrap_err();
            assert!(error.contains(why), "{error}");
        }
    }
}
