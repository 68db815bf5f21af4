//! The native maps, written into the kernel's.
use bytemuck::bytes_of;
use cni_agent::datapath::Datapath;
use cni_common::{
    maps::{Leave4, Leave6, SPARED, SPARED_SERVICE},
    policy::{PeerKey, PeerRules, is_by_port},
    schema::{self, MapSpec},
};
use cni_ebpf::fake::Fake;

/// Writes every entry.
pub fn fill(datapath: &Datapath, w: &Fake) {
    let put = |map: &MapSpec, key: &[u8], value: &[u8]| {
        datapath.map(map).update(key, value).unwrap_or_else(|e| panic!("write {}: {e}", map.name));
    };
    if let Some(c) = &w.config {
        put(&schema::CONFIG, &[0; 4], bytes_of(c));
    }
    put(&schema::CT_CONFIG, &[0; 4], bytes_of(&w.ct_config));
    put(&schema::NAT_CONFIG, &[0; 4], bytes_of(&w.nat_config));
    for (k, v) in &w.endpoints {
        put(&schema::ENDPOINTS, bytes_of(k), bytes_of(v));
    }
    for (k, v) in &w.tunnels {
        put(&schema::TUNNELS, bytes_of(k), bytes_of(v));
    }
    let prefixed = |len: &u32, data: &[u8]| [&len.to_ne_bytes(), data].concat();
    for ((set, identity), rules) in &w.policy.peers {
        let key = PeerKey { set: *set, identity: *identity };
        put(&schema::POLICY_PEER, bytes_of(&key), bytes_of(&PeerRules { rules: *rules }));
    }
    for (bits, key, rule) in &w.policy.rules {
        if is_by_port(key.rules, *bits) {
            put(&schema::POLICY_PORT, bytes_of(key), bytes_of(rule));
        } else {
            put(&schema::POLICY_RULE, &prefixed(bits, bytes_of(key)), bytes_of(rule));
        }
    }
    macro_rules! identities {
        ($identities:ident, $identity:ident, $blocks:ident, $block:ident) => {
            for (k, holder) in &w.policy.$identities {
                put(&schema::$identity, bytes_of(k), bytes_of(holder));
            }
            for (len, k, identity) in &w.policy.$blocks {
                put(&schema::$block, &prefixed(len, bytes_of(k)), &identity.to_ne_bytes());
            }
        };
    }
    for (bits, key, identity) in &w.policy.senders {
        put(&schema::SENDERS, &prefixed(bits, bytes_of(key)), &identity.to_ne_bytes());
    }
    identities!(identities4, IDENTITY4, blocks4, BLOCK4);
    identities!(identities6, IDENTITY6, blocks6, BLOCK6);
    macro_rules! family {
        ($m:ident, $local:ident, $remote:ident, $cidr:ident, $nodes:ident, $own:ident, $leave:ident, $value:expr, $spared:ident) => {
            for (k, v) in &w.$m.local {
                put(&schema::$local, bytes_of(k), bytes_of(v));
            }
            for (k, v) in &w.$m.remote {
                put(&schema::$remote, bytes_of(k), bytes_of(v));
            }
            for (len, k, v) in &w.$m.cidr {
                put(&schema::$cidr, &[&len.to_ne_bytes(), bytes_of(k)].concat(), bytes_of(v));
            }
            for (k, v) in &w.$m.nodes {
                put(&schema::$nodes, bytes_of(k), bytes_of(v));
            }
            for (k, v) in &w.$m.own {
                put(&schema::$own, bytes_of(k), bytes_of(v));
            }
            for (k, (addr, mtu)) in &w.$m.leave {
                put(&schema::$leave, bytes_of(k), bytes_of(&$value(*addr, *mtu)));
            }
            for (len, k) in &w.$m.spared {
                put(&schema::$spared, &[&len.to_ne_bytes(), bytes_of(k)].concat(), &SPARED.to_ne_bytes());
            }
            for (len, k) in &w.$m.services {
                let flags = (SPARED | SPARED_SERVICE).to_ne_bytes();
                put(&schema::$spared, &[&len.to_ne_bytes(), bytes_of(k)].concat(), &flags);
            }
        };
    }
    family!(v4, LOCAL4, REMOTE4, CIDR4, NODES4, OWN4, LEAVE4, |addr, mtu| Leave4 { addr, mtu }, SPARED4);
    family!(v6, LOCAL6, REMOTE6, CIDR6, NODES6, OWN6, LEAVE6, |addr, mtu| Leave6 { addr, mtu, pad: 0 }, SPARED6);
}
