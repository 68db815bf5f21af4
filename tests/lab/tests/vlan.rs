//! Nodes whose way to each other is a VLAN. Needs root and a kernel that can make one: it runs in virtual machines,
//! `cargo xtask vm --suite lab`.
use lab::{
    Ending, Hostile, LabConfig,
    pair::{Pair, until},
    tool,
};

const NODES: [(&str, [&str; 2]); 2] =
    [("node-1", ["10.99.0.1/24", "fd99::1/64"]), ("node-2", ["10.99.0.2/24", "fd99::2/64"])];

#[test]
fn connections_live_on_when_nodes_move_onto_a_vlan() {
    let mut rig = Pair::up(LabConfig { hostile: Hostile::Nobody, ..LabConfig::default() }).unwrap();
    rig.exchange("before").unwrap();
    for (node, [four, six]) in NODES {
        let lines = format!(
            "ip link add link eth0 name eth0.100 type vlan id 100
             ip link set eth0.100 up
             ip address del {four} dev eth0
             ip address add {four} dev eth0.100
             ip address del {six} dev eth0
             ip address add {six} dev eth0.100 nodad"
        );
        tool::script(&rig.lab.place(node).unwrap(), &lines).unwrap();
    }
    for (node, _) in NODES {
        until("the agent watches the VLAN", || {
            let status = rig.node(node).unwrap().ask("/v1/status").unwrap();
            status["datapath"]["programs"].to_string().contains("eth0.100")
        })
        .unwrap();
    }
    rig.exchange("on a VLAN").unwrap();
    rig.lab.restart_agent("node-1", Ending::Killed).unwrap();
    rig.exchange("after a restart").unwrap();
    rig.lab.down().unwrap();
}
