//! The ways from a pod to a host outside of its cluster that are measured side by side.
//!
//! ```text
//! pod (eth0) ── node ── (eth0) host
//! ```
//!
//! Pod, node and host are namespaces, and the same wires join them, whoever forwards. Where something is to be translated the host has no route to
//! the pod: an answer comes back only if it was.

use std::env;
use std::ffi::OsStr;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use anyhow::{Context as _, Result, bail, ensure};
use cni_agent::netlink::netns;
use lab::{Hostile, Lab, LabConfig, PodSpec};
use serde::Serialize;

use crate::inline::await_delivery;
use crate::layout::{Direct, Ends, Family, Layout as _, LayoutName, forwarding};
use crate::netns::Netns;

/// The program that makes the rule.
const NFT: &str = "nft";
/// Of the lab.
const NODE: &str = "node-1";
const POD: &str = "bench-client";

/// The pod of the ways that are our own, the node's address towards the host, and the host's.
const POD_END: (Ipv4Addr, Ipv6Addr) = (Ipv4Addr::new(10, 204, 0, 2), Ipv6Addr::new(0xfd00, 0x204, 0, 0, 0, 0, 0, 2));
const NODE_END: (Ipv4Addr, Ipv6Addr) =
    (Ipv4Addr::new(198, 51, 100, 1), Ipv6Addr::new(0x2001, 0xdb8, 0x51, 0, 0, 0, 0, 1));
const HOST_END: (Ipv4Addr, Ipv6Addr) =
    (Ipv4Addr::new(198, 51, 100, 2), Ipv6Addr::new(0x2001, 0xdb8, 0x51, 0, 0, 0, 0, 2));
/// The client of a layout of one veth pair.
const VETH_END: (Ipv4Addr, Ipv6Addr) = (Ipv4Addr::new(10, 201, 0, 1), Ipv6Addr::new(0xfd00, 0x201, 0, 0, 0, 0, 0, 1));

/// A way, in the order in which they are measured and shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Way {
    /// No node in between: one veth pair from the pod to the host.
    Veth,
    /// The node's kernel routes, and translates nothing: the limit.
    Routed,
    /// The same, with one rule of nftables that masquerades.
    Nftables,
    /// The node is Weft's.
    Weft,
}

impl Way {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Veth, Self::Routed, Self::Nftables, Self::Weft];

    /// The name in tables, figures and JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Veth => "veth",
            Self::Routed => "routed",
            Self::Nftables => "nftables",
            Self::Weft => "weft",
        }
    }

    /// What exactly is built, for the report.
    pub const fn description(self) -> &'static str {
        match self {
            Self::Veth => "pod and host joined by one veth pair, MTU 1500, no node, no netfilter",
            Self::Routed => {
                "pod, node and host, a veth pair between each, the pod's /32 and /128 routed by the kernel, permanent neighbours, rp_filter 0, no \
                 netfilter, nothing translated"
            }
            Self::Nftables => {
                "routed, and `masquerade` as the only rule of nftables, for both families (conntrack on, connections that are over forgotten after 10 s)"
            }
            Self::Weft => {
                "a pod of a Weft lab of one node, real agent and CNI call, and the host behind the node's second device, which has the default route"
            }
        }
    }

    /// Whom the host sees.
    const fn seen(self) -> (Ipv4Addr, Ipv6Addr) {
        match self {
            Self::Veth => VETH_END,
            Self::Routed => POD_END,
            Self::Nftables | Self::Weft => NODE_END,
        }
    }
}

/// A way that is up. Dropping it takes it down.
#[derive(Debug)]
pub struct Site {
    way: Way,
    ends: Ends,
    lab: Option<Lab>,
    _node: Option<Netns>,
}

impl Site {
    /// Builds it, and looks whom the host sees.
    ///
    /// # Errors
    /// When it cannot be built, or the host sees somebody else or nobody. Nothing of it is left then.
    pub fn up(way: Way, families: &[Family]) -> Result<Self> {
        let site = Self::build(way).with_context(|| format!("build the way `{}`", way.as_str()))?;
        for family in families {
            let seen = await_delivery(&site.ends, *family)?;
            judge(way, *family, seen)?;
        }
        Ok(site)
    }

