use super::*;
use crate::{
    api::types::{DatapathStatus, FailedRow, MissingFeature, NodeStatus, Refusal, RefusedLoad, Stage, Status},
    cli::doctor::facts,
    install::configs::ConfigFile,
    netlink::{
        link::Link,
        nftables::{BaseChain, Rule},
    },
};

fn healthy() -> Facts {
    let status =
        Status { datapath: DatapathStatus { tunnel_port: 8472, ..DatapathStatus::default() }, ..Status::default() };
    Facts {
        release: "6.18.3-1-amd64".into(),
        sysctls: facts::SYSCTLS.map(|name| (name, "1".to_owned())).into(),
        chains: Ok(Vec::new()),
        cni_files: vec![file("10-weft.conflist", &["weft-cni"])],
        config: Some(OPTIONS.map(str::to_owned).into()),
        agent: Ok(status),
        rules: Vec::new(),
        legacy: Vec::new(),
        cni_dir: "/etc/cni/net.d".into(),
        filesystems: ["bpf".to_owned()].into(),
        links: Vec::new(),
        udp_ports: [].into(),
        own_node: None,
        features: [].into(),
        missing_features: Vec::new(),
    }
}
fn file(name: &str, plugins: &[&str]) -> ConfigFile {
    let plugins = plugins.iter().map(|p| (*p).to_owned()).collect();
    ConfigFile { path: format!("/etc/cni/net.d/{name}").into(), plugins }
}
fn ids(facts: &Facts) -> Vec<&'static str> {
    findings(facts).iter().map(|f| f.id).collect()
}
fn drops() -> BaseChain {
    BaseChain {
        family: "ip",
        table: "filter".into(),
        name: "FORWARD".into(),
        hook: nftables::FORWARD,
        priority: 0,
        drops: true,
    }
}
fn accepts(from: Option<&str>, to: Option<&str>) -> Rule {
    Rule {
        family: "ip",
        table: "filter".into(),
        chain: "FORWARD".into(),
        from: from.map(str::to_owned),
        to: to.map(str::to_owned),
        accepts: true,
        narrower: false,
    }
}

#[test]
fn nothing_is_said_about_a_node_that_is_as_it_should_be() {
    assert_eq!(findings(&healthy()), []);
}

#[test]
fn a_kube_proxy_whose_services_addresses_are_not_known_is_told_of_in_each_of_its_modes() {
    let chain = |table: &str| BaseChain { table: table.into(), hook: 0, drops: false, ..drops() };
    let rule = |chain: &str| Rule { table: "nat".into(), chain: chain.into(), ..Rule::default() };
    let legacy = |text: &str| vec![("iptables-legacy", Legacy::Rules(text.into()))];
    for mut facts in [
        Facts { chains: Ok(vec![chain("kube-proxy")]), ..healthy() },
        Facts { rules: vec![rule("KUBE-SERVICES")], ..healthy() },
        Facts { legacy: legacy("-P FORWARD ACCEPT\n-A FORWARD -j KUBE-FORWARD\n"), ..healthy() },
    ] {
        assert_eq!(ids(&facts), ["services-unknown"]);
        facts.agent.as_mut().unwrap().services.cidrs = vec!["10.96.0.0/12".parse().unwrap()];
        assert_eq!(ids(&facts), [""; 0]);
    }
    // The kubelet's own.
    assert_eq!(ids(&Facts { rules: vec![rule("KUBE-KUBELET-CANARY")], ..healthy() }), [""; 0]);
}

#[test]
fn services_that_the_kernel_cannot_masquerade_are_named_with_its_modules() {
    let mut facts = healthy();
    facts.agent.as_mut().unwrap().services.problem = Some("the kernel lacks nf_tables (CONFIG_NF_TABLES)".into());
    assert_eq!(ids(&facts), ["services-masquerade"]);
    let finding = &findings(&facts)[0];
    assert!(finding.what.ends_with("lacks nf_tables (CONFIG_NF_TABLES)"), "{}", finding.what);
    assert!(finding.cure.starts_with("modprobe"), "{}", finding.cure);
}

#[test]
fn forwarding_that_is_off_is_named_with_the_sysctl() {
    let mut facts = healthy();
    for name in facts::SYSCTLS {
        facts.sysctls.insert(name, "0".into());
    }
    assert_eq!(ids(&facts), ["ip-forward4", "ip-forward6", "bpf-jit"]);
    assert!(findings(&facts)[0].cure.starts_with("sysctl -w net.ipv4.ip_forward=1"));
    let v6 = &findings(&facts)[1].cure;
    assert!(v6.find("accept_ra") < v6.find("forwarding=1"), "routes by advertisement must outlive it: {v6}");
    // One that cannot be read is none that is off.
    facts.sysctls.clear();
    assert_eq!(ids(&facts), [""; 0]);
}

