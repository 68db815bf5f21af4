//! Addresses that another IPAM plugin gave.
use std::{
    io::{BufRead as _, BufReader},
    process::{Child, Command, Stdio},
};

use super::*;

fn add_with(node: &Node, container: &Container, ifname: &str, ipam: Value) -> Result<AddResult, CniError> {
    let ipam = Some(serde_json::from_value(ipam).expect("a result"));
    let further = json!({"ipam": {"type": "static"}});
    let asked = Request { ipam, ..request(Verb::Add, container, ifname, &further) };
    call(node, &asked).map(|result| result.expect("ADD has a result"))
}

/// Destinations of our routes in a node's namespace that lead to one address.
fn host_routes(node: &Node) -> Vec<String> {
    let mut socket = Socket::open_in(node.place().unwrap().netns()).unwrap();
    let all = route::list(&mut socket).unwrap().into_iter();
    let ours = all.filter(|r| r.protocol == cni_agent::netlink::names::ROUTE_PROTOCOL);
    ours.filter(|r| r.dst.prefix_len() == r.dst.max_prefix_len()).map(|r| r.dst.addr().to_string()).collect()
}

fn given_outside_on(name: &str) {
    let mut lab = two_nodes();
    let near = lab.pod_add(name, &lab::PodSpec::named("near")).unwrap().pod.place().unwrap();
    let node = lab.node(name).unwrap();
    let container = Container::new("given");
    let ipam = json!({"cniVersion": "1.0.0", "dns": {"nameservers": ["172.30.0.53"]},
        "ips": [{"address": "172.30.0.9/24", "gateway": "172.30.0.1"}, {"address": "fd30::9/64"}]});
    let result = add_with(node, &container, "eth0", ipam.clone()).unwrap();
    assert_eq!(ips(&result), ["172.30.0.9", "fd30::9"].map(|a| a.parse::<IpAddr>().unwrap()));
    assert_eq!(result.dns.nameservers, ["172.30.0.53"]);
    assert_eq!(container.routes(), ["0.0.0.0/0", "::/0"], "the plugin asked for no routes");
    assert_eq!(host_routes(node), ["172.30.0.9", "fd30::9"]);
    let place = container.at(&result);
    for from in [&near, &node.place().unwrap()] {
        assert_reaches(from, &place);
        assert_reaches(&place, from);
    }
    assert_eq!(served(node), (2, 2), "none of the node's own addresses");

    // The plugin may err; two pods never have one address.
    let second = Container::new("second");
    let e = add_with(node, &second, "eth0", ipam.clone()).unwrap_err();
    assert!(e.msg.contains("172.30.0.9 is in use"), "{e}");
    lab.restart_agent(name, lab::Ending::Killed).unwrap();
    let node = lab.node(name).unwrap();
    let e = add_with(node, &second, "eth0", ipam.clone()).unwrap_err();
    assert!(e.msg.contains("172.30.0.9 is in use"), "{e}");
    assert_eq!(add_with(node, &container, "eth0", json!({})).unwrap(), result, "asked again, whatever the plugin says");
    assert_reaches(&near, &place);
    assert_eq!(host_routes(node), ["172.30.0.9", "fd30::9"]);

    // The answer to DEL frees the address: the device is gone by then.
    del(node, &container, "eth0");
    assert_eq!(container.devices(), ["lo"]);
    let mut socket = Socket::open_in(node.place().unwrap().netns()).unwrap();
    let left = link::list(&mut socket)
        .unwrap()
        .into_iter()
        .filter(|l| cni_agent::netlink::names::endpoint_of(&l.name).is_some());
    assert_eq!(left.count(), 1, "the other pod's device");
    assert_eq!(host_routes(node), [] as [&str; 0]);
    let taken_over = second.at(&add_with(node, &second, "eth0", ipam).unwrap());
    assert_reaches(&near, &taken_over);
    del(node, &second, "eth0");
    lab.down().unwrap();
}

#[test]
fn addresses_outside_the_clusters_cidrs_are_reached_by_a_route_each() {
    given_outside_on(ORDINARY);
}

#[test]
fn addresses_outside_the_clusters_cidrs_are_reached_by_a_route_each_on_a_hostile_node() {
    given_outside_on(HOSTILE);
}

