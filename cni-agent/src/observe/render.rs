//! Map entries by field, as JSON.
use std::net::{Ipv4Addr, Ipv6Addr};

use bytemuck::Pod;
use cni_common::{
    drop::{DropReason, Outcome, Point, SLOTS},
    event::{EventBudget, Told},
    maps::{
        Cidr, Config, CtConfig, CtEntry, CtKey4, CtKey6, Endpoint, FragKey4, FragKey6, Fragments, Leave4, Leave6,
        Local, NatBack4, NatBack6, NatConfig, NatForth4, NatForth6, NatKey4, NatKey6, Remote, Tunnel,
    },
    policy::{
        HitKey, Holder, PeerKey, RULE_BITS, RULE_PORT_BITS, RULE_PROTO_BITS, Rule, RuleKey, SENDER_BITS, SenderKey,
    },
    schema::{self, MapSpec, MapType},
};
use serde::Serialize;
use serde_json::{Value, json};

use crate::datapath::counters;

/// A key as people write it: an address, a prefix, a number.
pub fn key(spec: &MapSpec, key: &[u8]) -> Value {
    if spec.id == schema::COUNTS.id {
        return number(key).map_or(Value::Null, |n| counter_name(n as u32));
    }
    match (spec.kind, key) {
        (MapType::LpmTrie, [a, b, c, d, key @ ..]) if is(spec, &[schema::POLICY_RULE]) => {
            json!(rule_key(u32::from_ne_bytes([*a, *b, *c, *d]), key))
        }
        (MapType::LpmTrie, [a, b, c, d, key @ ..]) if is(spec, &[schema::SENDERS]) => {
            json!(sender_key(u32::from_ne_bytes([*a, *b, *c, *d]), key))
        }
        (MapType::LpmTrie, [a, b, c, d, address @ ..]) => {
            json!(format!("{}/{}", address_text(address), u32::from_ne_bytes([*a, *b, *c, *d])))
        }
        (_, bytes) if spec.id == schema::LAYOUTS.id => text(bytes),
        (_, bytes) if is(spec, &[schema::CT4, schema::CT_NEW4, schema::NAT_FORTH4]) => fields::<CtKey4>(bytes),
        (_, bytes) if is(spec, &[schema::CT6, schema::CT_NEW6, schema::NAT_FORTH6]) => fields::<CtKey6>(bytes),
        (_, bytes) if is(spec, &[schema::POLICY_PORT]) => json!(rule_key(RULE_PORT_BITS, bytes)),
        (_, bytes) if is(spec, &[schema::POLICY_PEER]) => fields::<PeerKey>(bytes),
        (_, bytes) if is(spec, &[schema::HITS]) => fields::<HitKey>(bytes),
        (_, bytes) if is(spec, &[schema::NAT_BACK4]) => fields::<NatKey4>(bytes),
        (_, bytes) if is(spec, &[schema::NAT_BACK6]) => fields::<NatKey6>(bytes),
        (_, bytes) if is(spec, &[schema::FRAGS4]) => fields::<FragKey4>(bytes),
        (_, bytes) if is(spec, &[schema::FRAGS6]) => fields::<FragKey6>(bytes),
        (MapType::Hash, [_, _, _, _]) if by_number(spec) => number(key).map_or(Value::Null, |n| json!(n)),
        (MapType::Hash, bytes) => json!(address_text(bytes)),
        (_, bytes) => number(bytes).map_or_else(|| hex(bytes), |n| json!(n)),
    }
}