#[test]
fn a_forward_chain_that_drops_is_named_until_both_directions_are_accepted() {
    let mut facts = Facts { chains: Ok(vec![drops()]), ..healthy() };
    assert_eq!(ids(&facts), ["forward-policy"]);
    let cure = &findings(&facts)[0].cure;
    assert!(cure.contains("nft insert rule ip filter FORWARD iifname weft_host accept"), "{cure}");
    facts.rules = vec![accepts(Some("weft_host"), None)];
    assert_eq!(ids(&facts), ["forward-policy"]);
    facts.rules.push(Rule { narrower: true, ..accepts(None, Some("weft_host")) });
    facts.rules.push(accepts(Some("eth0"), Some("weft_host")));
    facts.rules.push(accepts(Some("weft_host"), Some("weft_host")));
    assert_eq!(ids(&facts), ["forward-policy"], "of one device only, of ours only");
    facts.rules.push(accepts(None, Some("weft_host")));
    assert_eq!(ids(&facts), [""; 0]);
}

#[test]
fn chains_of_other_hooks_families_and_policies_are_nobodys_business() {
    let others = [
        BaseChain { hook: 1, ..drops() },
        BaseChain { family: "bridge", ..drops() },
        BaseChain { drops: false, ..drops() },
    ];
    assert_eq!(ids(&Facts { chains: Ok(others.into()), ..healthy() }), [""; 0]);
}

#[test]
fn firewalld_is_named_until_it_knows_our_device() {
    let chain = BaseChain { table: "firewalld".into(), name: "filter_FORWARD".into(), drops: false, ..drops() };
    let mut facts = Facts { chains: Ok(vec![chain]), ..healthy() };
    assert_eq!(ids(&facts), ["firewalld"]);
    facts.rules = vec![Rule { table: "firewalld".into(), accepts: false, ..accepts(Some("weft_host"), None) }];
    assert_eq!(ids(&facts), [""; 0]);
}

#[test]
fn a_legacy_chain_is_judged_by_its_policy_and_rules() {
    let rules = |text: &str| Facts { legacy: vec![("iptables-legacy", Legacy::Rules(text.into()))], ..healthy() };
    assert_eq!(ids(&rules("-P FORWARD ACCEPT\n")), [""; 0]);
    assert_eq!(ids(&rules("-P FORWARD DROP\n")), ["forward-policy-legacy"]);
    let cured = "-P FORWARD DROP\n-A FORWARD -o weft_host -j ACCEPT\n-A FORWARD -i weft_host -j ACCEPT\n";
    assert_eq!(ids(&rules(cured)), [""; 0]);
    let unread = Facts { legacy: vec![("iptables-legacy", Legacy::Unreadable)], ..healthy() };
    assert!(!findings(&unread)[0].hinders);
}

#[test]
fn a_list_in_which_bandwidth_follows_weft_is_named() {
    let mut facts = healthy();
    facts.cni_files =
        vec![file("10-a.conflist", &["weft-cni", "portmap"]), file("20-b.conflist", &["bridge", "bandwidth"])];
    assert_eq!(ids(&facts), [""; 0]);
    facts.cni_files[0].plugins.push("bandwidth".into());
    assert_eq!(ids(&facts), ["cni-bandwidth"]);
    assert!(findings(&facts)[0].what.contains("10-a.conflist"));
}

#[test]
fn an_installation_that_failed_and_another_plugin_are_named() {
    let mut facts = healthy();
    let install = &mut facts.agent.as_mut().unwrap().install;
    install.stage = Stage::Failed;
    install.why = "a datagram did not arrive".into();
    install.plugin_differs = "/opt/cni/bin/weft-cni cannot be read".into();
    assert_eq!(ids(&facts), ["cni-install", "cni-plugin"]);
    facts.agent.as_mut().unwrap().install.stage = Stage::Off;
    let found = findings(&facts);
    assert!(found.len() == 1 && !found[0].hinders, "what others install is theirs: {found:#?}");
}

#[test]
fn the_first_cni_configuration_counts() {
    let mut facts = healthy();
    facts.cni_files.insert(0, file("05-other.conflist", &["bridge"]));
    assert_eq!(ids(&facts), ["cni-foreign"]);
    assert!(findings(&facts)[0].cure.starts_with("mv /etc/cni/net.d/05-other.conflist "));
    facts.cni_files.swap(0, 1);
    assert_eq!(ids(&facts), [""; 0]);
}

#[test]
fn missing_options_are_named() {
    let text = "CONFIG_BPF=y\n# CONFIG_VXLAN is not set\nCONFIG_VETH=m\nCONFIG_HZ=250\n";
    let facts = Facts { config: Some(facts::options(text)), ..healthy() };
    let what = &findings(&facts)[0].what;
    assert!(what.contains("CONFIG_VXLAN") && !what.contains("CONFIG_VETH") && !what.contains("CONFIG_BPF,"), "{what}");
    let unread = Facts { config: None, ..healthy() };
    assert_eq!(ids(&unread), ["kernel-options-unread"]);
    assert!(!findings(&unread)[0].hinders);
    let filesystems = ["ext4".to_owned()].into();
    assert_eq!(ids(&Facts { config: None, filesystems, ..healthy() }), ["kernel-options", "kernel-options-unread"]);
}