    fn build(way: Way) -> Result<Self> {
        match way {
            Way::Veth => {
                let mut direct = Direct::new(LayoutName::Veth);
                direct.up()?;
                Ok(Self { way, ends: direct.ends()?, lab: None, _node: None })
            }
            Way::Routed | Way::Nftables => Self::kernel(way),
            Way::Weft => Self::weft(),
        }
    }

    /// The kernel forwards.
    fn kernel(way: Way) -> Result<Self> {
        let make = |role| Netns::create(&format!("{}-{role}", way.as_str()));
        let (pod, node, host) = (make("pod")?, make("node")?, make("host")?);
        // Before there are devices: each takes the default when it is made.
        for key in ["all", "default"] {
            node.sysctl(&format!("net/ipv4/conf/{key}/rp_filter"), "0")?;
        }
        forwarding(&node)?;
        wire(&node, &pod)?;
        cable(&node, "eth0", &host)?;
        if way == Way::Nftables {
            node.script(&format!(
                "{NFT} add table inet bench
                 {NFT} add chain inet bench out {{ type nat hook postrouting priority srcnat ; }}
                 {NFT} add rule inet bench out oifname eth0 masquerade"
            ))
            .context("nftables' masquerade is needed (of the kernel: nft_masq and nft_chain_nat, by modprobe unless they are built in)")?;
            // As Weft does: else its table would grow over the run, and cost more from round to round.
            node.sysctl("net/netfilter/nf_conntrack_tcp_timeout_time_wait", "10")?;
        } else {
            host.script(&format!(
                "ip route add {pod4}/32 via {node4}
                 ip -6 route add {pod6}/128 via {node6}",
                pod4 = POD_END.0,
                pod6 = POD_END.1,
                node4 = NODE_END.0,
                node6 = NODE_END.1,
            ))?;
        }
        Ok(Self { way, ends: ends(pod, host), lab: None, _node: Some(node) })
    }

    /// Weft does.
    fn weft() -> Result<Self> {
        const DEVICE: &str = "eth1";
        let host = Netns::create("weft-host")?;
        let mut lab = Lab::up(LabConfig { hostile: Hostile::Nobody, ..LabConfig::with_nodes(1) })?;
        lab.pod_add(NODE, &PodSpec::named(POD)).with_context(|| format!("add the pod {POD}"))?;
        let open = |name: &str| Netns::open(&netns::path_of(name));
        let (pod, node) = (open(&lab.pod(POD)?.netns())?, open(&lab.node(NODE)?.netns())?);
        cable(&node, DEVICE, &host)?;
        node.script(&format!(
            "ip route add default via {} dev {DEVICE}
             ip -6 route add default via {} dev {DEVICE}",
            HOST_END.0, HOST_END.1
        ))?;
        Ok(Self { way: Way::Weft, ends: ends(pod, host), lab: Some(lab), _node: None })
    }

    /// Which it is.
    pub const fn way(&self) -> Way {
        self.way
    }

    /// The pod as the client, the host as the server.
    pub const fn ends(&self) -> &Ends {
        &self.ends
    }

    /// Takes it down.
    ///
    /// # Errors
    /// What could not be removed of a lab. A namespace of our own that stays says so itself.
    pub fn down(self) -> Result<()> {
        self.lab.map_or(Ok(()), Lab::down).context("take the lab down")
    }
}

fn ends(pod: Netns, host: Netns) -> Ends {
    let (v4, v6) = HOST_END;
    Ends { client: Arc::new(pod), server: Arc::new(host), device: "eth0".to_owned(), v4, v6 }
}