/// A value by field. Of a per-CPU map the sum.
pub fn value(spec: &MapSpec, bytes: &[u8]) -> Value {
    match spec.id {
        id if id == schema::CONFIG.id => fields::<Config>(bytes),
        id if id == schema::ENDPOINTS.id => fields::<Endpoint>(bytes),
        id if id == schema::LOCAL4.id || id == schema::LOCAL6.id => fields::<Local>(bytes),
        id if id == schema::REMOTE4.id || id == schema::REMOTE6.id => fields::<Remote>(bytes),
        id if id == schema::CIDR4.id || id == schema::CIDR6.id => fields::<Cidr>(bytes),
        id if id == schema::CT_CONFIG.id => fields::<CtConfig>(bytes),
        _ if is(spec, &[schema::CT4, schema::CT_NEW4, schema::CT6, schema::CT_NEW6]) => fields::<CtEntry>(bytes),
        id if id == schema::NAT_CONFIG.id => fields::<NatConfig>(bytes),
        id if id == schema::LEAVE4.id => fields::<Leave4>(bytes),
        id if id == schema::LEAVE6.id => fields::<Leave6>(bytes),
        id if id == schema::NAT_BACK4.id => fields::<NatBack4>(bytes),
        id if id == schema::NAT_BACK6.id => fields::<NatBack6>(bytes),
        id if id == schema::NAT_FORTH4.id => fields::<NatForth4>(bytes),
        id if id == schema::NAT_FORTH6.id => fields::<NatForth6>(bytes),
        _ if is(spec, &[schema::FRAGS4, schema::FRAGS6]) => fields::<Fragments>(bytes),
        _ if is(spec, &[schema::IDENTITY4, schema::IDENTITY6]) => fields::<Holder>(bytes),
        _ if is(spec, &[schema::POLICY_RULE, schema::POLICY_PORT]) => fields::<Rule>(bytes),
        id if id == schema::TUNNELS.id => fields::<Tunnel>(bytes),
        id if id == schema::COUNTS.id => json!(counters::sum(bytes)),
        id if id == schema::LAYOUTS.id => text(bytes),
        _ if is(spec, &[schema::BUDGET, schema::ANSWERS]) => {
            let each = bytes.chunks_exact(size_of::<EventBudget>()).map(fields::<EventBudget>);
            Value::Array(each.collect())
        }
        id if id == schema::TOLD.id => {
            Value::Array(bytes.chunks_exact(size_of::<Told>()).map(fields::<Told>).collect())
        }
        _ => number(bytes).map_or_else(|| hex(bytes), |n| json!(n)),
    }
}

fn is(spec: &MapSpec, any: &[MapSpec]) -> bool {
    any.iter().any(|one| one.id == spec.id)
}

/// Rule set, protocol and ports: `17 any`, `17 6 any`, `17 6 80`, `17 6 8080-8095`.
fn rule_key(bits: u32, bytes: &[u8]) -> String {
    let Ok(key) = bytemuck::try_pod_read_unaligned::<RuleKey>(bytes) else { return format!("{bytes:02x?}") };
    let (rules, proto, first) = (key.rules, key.proto, u16::from_be_bytes(key.port));
    match bits.checked_sub(RULE_PROTO_BITS) {
        None if bits < RULE_BITS => format!("{rules}/{bits}"),
        None => format!("{rules} any"),
        Some(0) => format!("{rules} {proto} any"),
        Some(16) => format!("{rules} {proto} {first}"),
        Some(n) => format!("{rules} {proto} {first}-{}", first | u16::MAX.checked_shr(n).unwrap_or(0)),
    }
}

/// Node, label class as tcpdump prints a VNI, and prefix of the address: `3 7755439 10.244.2.0/24`.
fn sender_key(bits: u32, bytes: &[u8]) -> String {
    let Ok(key) = bytemuck::try_pod_read_unaligned::<SenderKey>(bytes) else { return format!("{bytes:02x?}") };
    let address = Ipv6Addr::from(key.addr.bytes);
    let bits = bits.saturating_sub(SENDER_BITS);
    match address.to_ipv4_mapped() {
        Some(v4) if bits >= 96 => format!("{} {} {v4}/{}", key.node, key.class, bits - 96),
        _ => format!("{} {} {address}/{bits}", key.node, key.class),
    }
}

/// Hash maps whose key is no address.
fn by_number(spec: &MapSpec) -> bool {
    let accounts = [schema::CT_HELD4, schema::CT_HELD6, schema::NAT_HELD4, schema::NAT_HELD6];
    is(spec, &[schema::ENDPOINTS, schema::LEAVE4, schema::LEAVE6]) || is(spec, &accounts)
}

