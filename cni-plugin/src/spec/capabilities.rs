//! What a configuration asks for beyond the network itself: what of it is served, and how the rest is refused.
use std::net::IpAddr;

use serde::Deserialize;
use serde_json::Value;

use super::{
    config::{NetConf, invalid, is_set},
    error::{CniError, ErrorCode, short},
    result::Cidr,
};

/// The capabilities that Weft serves.
const SERVED: [&str; 2] = ["ips", "mac"];

impl NetConf {
    /// Refuses what the configuration asks for and Weft does not do, so that nothing is ignored silently.
    ///
    /// # Errors
    /// [`ErrorCode::UNSUPPORTED_FIELD`], with key and value in the message, as the specification wants it;
    /// [`ErrorCode::INVALID_CONFIG`] for a served capability that makes no sense.
    pub fn refuse_unserved(&self) -> Result<(), CniError> {
        if self.ipam.as_ref().is_some_and(|ipam| !ipam.is_empty()) && self.ipam_type().is_none() {
            match self.ipam.as_ref().and_then(|ipam| ipam.get("type")) {
                // An empty name is how a configuration says that no plugin gives addresses.
                Some(Value::String(_)) => {}
                Some(other) => {
                    return Err(invalid("ipam.type", &format!("{} is not the name of a plugin", short(other))));
                }
                None => return Err(invalid("ipam", "it has no \"type\"; name an IPAM plugin, or remove `ipam`")),
            }
        }
        for (key, value) in self.runtime_config.iter().flatten().filter(|(_, value)| is_set(value)) {
            // Ranges of addresses are for who gives addresses.
            let served = SERVED.contains(&key.as_str()) || (key == "ipRanges" && self.ipam_type().is_some());
            if !served {
                return Err(unserved(&format!("runtimeConfig.{}", short(key)), value, &cure(key)));
            }
        }
        let conventional = self.args.as_ref().and_then(|args| args.get("cni")?.get("ips"));
        if let Some(ips) = conventional.filter(|ips| is_set(ips) && self.ipam_type().is_none()) {
            return Err(unserved("args.cni.ips", ips, "ask for addresses by the capability `ips`, which Weft serves"));
        }
        self.requested_mac()?;
        self.requested_ips().map(drop)
    }

    /// Whether the runtime asks for anything that not every release of the agent knows.
    pub fn asks_for_capabilities(&self) -> bool {
        self.runtime_config.iter().flatten().any(|(_, value)| is_set(value))
    }

    /// The MAC address that the runtime asks for (capability `mac`).
    ///
    /// # Errors
    /// [`ErrorCode::INVALID_CONFIG`] for what is no unicast Ethernet address.
    pub fn requested_mac(&self) -> Result<Option<[u8; 6]>, CniError> {
        let Some(value) = self.capability("mac") else { return Ok(None) };
        let bytes = value.as_str().and_then(mac);
        bytes.map(Some).ok_or_else(|| {
            invalid(
                "runtimeConfig.mac",
                &format!("{} is not the address of one Ethernet device, as 0a:58:0a:00:00:05", short(value)),
            )
        })
    }

    /// The addresses that the runtime asks for (capability `ips`), at most one a family; prefix lengths do not matter.
    ///
    /// # Errors
    /// [`ErrorCode::INVALID_CONFIG`] for what is no list of addresses, or two of one family.
    pub fn requested_ips(&self) -> Result<Vec<IpAddr>, CniError> {
        let Some(value) = self.capability("ips") else { return Ok(Vec::new()) };
        let wrong = |why: &str| invalid("runtimeConfig.ips", &format!("{} {why}", short(value)));
        let list: Vec<String> = Vec::deserialize(value).map_err(|_| wrong("is not a list of addresses"))?;
        let mut addresses: Vec<IpAddr> = Vec::new();
        for text in &list {
            let addr = text.parse::<Cidr>().map(Cidr::addr).or_else(|_| text.parse());
            let addr: IpAddr = addr.map_err(|_| wrong("is not a list of addresses"))?;
            if addresses.iter().any(|a| a.is_ipv4() == addr.is_ipv4()) {
                return Err(wrong("has two addresses of one family; Weft gives an interface one of each"));
            }
            addresses.push(addr);
        }
        Ok(addresses)
    }

    fn capability(&self, name: &str) -> Option<&Value> {
        self.runtime_config.as_ref()?.get(name).filter(|value| is_set(value))
    }
}

fn unserved(key: &str, value: &Value, cure: &str) -> CniError {
    CniError::new(ErrorCode::UNSUPPORTED_FIELD, format!("Weft does not serve {key} = {}", short(value)))
        .with_details(cure)
}

/// What to do about a capability that is not served.
fn cure(key: &str) -> String {
    let remove = format!("remove {:?} from `capabilities` of weft-cni in the configuration", short(key));
    match key {
        "portMappings" => format!("chain the portmap plugin behind weft-cni, with this capability, and {remove}"),
        "bandwidth" => {
            format!("{remove}, or ask the runtime without it; the bandwidth plugin behind weft-cni cannot shape either")
        }
        "ipRanges" => format!(
            "{remove} and give the node pod CIDRs; or name an IPAM plugin that takes ranges, such as host-local, in `ipam`"
        ),
        "aliases" | "dns" => format!("{remove}: Weft does no name resolution"),
        _ => format!("{remove}, or ask the runtime without it"),
    }
}