#[test]
fn an_address_of_the_nodes_own_range_is_given_to_nobody_else() {
    let lab = one_node();
    let node = lab.node(ORDINARY).unwrap();
    let [given, next] = ["given", "next"].map(Container::new);
    // The one that comes first.
    let result = add_with(node, &given, "eth0", json!({"ips": [{"address": "10.244.1.1/24"}]})).unwrap();
    assert_eq!((ips(&result), given.routes()), (vec![[10, 244, 1, 1].into()], vec!["0.0.0.0/0".to_owned()]));
    assert_eq!((served(node), host_routes(node)), ((1, 1), vec![]));
    let own = add(node, &next, "eth0", &json!({}));
    assert!(!ips(&own).contains(&ips(&result)[0]), "{own:?}");
    assert_reaches(&next.at(&own), &given.at(&result));
    let e =
        add_with(node, &Container::new("third"), "eth0", json!({"ips": [{"address": format!("{}/24", ips(&own)[0])}]}))
            .unwrap_err();
    assert!(e.code.0 == 103 && e.msg.contains("is in use"), "{e}");
    del(node, &given, "eth0");
    del(node, &next, "eth0");
    lab::pair::until("all is given back", || served(node) == (0, 0)).unwrap();
    assert_clean(node);
    lab.down().unwrap();
}

#[test]
fn the_routes_are_those_of_the_plugin_through_our_gateway() {
    let lab = one_node();
    let node = lab.node(ORDINARY).unwrap();
    let container = Container::new("routed");
    let ipam = json!({"ips": [{"address": "172.30.0.9/24"}],
        "routes": [{"dst": "10.0.0.0/8", "gw": "172.30.0.1"}, {"dst": "192.0.2.0/24", "priority": 50}]});
    let result = add_with(node, &container, "eth0", ipam).unwrap();
    assert_eq!(container.routes(), ["10.0.0.0/8", "192.0.2.0/24"]);
    let told: Vec<_> =
        result.routes.iter().map(|r| (r.dst.to_string(), r.gw.unwrap().to_string(), r.priority)).collect();
    let gateway = || "169.254.1.1".to_owned();
    assert_eq!(told, [("10.0.0.0/8".into(), gateway(), None), ("192.0.2.0/24".into(), gateway(), Some(50))]);

    // A further interface with the same route cannot have it; nothing of it is left.
    let ipam = json!({"ips": [{"address": "172.30.0.10/24"}], "routes": [{"dst": "10.0.0.0/8"}]});
    let e = add_with(node, &container, "net1", ipam).unwrap_err();
    assert!(e.code.0 == 104 && e.msg.contains("10.0.0.0/8") && e.details.contains("`ipam`"), "{e}");
    assert_eq!(container.devices(), ["eth0", "lo"]);
    for (ipam, part) in [
        (json!({"ips": [{"address": "172.30.0.9/24"}, {"address": "172.30.0.8/24"}]}), "same family"),
        (json!({"ips": [{"address": format!("{}/24", node.addresses()[0])}]}), "an address of this node"),
        (json!({}), "no address"),
    ] {
        let e = refused(node, &Container::new("wrong"), &json!({"ipam": {"type": "static"}}), Some(ipam));
        assert!(e.msg.contains(part) && e.msg.contains("static"), "{e}");
    }
    del(node, &container, "eth0");
    assert_clean(node);
    lab.down().unwrap();
}

#[test]
fn an_add_that_fails_and_whose_device_stays_says_that_its_addresses_are_not_free() {
    let lab = one_node();
    let node = lab.node(ORDINARY).unwrap();
    let container = Container::new("kept");
    let ipam = |address: &str| json!({"ips": [{"address": address}], "routes": [{"dst": "10.0.0.0/8"}]});
    add_with(node, &container, "eth0", ipam("172.30.0.9/24")).unwrap();
    let held = Held::reaper_of(node);
    let e = add_with(node, &container, "net1", ipam("172.30.0.10/24")).unwrap_err();
    assert!(e.code.0 == 106 && e.msg.contains("10.0.0.0/8") && e.details.contains("call DEL"), "{e}");
    drop(held);
    del(node, &container, "net1");
    assert_eq!(container.devices(), ["eth0", "lo"]);
    del(node, &container, "eth0");
    lab.down().unwrap();
}

/// The agent's thread that deletes devices, none of which the kernel deletes as long as this lives.
struct Held(Child);

impl Held {
    fn reaper_of(node: &Node) -> Self {
        let pid = node.agent_pid().expect("the agent runs");
        let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap().map(|task| task.unwrap());
        let is_reaper = |comm: std::io::Result<String>| comm.is_ok_and(|name| name.trim() == "reaper");
        let mut named = tasks.filter(|task| is_reaper(fs::read_to_string(task.path().join("comm"))));
        let thread = named.next().expect("its thread").file_name();
        let mut strace = Command::new("strace")
            .args(["-o", "/dev/null", "-e", "trace=sendto", "-e", "inject=sendto:error=EBUSY", "-p"])
            .arg(thread)
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("strace, which `cargo xtask setup` installs");
        let mut said = String::new();
        BufReader::new(strace.stderr.take().unwrap()).read_line(&mut said).unwrap();
        assert!(said.contains("attached"), "strace: {said}");
        Self(strace)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let pid = nix::unistd::Pid::from_raw(self.0.id().cast_signed());
        // SIGINT: it detaches, and the agent runs on.
        let _sent = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT);
        drop(self.0.wait());
    }
}
