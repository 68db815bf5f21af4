//! Weft itself: a lab of two nodes joined by one veth pair, with real agents, and pods made by real CNI calls.

use std::cell::RefCell;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;

use anyhow::{Context as _, Result, bail};
use cni_agent::netlink::netns;
use lab::layout::NODE_DEVICE;
use lab::{Hostile, Lab, LabConfig, PodSpec, Underlay};

use super::{Ends, Layout, LayoutName};
use crate::netns::Netns;

const NODE: &str = "node-1";
const CLIENT: &str = "bench-client";
const SAME_NODE: &str = "bench-same";
const OTHER_NODE: &str = "bench-other";

/// The lab that all of Weft's layouts are measured in. It is up as long as one of them is.
#[derive(Default)]
pub struct Cluster {
    lab: Option<Lab>,
    users: u32,
}

/// Where a socket of the client or the server is.
#[derive(Clone, Copy)]
enum End {
    Pod(&'static str),
    Node(&'static str),
}

impl End {
    /// The name of its namespace, its addresses, and the device that packets for it arrive at.
    fn of(self, lab: &Lab) -> Result<(String, Vec<IpAddr>, &'static str)> {
        match self {
            Self::Pod(name) => lab.pod(name).map(|pod| (pod.netns(), pod.addresses.clone(), "eth0")),
            Self::Node(name) => lab.node(name).map(|node| (node.netns(), node.addresses(), "weft_host")),
        }
    }
}

/// One way through the lab.
pub struct Weft {
    name: LayoutName,
    cluster: Rc<RefCell<Cluster>>,
    is_up: bool,
}

impl Weft {
    /// `name` is one of Weft's: they differ in where client and server are.
    pub fn new(name: LayoutName, cluster: &Rc<RefCell<Cluster>>) -> Self {
        Self { name, cluster: Rc::clone(cluster), is_up: false }
    }

    /// Client and server.
    fn between(&self) -> (End, End) {
        match self.name {
            LayoutName::WeftNode => (End::Node(NODE), End::Pod(SAME_NODE)),
            LayoutName::WeftToNode => (End::Pod(CLIENT), End::Node(NODE)),
            LayoutName::WeftVxlan => (End::Pod(CLIENT), End::Pod(OTHER_NODE)),
            _ => (End::Pod(CLIENT), End::Pod(SAME_NODE)),
        }
    }
}

impl Layout for Weft {
    fn name(&self) -> LayoutName {
        self.name
    }

    fn up(&mut self) -> Result<()> {
        let mut cluster = self.cluster.borrow_mut();
        if cluster.lab.is_none() {
            let config = LabConfig { underlay: Underlay::Direct, hostile: Hostile::Nobody, ..LabConfig::with_nodes(2) };
            let mut lab = Lab::up(config)?;
            for (node, pod) in [(NODE, CLIENT), (NODE, SAME_NODE), ("node-2", OTHER_NODE)] {
                lab.pod_add(node, &PodSpec::named(pod)).with_context(|| format!("add the pod {pod} on {node}"))?;
            }
            cluster.lab = Some(lab);
        }
        cluster.users += 1;
        self.is_up = true;
        Ok(())
    }

    fn ends(&self) -> Result<Ends> {
        let cluster = self.cluster.borrow();
        let lab = cluster.lab.as_ref().context("the layout is not up")?;
        let (client, server) = self.between();
        let ((client, ..), (server, addresses, device)) = (client.of(lab)?, server.of(lab)?);
        let [IpAddr::V4(v4), IpAddr::V6(v6)] = addresses[..] else {
            bail!("{server} has {addresses:?} instead of one address of each family")
        };
        let open = |name: String| Netns::open(&netns::path_of(&name)).map(Arc::new);
        Ok(Ends { client: open(client)?, server: open(server)?, device: device.to_owned(), v4, v6 })
    }

    fn wire(&self) -> Result<Vec<(Arc<Netns>, String)>> {
        let cluster = self.cluster.borrow();
        let nodes = cluster.lab.iter().flat_map(|lab| lab.nodes()).filter(|_| self.name == LayoutName::WeftVxlan);
        nodes.map(|node| Ok((Arc::new(Netns::open(&netns::path_of(&node.netns()))?), NODE_DEVICE.to_owned()))).collect()
    }

    fn down(&mut self) -> Result<()> {
        if !std::mem::take(&mut self.is_up) {
            return Ok(());
        }
        let mut cluster = self.cluster.borrow_mut();
        cluster.users -= 1;
        let lab = if cluster.users == 0 { cluster.lab.take() } else { None };
        match lab {
            Some(lab) => lab.down().context("take the lab down"),
            None => Ok(()),
        }
    }
}