#[test]
fn features_that_are_missing_hinder_if_they_are_required_and_else_are_hints() {
    let missing = |required, why: &str| MissingFeature {
        name: "tcx".into(),
        what: "TCX links".into(),
        required,
        why: why.into(),
        origin: "Linux 6.6, CONFIG_NET_XGRESS".into(),
        without: "It does so.".into(),
    };
    let found = |all: &[(bool, &str)]| {
        let missing_features = all.iter().map(|(required, why)| missing(*required, why)).collect();
        findings(&Facts { missing_features, ..healthy() })
    };
    let [finding] = &found(&[(false, "missing")])[..] else { panic!("one") };
    assert_eq!((finding.id, finding.hinders, &*finding.why), ("kernel-feature", false, "It does so."));
    assert!(finding.what.contains("TCX links (tcx): missing") && finding.cure.contains("6.6, CONFIG_NET_XGRESS"));
    let [finding] = &found(&[(true, "unclear: no memory")])[..] else { panic!("one") };
    assert_eq!((finding.id, finding.hinders), ("kernel", true));
    assert!(found(&[(false, "switched off")])[0].cure.contains("--without"));
    // Of what it was not allowed to try it knows nothing, and says it once.
    let [finding] = &found(&[(true, "not allowed"), (false, "not allowed")])[..] else { panic!("one") };
    assert_eq!((finding.id, finding.hinders), ("kernel-untried", false));
}

#[test]
fn what_the_agent_cannot_do_and_a_node_object_without_an_address_are_named() {
    let node = |pod_cidr: &str, internal_ip: &str| NodeStatus {
        pod_cidrs: vec![pod_cidr.parse().expect("a CIDR")],
        internal_ips: vec![internal_ip.parse().expect("an address")],
        name: "here".into(),
        own: true,
        tunnel_address: None,
        next_hop: None,
        kernel: "applied".into(),
    };
    let facts = |own| Facts { own_node: Some(own), ..healthy() };
    assert_eq!(ids(&facts(node("fd10::/64", "192.0.2.1"))), ["internal-ip"]);
    assert_eq!(ids(&facts(node("10.244.1.0/24", "192.0.2.1"))), [""; 0]);
    let mut failing = healthy();
    if let Ok(status) = &mut failing.agent {
        status.reconciler.failed.push(FailedRow { row: "devices".into(), error: "no such device".into(), retries: 1 });
    }
    assert_eq!(ids(&failing), ["failed-row"]);
    let mut degraded = healthy();
    let refusal = Refusal { what: "from_pod".into(), error: "Permission denied: R1".into(), log: Vec::new() };
    degraded.agent.as_mut().unwrap().datapath.refused = Some(RefusedLoad { refusal, ..RefusedLoad::default() });
    assert_eq!(ids(&degraded), ["load-refused"]);
    let found = findings(&degraded);
    assert!(found[0].hinders && found[0].what.ends_with("from_pod: Permission denied: R1"), "{found:#?}");
}

#[test]
fn what_cannot_be_read_is_a_hint() {
    for (facts, id) in [
        (Facts { chains: Err("permission denied".into()), ..healthy() }, "nftables"),
        (Facts { cni_files: Vec::new(), ..healthy() }, "cni-none"),
    ] {
        assert_eq!(ids(&facts), [id]);
        assert!(!findings(&facts)[0].hinders);
    }
}

#[test]
fn an_agent_that_does_not_answer_or_is_not_ready_is_named_with_its_reason() {
    let silent = Facts { agent: Err("no such file".into()), ..healthy() };
    assert!(findings(&silent)[0].what.contains("no such file"));
    let waiting = Status { not_ready: Some("no Node object".into()), ..silent.agent.clone().unwrap_or_default() };
    let facts = Facts { agent: Ok(waiting), ..healthy() };
    assert_eq!(ids(&facts), ["not-ready"]);
}

#[test]
fn a_port_in_use_is_named_unless_it_is_our_own_devices() {
    let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
                 1: 00000000:2118 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 77 2 0 0\n";
    let mut facts = Facts { udp_ports: facts::udp_ports(table), ..healthy() };
    assert_eq!(ids(&facts), ["tunnel-port"]);
    facts.links = vec![vxlan("weft_vxlan", 8472)];
    assert_eq!(ids(&facts), [""; 0]);
    facts.links.push(vxlan("flannel.1", 8472));
    assert_eq!(ids(&facts), ["vxlan-device"]);
    facts.links[1].vxlan_port = Some(4789);
    assert_eq!(ids(&facts), [""; 0]);
    facts.links[0].kind = Some("dummy".into());
    assert_eq!(ids(&facts), ["foreign-device"]);
}

fn vxlan(name: &str, port: u16) -> Link {
    Link {
        index: 7,
        name: name.into(),
        mac: Some(cni_common::net::Mac::WEFT),
        mtu: 1450,
        kind: Some("vxlan".into()),
        up: true,
        carrier: true,
        link: None,
        link_netns: None,
        master: None,
        alias: None,
        vxlan_port: Some(port),
    }
}
