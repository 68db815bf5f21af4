//! The real kube-proxy on a node, for as long as the value lives.
use std::{
    fs,
    process::{Child, Stdio},
};

use anyhow::{Context as _, Result};

use crate::{
    Cluster,
    layout::{Families, POD_CIDRS, kubeconfig, logs, node_name},
    node::hyperkube,
};

/// kube-proxy in its nftables mode. Its output is in the node's logs.
#[derive(Debug)]
pub struct Proxy(Child);

impl Proxy {
    /// Starts it on node `number`.
    ///
    /// # Errors
    /// When the node is not up, or it can not be started.
    pub fn start(cluster: &Cluster, number: u8) -> Result<Self> {
        let name = node_name(number);
        let hyperkube = hyperkube()?;
        let log = fs::File::create(logs(&name).join("kube-proxy.log")).context("make the log of kube-proxy")?;
        let mut command = cluster.in_node(number, hyperkube.to_str().context("the path of hyperkube")?)?;
        command.args([
            "kube-proxy",
            "--proxy-mode=nftables",
            &format!("--kubeconfig={}", kubeconfig("proxy").display()),
            &format!("--hostname-override={name}"),
            &format!("--cluster-cidr={}", Families::of_cluster().of(POD_CIDRS).join(",")),
            // The table's size is the machine's, which nodes may not write.
            "--conntrack-max-per-core=0",
            "--conntrack-tcp-timeout-established=0",
            "--conntrack-tcp-timeout-close-wait=0",
        ]);
        command.stdin(Stdio::null()).stdout(log.try_clone().context("the log of kube-proxy")?).stderr(log);
        Ok(Self(command.spawn().context("start kube-proxy")?))
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // What it was the way into the node for ends with the node.
        let _gone = self.0.kill();
        let _ended = self.0.wait();
    }
}