fn text(padded: &[u8]) -> Value {
    json!(String::from_utf8_lossy(padded).trim_end_matches('\0'))
}

fn fields<T: Pod + Serialize>(bytes: &[u8]) -> Value {
    match bytemuck::try_pod_read_unaligned::<T>(bytes).map(serde_json::to_value) {
        Ok(Ok(Value::Object(mut o))) => {
            o.remove("pad");
            Value::Object(o)
        }
        _ => hex(bytes),
    }
}

fn number(bytes: &[u8]) -> Option<u64> {
    match bytes.len() {
        4 => bytes.try_into().ok().map(|b| u32::from_ne_bytes(b).into()),
        8 => bytes.try_into().ok().map(u64::from_ne_bytes),
        _ => None,
    }
}

fn hex(bytes: &[u8]) -> Value {
    json!(bytes.iter().map(|b| format!("{b:02x}")).collect::<Vec<_>>().join(" "))
}

fn address_text(bytes: &[u8]) -> String {
    if let Ok(a) = <[u8; 4]>::try_from(bytes) {
        return Ipv4Addr::from(a).to_string();
    }
    <[u8; 16]>::try_from(bytes).map_or_else(|_| format!("{bytes:02x?}"), |a| Ipv6Addr::from(a).to_string())
}

fn counter_name(index: u32) -> Value {
    let point = u8::try_from(index / SLOTS).ok().and_then(Point::from_number).map_or("?", Point::name);
    let slot = index % SLOTS;
    let what = u8::try_from(slot)
        .ok()
        .and_then(DropReason::from_number)
        .map(DropReason::name)
        .or_else(|| Outcome::ALL.into_iter().find(|o| *o as u64 == u64::from(slot)).map(Outcome::name));
    json!(what.map_or_else(|| format!("{point} {slot}"), |w| format!("{point} {w}")))
}

#[cfg(test)]
mod tests {
    use bytemuck::{Zeroable, bytes_of};
    use cni_common::{
        drop::Count,
        net::{Ip4, Mac},
    };

    use super::*;

    #[test]
    fn keys_are_written_as_people_write_them() {
        assert_eq!(key(&schema::LOCAL4, &[10, 0, 0, 1]), json!("10.0.0.1"));
        assert_eq!(key(&schema::NODES6, &Ipv6Addr::LOCALHOST.octets()), json!("::1"));
        assert_eq!(key(&schema::CIDR4, &[24, 0, 0, 0, 10, 244, 1, 0]), json!("10.244.1.0/24"));
        assert_eq!(key(&schema::ENDPOINTS, &7_u32.to_ne_bytes()), json!(7));
        let rule = |bits: u32, port: u16| {
            let rule = RuleKey { rules: 17, proto: 6, port: port.to_be_bytes(), pad: 0 };
            key(&schema::POLICY_RULE, &[&bits.to_ne_bytes()[..], bytes_of(&rule)].concat())
        };
        assert_eq!(rule(32, 0), json!("17 any"));
        assert_eq!(rule(40, 0), json!("17 6 any"));
        assert_eq!(rule(42, 32_768), json!("17 6 32768-49151"));
        assert_eq!(rule(56, 80), json!("17 6 80"));
        let single = RuleKey { rules: 17, proto: 6, port: 80_u16.to_be_bytes(), pad: 0 };
        assert_eq!(key(&schema::POLICY_PORT, bytes_of(&single)), rule(56, 80));
        let index = cni_common::drop::slot(Point::FromNetdev, DropReason::UnknownNode as u64);
        assert_eq!(key(&schema::COUNTS, &index.to_ne_bytes()), json!("from_netdev UnknownNode"));
    }

