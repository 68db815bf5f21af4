//! Weft beside the real kube-proxy: Services with pods behind them on both nodes.
use std::{
    net::{IpAddr, SocketAddr},
    process::{Command, Output, Stdio},
    time::Duration,
};

use cluster::{
    Cluster, Config, Network, Proxy, layout,
    pods::{self, Workload, run},
    until,
};
use serde_json::json;

/// On a busy machine.
const LIMIT: Duration = Duration::from_secs(60);
/// So often a Service is asked: that one of three pods behind it is never chosen happens once in 3,000 times.
const OFTEN: usize = 20;
/// The Service's port, and that of the nodes.
const PORT: u16 = 80;
const NODE_PORT: u16 = 30_080;

fn at(address: IpAddr, port: u16) -> String {
    SocketAddr::new(address, port).to_string()
}

/// Which addresses are Services' the cluster tells the agents: nothing is set.
fn up() -> Cluster {
    Cluster::up(Config { nodes: 2, network: Network::Weft, ..Config::default() }, |line| println!("{line}")).unwrap()
}

/// A Service of all pods of the tests, who asks among them; its addresses.
fn service(cluster: &Cluster) -> Vec<IpAddr> {
    let object = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "all", "namespace": "default"},
        "spec": {
            "type": "NodePort", "ipFamilyPolicy": "RequireDualStack", "selector": {"app": "test"},
            "ports": [
                {"name": "http", "protocol": "TCP", "port": PORT, "targetPort": pods::PORT, "nodePort": NODE_PORT},
                {"name": "datagrams", "protocol": "UDP", "port": PORT, "targetPort": 8081},
            ],
        },
    });
    cluster.apply(&object.to_string()).unwrap();
    let service = cluster.get(&["service", "all"]).unwrap();
    let addresses = service["spec"]["clusterIPs"].as_array().unwrap().clone();
    addresses.iter().map(|a| a.as_str().unwrap().parse().unwrap()).collect()
}

/// The shell's own way to a page of a TCP port.
fn words(address: IpAddr, port: u16) -> [String; 4] {
    let lines =
        format!("exec 3<>/dev/tcp/{address}/{port} && printf 'GET /hostname HTTP/1.0\\r\\n\\r\\n' >&3 && cat <&3");
    ["3".to_owned(), "bash".to_owned(), "-c".to_owned(), lines]
}

fn is_page(output: &Output) -> bool {
    output.status.success() && String::from_utf8_lossy(&output.stdout).contains("200 OK")
}

fn connects(cluster: &Cluster, pod: &str, protocol: &str, address: IpAddr) -> anyhow::Result<String> {
    let protocol = format!("--protocol={protocol}");
    cluster.kubectl(&["exec", pod, "--", "/agnhost", "connect", "--timeout=3s", &protocol, &at(address, PORT)])
}

#[test]
fn services_of_kube_proxy_have_pods_behind_them_on_both_nodes() {
    let cluster = up();
    let _proxies = [1, 2].map(|number| Proxy::start(&cluster, number).unwrap());
    let all = [Workload::on("a1", 1), Workload::on("b1", 1), Workload::on("a2", 2)];
    run(&cluster, &all, LIMIT).unwrap();
    let addresses = service(&cluster);
    assert_eq!(addresses.len(), 2, "one of each family");
    for pod in &all {
        // Until kube-proxy knows it nobody answers; from then on nothing is lost.
        for address in &addresses {
            until("the Service's rules", LIMIT, || Ok(connects(&cluster, pod.name(), "tcp", *address).ok())).unwrap();
            for protocol in ["tcp", "udp"] {
                for _ in 0..OFTEN {
                    connects(&cluster, pod.name(), protocol, *address).unwrap();
                }
            }
        }
    }
    // Behind this one is no pod, but a host outside of the nodes: the node speaks for its pods.
    let object = cluster.get(&["service", "kubernetes"]).unwrap();
    let api = SocketAddr::new(object["spec"]["clusterIP"].as_str().unwrap().parse().unwrap(), 443);
    for pod in &all {
        for _ in 0..OFTEN {
            cluster
                .kubectl(&["exec", pod.name(), "--", "/agnhost", "connect", "--timeout=3s", &api.to_string()])
                .unwrap();
        }
    }
    for number in 1..=2 {
        for address in &addresses {
            let from_node = |_| {
                let mut command = cluster.in_node(number, "timeout").unwrap();
                is_page(&command.args(words(*address, PORT)).output().unwrap())
            };
            assert!((0..OFTEN).all(from_node), "node-{number} does not reach {address}");
        }
        let (v4, v6) = layout::node_addresses(number);
        for address in [IpAddr::from(v4), IpAddr::from(v6)] {
            let from_outside = |_| {
                let mut command = Command::new("timeout");
                command.args(words(address, NODE_PORT)).stdin(Stdio::null()).stdout(Stdio::piped());
                is_page(&cluster.at_workstation(&mut command).unwrap().wait_with_output().unwrap())
            };
            assert!((0..OFTEN).all(from_outside), "the world does not reach a port of {address}");
        }
    }
    println!("figure: of {} questions to a Service of kube-proxy each was answered", (all.len() * 5 + 8) * OFTEN);
}