/// Six pairs of hexadecimal digits with colons or dashes between: a unicast address that is not all zeros.
fn mac(text: &str) -> Option<[u8; 6]> {
    let mut bytes = [0; 6];
    let mut parts = text.split([':', '-']);
    for byte in &mut bytes {
        let part = parts.next().filter(|p| p.len() == 2 && p.bytes().all(|b| b.is_ascii_hexdigit()))?;
        *byte = u8::from_str_radix(part, 16).ok()?;
    }
    (parts.next().is_none() && bytes[0] & 1 == 0 && bytes != [0; 6]).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_not_served_is_refused_with_key_value_and_cure() {
        for (extra, wanted, cure) in [
            (
                json!({"runtimeConfig": {"portMappings": [{"hostPort": 1}]}}),
                "runtimeConfig.portMappings = [{\"hostPort\":1}]",
                "chain the portmap plugin behind weft-cni",
            ),
            (json!({"runtimeConfig": {"bandwidth": {"ingressRate": 1}}}), "bandwidth = {", "cannot shape"),
            (json!({"runtimeConfig": {"aliases": {"weft": ["db"]}}}), "aliases = {", "no name resolution"),
            (json!({"runtimeConfig": {"ipRanges": [[{"subnet": "10.0.0.0/8"}]]}}), "ipRanges = [[", "host-local"),
            (json!({"runtimeConfig": {"mac": "", "gpu": true}}), "runtimeConfig.gpu = true", "remove \"gpu\""),
            (json!({"args": {"cni": {"ips": ["10.0.0.5"]}}}), "args.cni.ips = [\"10.0.0.5\"]", "capability `ips`"),
        ] {
            let error = with(&extra).refuse_unserved().unwrap_err();
            assert_eq!(error.code, ErrorCode::UNSUPPORTED_FIELD);
            assert!(error.msg.contains(wanted) && error.details.contains(cure), "{error}");
        }
    }

    #[test]
    fn ipam_that_names_no_plugin_is_refused() {
        for ipam in [json!({"subnet": "10.0.0.0/8"}), json!({"type": 5}), json!({"type": null})] {
            let error = with(&json!({"ipam": ipam})).refuse_unserved().unwrap_err();
            assert_eq!(error.code, ErrorCode::INVALID_CONFIG, "{ipam}");
            assert!(error.msg.contains("ipam"), "{error}");
        }
    }

    #[test]
    fn what_is_empty_or_for_the_ipam_plugin_is_not_refused() {
        for extra in [
            json!({"ipam": {}}),
            json!({"ipam": {"type": ""}}),
            json!({"ipam": null, "runtimeConfig": null, "prevResult": null, "args": null}),
            json!({"runtimeConfig": {"portMappings": [], "bandwidth": {}, "mac": ""}}),
            json!({"ipam": {"type": "host-local"}, "runtimeConfig": {"ipRanges": [[{"subnet": "10.0.0.0/8"}]]}}),
            json!({"ipam": {"type": "host-local"}, "args": {"cni": {"ips": ["10.0.0.5"]}}}),
        ] {
            assert_eq!(with(&extra).refuse_unserved(), Ok(()), "{extra}");
        }
    }

    #[test]
    fn capabilities_that_weft_serves_are_read_or_refused_by_name() {
        let asked = with(&json!({"runtimeConfig": {"mac": "0A-58-0a:00:00:05", "ips": ["10.0.0.5/24", "fd00::5"]}}));
        assert_eq!(asked.requested_mac(), Ok(Some([0x0a, 0x58, 0x0a, 0, 0, 5])));
        assert_eq!(asked.requested_ips(), Ok(vec!["10.0.0.5".parse().unwrap(), "fd00::5".parse().unwrap()]));
        assert!(asked.asks_for_capabilities());
        let nothing = with(&json!({}));
        assert_eq!((nothing.requested_mac(), nothing.requested_ips()), (Ok(None), Ok(vec![])));
        for bad in
            ["01:00:5e:00:00:01", "00:00:00:00:00:00", "0a:58:0a:00:00", "0a:58:0a:00:00:05:06", "+a:58:0a:00:00:05"]
        {
            let error = with(&json!({"runtimeConfig": {"mac": bad}})).refuse_unserved().unwrap_err();
            assert!(error.msg.contains(bad), "{error}");
        }
        for bad in [json!("10.0.0.5"), json!(["x"]), json!([5]), json!(["10.0.0.5", "10.0.0.6/24"])] {
            let error = with(&json!({"runtimeConfig": {"ips": bad}})).refuse_unserved().unwrap_err();
            assert_eq!(error.code, ErrorCode::INVALID_CONFIG, "{error}");
        }
    }

    #[test]
    fn a_long_value_is_cut_between_characters() {
        for key in ["x", "mac", "ips"] {
            let error = with(&json!({"runtimeConfig": {key: "ä".repeat(500)}})).refuse_unserved().unwrap_err();
            assert!(error.msg.len() < 400, "{key}: {}", error.msg.len());
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