    /// Fields of keys and values, and what the map's layout calls them.
    #[test]
    fn a_sender_is_written_by_node_class_and_prefix() {
        let key = |bits: u32, addr: [u8; 16]| {
            let key = SenderKey { node: 3, class: 7_755_439, addr: cni_common::net::Ip6::new(addr) };
            super::key(&schema::SENDERS, &[&bits.to_ne_bytes(), bytemuck::bytes_of(&key)].concat())
        };
        let mapped = Ipv4Addr::new(10, 244, 2, 0).to_ipv6_mapped().octets();
        assert_eq!(key(64 + 96 + 24, mapped), "3 7755439 10.244.2.0/24");
        let v6: Ipv6Addr = "fd10:244:0:2::".parse().unwrap();
        assert_eq!(key(64 + 64, v6.octets()), "3 7755439 fd10:244:0:2::/64");
    }

    #[test]
    fn every_map_of_more_than_a_number_shows_fields_by_name() {
        for spec in schema::ALL.iter().filter(|s| s.kind != MapType::RingBuf && s.role != schema::Role::Record) {
            let named: Vec<&str> = spec.fields.iter().map(|(name, ..)| *name).filter(|name| *name != "pad").collect();
            let shown = value(spec, &vec![0; spec.value_size as usize]);
            match &shown {
                Value::Object(o) => assert!(named.iter().all(|name| o.contains_key(*name)), "{}: {o:?}", spec.name),
                Value::Number(_) => assert_eq!(named.len(), 1, "{}", spec.name),
                Value::Array(_) => assert_eq!(spec.kind, MapType::PerCpuArray, "{}", spec.name),
                other => panic!("{}: {other}", spec.name),
            }
            let shown = key(spec, &vec![0; spec.key_size as usize]);
            let is_rule = |v: &Value| {
                spec.id == schema::POLICY_RULE.id && v == "0/0" || spec.id == schema::POLICY_PORT.id && v == "0 0 0"
            };
            let is_address = |v: &Value| v.as_str().is_some_and(|t| t.contains("0.0.0.0") || t.contains("::"));
            let is_counter = |v: &Value| spec.kind == MapType::PerCpuArray && v.is_string();
            assert!(
                shown.is_object() || shown.is_number() || is_address(&shown) || is_counter(&shown) || is_rule(&shown),
                "{}: {shown}",
                spec.name
            );
        }
    }

    #[test]
    fn a_translation_shows_both_ends_by_name() {
        let address = |last| Ip4::new([10, 0, 0, last]);
        let port = cni_common::net::Be16::from_host;
        let k = NatKey4 {
            world: address(1),
            node: address(2),
            world_port: port(443),
            node_port: port(61_000),
            proto: 6,
            ..NatKey4::zeroed()
        };
        let v = NatBack4 { made: 7, pod: address(3), pod_port: port(40_000), ..NatBack4::zeroed() };
        let (k, v) = (key(&schema::NAT_BACK4, bytes_of(&k)), value(&schema::NAT_BACK4, bytes_of(&v)));
        assert_eq!(
            (&k["world"], &k["node"], &k["node_port"]),
            (&json!("10.0.0.1"), &json!("10.0.0.2"), &json!(61_000))
        );
        assert_eq!((&v["pod"], &v["pod_port"], v.get("pad")), (&json!("10.0.0.3"), &json!(40_000), None));
        assert_eq!(key(&schema::LEAVE6, &7_u32.to_ne_bytes()), json!(7));
        assert_eq!(key(&schema::SPARED4, &[16, 0, 0, 0, 169, 254, 0, 0]), json!("169.254.0.0/16"));
    }

    #[test]
    fn values_show_their_fields_and_per_cpu_counters_their_sum() {
        let e = Endpoint { addr4: Ip4::new([10, 0, 0, 1]), mac: Mac::WEFT, ..Endpoint::zeroed() };
        let shown = value(&schema::ENDPOINTS, bytes_of(&e));
        assert_eq!((&shown["addr4"], &shown["mac"], shown.get("pad")), (&json!("10.0.0.1"), &json!(Mac::WEFT), None));
        let two = [Count { packets: 1, bytes: 10 }, Count { packets: 2, bytes: 20 }];
        assert_eq!(value(&schema::COUNTS, bytemuck::cast_slice(&two)), json!({"packets": 3, "bytes": 30}));
    }
}
