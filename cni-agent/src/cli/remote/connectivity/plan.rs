//! Which pods the test makes, and who asks whom. Pure.
use serde_json::{Value, json};

use super::probe::PORT;

/// The namespace of the test, which is its own.
pub(super) const NAMESPACE: &str = "weft-connectivity-test";
/// Says of a namespace that it is the test's.
pub(super) const MARK: &str = "weft.dev/connectivity-test";
/// The container of each pod.
pub(super) const CONTAINER: &str = "probe";
/// Up to so many nodes each asks each; of more, each asks the next two.
const ALL: usize = 5;

/// A pod of the test.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct TestPod {
    pub(super) name: String,
    pub(super) node: String,
}

/// Who asks: a pod of the test, or a node from its own network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum From {
    Pod(TestPod),
    Node(String),
}

impl From {
    pub(super) fn node(&self) -> &str {
        match self {
            Self::Pod(pod) => &pod.node,
            Self::Node(node) => node,
        }
    }
}

/// One asks another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Way {
    pub(super) from: From,
    pub(super) to: TestPod,
}

impl Way {
    pub(super) fn across(&self) -> bool {
        self.from.node() != self.to.node
    }

    /// As a person reads it.
    pub(super) fn text(&self) -> String {
        let from = match &self.from {
            From::Pod(pod) => format!("pod {} on {}", pod.name, pod.node),
            From::Node(node) => format!("node {node}"),
        };
        format!("{from} > pod {} on {}", self.to.name, self.to.node)
    }
}

/// Two pods for each node.
pub(super) fn pods(nodes: &[String]) -> Vec<TestPod> {
    let on = |(number, node): (usize, &String)| {
        ["a", "b"].map(|letter| TestPod { name: format!("{letter}-{}", number + 1), node: node.clone() })
    };
    nodes.iter().enumerate().flat_map(on).collect()
}

/// On a node from its own network and from one pod to the other, then from nodes and from pods to other nodes' pods.
pub(super) fn ways(nodes: &[String]) -> Vec<Way> {
    let pods = pods(nodes);
    let pairs: Vec<&[TestPod]> = pods.chunks(2).collect();
    let mut ways = Vec::new();
    for pair in &pairs {
        if let [a, b] = pair {
            ways.push(Way { from: From::Node(b.node.clone()), to: b.clone() });
            ways.push(Way { from: From::Pod(a.clone()), to: b.clone() });
        }
    }
    for (at, pair) in pairs.iter().enumerate() {
        for step in 1..if nodes.len() <= ALL { nodes.len() } else { 3 } {
            let other = pairs[(at + step) % pairs.len()];
            if let ([a, _], [to, _]) = (pair, other) {
                ways.push(Way { from: From::Node(a.node.clone()), to: to.clone() });
                ways.push(Way { from: From::Pod(a.clone()), to: to.clone() });
            }
        }
    }
    ways
}

pub(super) fn namespace() -> Value {
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE, "labels": {
        MARK: "true", "pod-security.kubernetes.io/enforce": "restricted"}}})
}

/// The object: it runs where it is said, whatever keeps other pods off that node, and may do nothing.
pub(super) fn object(pod: &TestPod, image: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": pod.name, "namespace": NAMESPACE, "labels": {MARK: "true"}},
        "spec": {
            "nodeName": pod.node,
            "tolerations": [{"operator": "Exists"}],
            "automountServiceAccountToken": false,
            "enableServiceLinks": false,
            "terminationGracePeriodSeconds": 1,
            "securityContext": {"runAsNonRoot": true, "runAsUser": 65534, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [{
                "name": CONTAINER, "image": image, "imagePullPolicy": "IfNotPresent",
                "command": ["/usr/bin/weft", "connectivity-probe", "serve"],
                // By the kubelet: the first thing that must work.
                "readinessProbe": {"tcpSocket": {"port": PORT}, "periodSeconds": 1},
                "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}, "readOnlyRootFilesystem": true},
                "resources": {"requests": {"cpu": "5m", "memory": "8Mi"}},
            }],
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nodes(n: usize) -> Vec<String> {
        (1..=n).map(|n| format!("node-{n}")).collect()
    }

    #[test]
    fn each_node_asks_itself_and_each_other() {
        assert_eq!(ways(&nodes(1)).len(), 2);
        let ways = ways(&nodes(3));
        assert_eq!(ways.len(), 3 * 2 + 3 * 2 * 2);
        assert_eq!(ways[0].text(), "node node-1 > pod b-1 on node-1");
        assert_eq!(ways[1].text(), "pod a-1 on node-1 > pod b-1 on node-1");
        assert!(ways.iter().take(6).all(|w| !w.across()) && ways.iter().skip(6).all(Way::across));
        assert!(ways.iter().all(|w| !matches!(&w.from, From::Pod(p) if *p == w.to)));
    }

    #[test]
    fn in_a_large_cluster_the_number_of_ways_grows_with_the_nodes_and_not_their_square() {
        assert_eq!(ways(&nodes(100)).len(), 100 * 2 + 100 * 2 * 2);
    }
}
