//! A node that comes and goes.
use super::*;

/// Keys of what the agent keeps for other nodes. The values hold a node's number, and it may get another one.
fn kept(node: &Node) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for map in ["nodes4", "nodes6", "cidr4", "cidr6"] {
        let entries = node.ask(&format!("/v1/maps/{map}"));
        let Ok(Value::Array(entries)) = entries else { panic!("{map} is no list: {entries:?}") };
        found.extend(entries.iter().map(|entry| format!("{map} {}", entry["key"])));
    }
    found
}

/// Lets the first, the second … call of the reconciler fail while another node goes and comes: it is served all the same, as nobody
/// else would try again.
fn faults(calls: &'static str, errno: &'static str) {
    let lab = Lab::up(LabConfig::with_nodes(2)).expect("a lab of two nodes");
    let node = lab.node("node-1").unwrap();
    let with = kept(node);
    let object = node.paths().manifests().join("node.node-2.json");
    let text = fs::read(&object).unwrap_or_else(|e| panic!("{}: {e}", object.display()));
    fs::remove_file(&object).unwrap();
    let bare = || !kept(node).iter().any(|key| key.starts_with("nodes"));
    until("the other node goes", bare).unwrap();
    assert!(with.iter().any(|key| key.starts_with("nodes")), "{with:?}");
    let fault = Fault { calls, errno, threads: Threads::Reconciler };
    for n in 1..ENOUGH {
        let when = format!("{calls} number {n} answered {errno}");
        let strace = Strace::attach(node, &fault, n);
        fs::write(&object, &text).unwrap();
        let back = until("the other node comes back", || kept(node) == with);
        back.unwrap_or_else(|e| panic!("{when}: {e}: {:?} was {with:?}", kept(node)));
        fs::remove_file(&object).unwrap();
        until("the other node goes", bare).unwrap_or_else(|e| panic!("{when}: {e}"));
        if strace.detach() == 0 {
            assert!(n > 1, "{calls}: nothing was tried");
            println!("{calls}: {} calls failed, each once", n - 1);
            return lab.down().unwrap();
        }
    }
    panic!("{calls}: more than {ENOUGH} calls");
}

#[test]
fn a_map_that_refuses_a_change_gets_it_later() {
    faults("bpf", "ENOMEM");
}

#[test]
fn a_route_that_cannot_be_made_is_made_later() {
    faults("sendto", "ENOBUFS");
}
