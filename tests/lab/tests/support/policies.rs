//! Policies that are applied to a lab and wait until they are in force, and whether somebody gets through.
use std::{
    net::{SocketAddr, TcpListener, TcpStream},
    time::Duration,
};

use lab::{
    Lab,
    pair::until,
    probe::{Family, Place},
};
use serde_json::{Value, json};

/// A packet that has not come by then was dropped.
pub const GONE: Duration = Duration::from_millis(300);

/// Pods of the namespace `shop` with this label `app`.
pub fn of(app: &str) -> Value {
    json!({"podSelector": {"matchLabels": {"app": app}}})
}
/// A NetworkPolicy of the namespace `shop`.
pub fn policy(name: &str, spec: Value) -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"namespace": "shop", "name": name}, "spec": spec,
    })
}

/// Waits until no row of the agents waits for the kernel.
pub fn settle(lab: &Lab) {
    for node in lab.nodes() {
        until("the agents have applied everything", || {
            let status = node.ask("/v1/status").unwrap();
            status["reconciler"]["pending"] == 0 && status["reconciler"]["applied"] == status["reconciler"]["revision"]
        })
        .unwrap();
    }
}

/// Objects that are new: the policies among them shown to all agents, and in force. One of another text than before must have another name.
pub fn apply(lab: &Lab, objects: &[Value]) {
    lab.apply(objects).unwrap();
    for object in objects.iter().filter(|o| o["kind"].as_str().is_some_and(|k| k.ends_with("Policy"))) {
        let name = object["metadata"]["name"].as_str().unwrap();
        let name = match object["metadata"]["namespace"].as_str() {
            Some(namespace) => format!("NetworkPolicy {namespace}/{name}"),
            None => format!("ClusterNetworkPolicy {name}"),
        };
        for node in lab.nodes() {
            until(&format!("{name} is in force"), || {
                let all = node.ask("/v1/policies").unwrap();
                let policies = all["policies"].as_array().unwrap();
                policies.iter().any(|p| p["name"] == name.as_str() && p["kernel"] == "in force")
            })
            .unwrap();
        }
    }
    settle(lab);
}

/// Whether a connection to this port is made.
pub fn connects(from: &Place, to: &Place, family: Family, port: u16) -> bool {
    let _listener = to.run(|| TcpListener::bind(SocketAddr::new(family.any(), port))).unwrap();
    let address = SocketAddr::new(to.address(family).unwrap(), port);
    from.run(|| TcpStream::connect_timeout(&address, GONE)).is_ok()
}