/// A pod's wire as most plugins that route make it: an address of its own, and a gateway that only the neighbour tables know.
fn wire(node: &Netns, pod: &Netns) -> Result<()> {
    const DEVICE: &str = "pod0";
    const NODE_MAC: &str = "02:57:4d:00:00:01";
    const POD_MAC: &str = "02:57:4d:00:00:02";
    let (v4, v6) = POD_END;
    node.sh(&format!(
        "ip link add {DEVICE} address {NODE_MAC} mtu 1500 type veth peer name eth0 address {POD_MAC} mtu 1500 netns {}",
        pod.path().display()
    ))?;
    pod.script(&format!(
        "ip addr add {v4}/32 dev eth0
         ip addr add {v6}/128 dev eth0 nodad
         ip link set eth0 up
         ip neigh replace 169.254.1.1 lladdr {NODE_MAC} dev eth0 nud permanent
         ip -6 neigh replace fe80::1 lladdr {NODE_MAC} dev eth0 nud permanent
         ip route add default via 169.254.1.1 dev eth0 onlink
         ip -6 route add default via fe80::1 dev eth0 onlink"
    ))?;
    node.script(&format!(
        "ip link set {DEVICE} up
         ip route add {v4}/32 dev {DEVICE}
         ip -6 route add {v6}/128 dev {DEVICE}
         ip neigh replace {v4} lladdr {POD_MAC} dev {DEVICE} nud permanent
         ip -6 neigh replace {v6} lladdr {POD_MAC} dev {DEVICE} nud permanent"
    ))
}

/// Joins the node by its device `device` to the host.
fn cable(node: &Netns, device: &str, host: &Netns) -> Result<()> {
    node.sh(&format!(
        "ip link add {device} mtu 1500 type veth peer name eth0 mtu 1500 netns {}",
        host.path().display()
    ))?;
    for (netns, device, (v4, v6)) in [(node, device, NODE_END), (host, "eth0", HOST_END)] {
        netns.script(&format!(
            "ip addr add {v4}/24 dev {device}
             ip addr add {v6}/64 dev {device} nodad
             ip link set {device} up"
        ))?;
    }
    Ok(())
}

/// Whether the host has seen whom it should: else something else is measured than is said.
fn judge(way: Way, family: Family, seen: Option<IpAddr>) -> Result<()> {
    let (way, name, (v4, v6)) = (way.as_str(), family.name(), way.seen());
    let want: IpAddr = match family {
        Family::Ipv4 => v4.into(),
        Family::Ipv6 => v6.into(),
    };
    match seen {
        None => bail!("the way `{way}` brings no {name} packet back within 10 s"),
        Some(seen) => ensure!(seen == want, "on the way `{way}` the host sees {seen} instead of {want}"),
    }
    Ok(())
}

/// Looks for the program, before anything is built.
///
/// # Errors
/// When it is nowhere, with the cure.
pub fn require_nft() -> Result<()> {
    ensure!(
        is_in(NFT, env::var_os("PATH").as_deref()),
        "{NFT} is missing: Weft is compared with a rule of nftables. `cargo xtask setup` installs it, or `apt-get install nftables`"
    );
    Ok(())
}

/// Whether a program is in one of the directories of a `PATH`.
fn is_in(program: &str, path: Option<&OsStr>) -> bool {
    path.is_some_and(|path| env::split_paths(path).any(|directory| directory.join(program).is_file()))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_way_on_which_the_host_sees_somebody_else_is_refused() {
        let (node4, node6) = NODE_END;
        let (pod4, _) = POD_END;
        assert!(judge(Way::Weft, Family::Ipv4, Some(node4.into())).is_ok());
        assert!(judge(Way::Nftables, Family::Ipv6, Some(node6.into())).is_ok());
        assert!(judge(Way::Routed, Family::Ipv4, Some(pod4.into())).is_ok());
        let not = |way, seen| format!("{:#}", judge(way, Family::Ipv4, seen).unwrap_err());
        assert_eq!(
            not(Way::Weft, Some(pod4.into())),
            "on the way `weft` the host sees 10.204.0.2 instead of 198.51.100.1"
        );
        assert_eq!(not(Way::Nftables, None), "the way `nftables` brings no ipv4 packet back within 10 s");
    }

    #[test]
    fn a_program_is_found_where_the_path_leads() {
        let directory = env::temp_dir().join(format!("wb-path-{}", std::process::id()));
        fs::create_dir_all(directory.join("directory")).unwrap();
        fs::write(directory.join("program"), "").unwrap();
        let path = env::join_paths(["/nowhere".as_ref(), directory.as_path()]).unwrap();
        assert!(is_in("program", Some(&path)));
        assert!(!is_in("other", Some(&path)) && !is_in("directory", Some(&path)) && !is_in("program", None));
        fs::remove_dir_all(directory).unwrap();
    }
}
