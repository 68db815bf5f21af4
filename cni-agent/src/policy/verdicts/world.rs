//! The cluster of a case: its objects, and an agent's engine and maps for each node.
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use cni_ebpf::policy::Ruling;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::case::{Address, BadCase, Case, NamespaceFields, NodeFields, ObjectKind, Op, PodFields, Verb};
use crate::{
    policy::{
        Change, Engine, Image,
        engine::Sizes,
        explain,
        objects::{self, Broken, Direction, Policy, PolicyName, Read, model::normal},
        store::Event,
    },
    tables::{Pod, PodKey},
};

/// How steps become maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// By increments.
    Incremental,
    /// From nothing, at each step.
    Rebuild,
}

/// A node's agent: what it has compiled, and its maps.
#[derive(Debug)]
pub struct Agent {
    /// The compiler.
    pub engine: Engine,
    /// The maps.
    pub image: Image,
}

/// What an agent has written to its maps since that was taken.
#[derive(Debug)]
struct Record {
    /// Tells the agent from the one that was there before, if each step begins anew.
    number: u64,
    written: Vec<Change>,
}

type NodeObject = (BTreeMap<String, String>, BTreeSet<IpAddr>);

/// The cluster.
#[derive(Debug)]
pub struct World {
    mode: Mode,
    namespaces: BTreeMap<String, BTreeMap<String, String>>,
    nodes: BTreeMap<String, NodeObject>,
    pods: BTreeMap<PodKey, Pod>,
    policies: BTreeMap<PolicyName, Policy>,
    dns: BTreeMap<String, BTreeSet<IpAddr>>,
    agents: BTreeMap<String, Agent>,
    last_agent: u64,
    records: BTreeMap<String, Record>,
    /// Whether what is written is kept to be taken.
    recorded: bool,
    /// How addresses are written.
    written: BTreeMap<IpAddr, String>,
    problems: Vec<String>,
}

impl World {
    /// The cluster before the first step.
    ///
    /// # Errors
    /// When an object is none.
    pub fn new(case: &Case, mode: Mode) -> Result<Self, BadCase> {
        let mut world = Self {
            mode,
            namespaces: BTreeMap::new(),
            nodes: BTreeMap::new(),
            pods: BTreeMap::new(),
            policies: BTreeMap::new(),
            dns: BTreeMap::new(),
            agents: BTreeMap::new(),
            last_agent: 0,
            records: BTreeMap::new(),
            recorded: false,
            written: BTreeMap::new(),
            problems: Vec::new(),
        };
        let cluster = &case.cluster;
        for (name, fields) in &cluster.namespaces {
            world.happen(Event::Namespace(name.clone(), Some(fields.labels.clone().unwrap_or_default())));
        }
        world.write(&case.external);
        for node in &cluster.nodes {
            world.write(&node.ips);
            world.happen(node_event(node));
        }
        for fields in &cluster.pods {
            world.write(&fields.ips);
            let pod = fields.pod();
            world.happen(Event::Pod(pod.key(), Some(pod)));
        }
        for (n, object) in cluster.policies.iter().enumerate() {
            let kind = object.get("kind").and_then(Value::as_str);
            // Of a list's items the API leaves the kind out.
            let kind = kind.unwrap_or(if object["spec"]["tier"].is_string() { CLUSTER } else { NETWORK });
            let read = match kind {
                NETWORK => objects::network_policy(whole(object.clone(), NETWORK, None)),
                CLUSTER => objects::cluster_policy(whole(object.clone(), CLUSTER, None)),
                other => {
                    let cause = format!("kind is {other}, not {NETWORK} or {CLUSTER}");
                    return Err(BadCase::new(format!("cluster.policies[{n}]"), cause));
                }
            };
            world.policy(read);
        }
        for (name, addresses) in &cluster.dns {
            world.happen(Event::Dns(name.clone(), Some(addresses.clone())));
        }
        Ok(world)
    }

    /// What happens next.
    ///
    /// # Errors
    /// When an object is none.
    pub fn step(&mut self, ops: &[Op]) -> Result<(), BadCase> {
        for op in ops {
            self.op(op)?;
        }
        if self.mode == Mode::Rebuild {
            self.agents.clear();
        }
        let hosts = self.pods.values().filter_map(|p| p.node.clone());
        let names: BTreeSet<String> = self.nodes.keys().cloned().chain(hosts).collect();
        for name in names {
            if !self.agents.contains_key(&name) {
                let mut engine = Engine::new(&name);
                self.events().iter().for_each(|e| engine.store.handle(e));
                self.last_agent += 1;
                self.records.insert(name.clone(), Record { number: self.last_agent, written: Vec::new() });
                self.agents.insert(name, Agent { engine, image: Image::default() });
            }
        }
        for (name, agent) in &mut self.agents {
            let changes = agent.engine.compile();
            if let Some(record) = self.records.get_mut(name).filter(|_| self.recorded) {
                record.written.extend(changes.iter().cloned());
            }
            changes.into_iter().for_each(|c| agent.image.apply(c));
            agent.image.own = self.nodes.get(name).map(|(_, ips)| ips.clone()).unwrap_or_default();
        }
        Ok(())
    }
    fn op(&mut self, op: &Op) -> Result<(), BadCase> {
        let ips = op.object.as_ref().and_then(|o| o.get("ips")).cloned().unwrap_or_default();
        self.write(&serde_json::from_value::<Vec<Address>>(ips).unwrap_or_default());
        match event(op)? {
            Told::Event(event) => self.happen(event),
            Told::Policy(read) => self.policy(*read),
        }
        Ok(())
    }

    /// A policy object: one that is broken is reported, and changes nothing.
    fn policy(&mut self, read: Result<Read, Broken>) {
        match read {
            Ok(Read { policy, flaws }) => {
                self.problems.extend(flaws.iter().map(|f| format!("{}, field {}", policy.name, f.in_full())));
                self.happen(Event::Policy(policy.name.clone(), Some(policy)));
            }
            Err(broken) => self.problems.push(broken.to_string()),
        }
    }

    fn write(&mut self, addresses: &[Address]) {
        self.written.extend(addresses.iter().map(|a| (a.ip, a.text.clone())));
    }
    /// An address, as the case writes it.
    pub fn written(&self, ip: IpAddr) -> String {
        self.written.get(&ip).cloned().unwrap_or_else(|| ip.to_string())
    }

    /// Tells all agents, and keeps what a later one has to be told.
    fn happen(&mut self, event: Event) {
        for agent in self.agents.values_mut() {
            agent.engine.store.handle(&event);
        }
        match event {
            Event::Namespace(name, Some(labels)) => drop(self.namespaces.insert(name, labels)),
            Event::Namespace(name, None) => {
                self.namespaces.remove(&name);
                self.pods.retain(|key, _| key.namespace() != name);
                self.policies
                    .retain(|key, _| !matches!(key, PolicyName::Network { namespace, .. } if *namespace == name));
            }
            Event::Node(name, Some(node)) => drop(self.nodes.insert(name, node)),
            Event::Node(name, None) => drop(self.nodes.remove(&name)),
            Event::Pod(key, Some(pod)) => drop(self.pods.insert(key, pod)),
            Event::Pod(key, None) => drop(self.pods.remove(&key)),
            Event::Policy(name, Some(policy)) => drop(self.policies.insert(name, policy)),
            Event::Policy(name, None) => drop(self.policies.remove(&name)),
            Event::Dns(name, Some(addresses)) => drop(self.dns.insert(normal(&name), addresses)),
            Event::Dns(name, None) => drop(self.dns.remove(&normal(&name))),
        }
    }
    /// All that is there, as a source tells it at its start.
    fn events(&self) -> Vec<Event> {
        let namespaces = self.namespaces.iter().map(|(n, o)| Event::Namespace(n.clone(), Some(o.clone())));
        let nodes = self.nodes.iter().map(|(n, o)| Event::Node(n.clone(), Some(o.clone())));
        let pods = self.pods.iter().map(|(n, o)| Event::Pod(n.clone(), Some(o.clone())));
        let policies = self.policies.iter().map(|(n, o)| Event::Policy(n.clone(), Some(o.clone())));
        let dns = self.dns.iter().map(|(n, o)| Event::Dns(n.clone(), Some(o.clone())));
        namespaces.chain(nodes).chain(pods).chain(policies).chain(dns).collect()
    }

    /// Nodes with their addresses.
    pub fn nodes(&self) -> impl Iterator<Item = (&String, &BTreeSet<IpAddr>)> {
        self.nodes.iter().map(|(name, (_, ips))| (name, ips))
    }
    /// Pods.
    pub fn pods(&self) -> impl Iterator<Item = &Pod> {
        self.pods.values()
    }
    /// The agent of a node.
    pub fn agent(&self, node: &str) -> Option<&Agent> {
        self.agents.get(node)
    }
    /// From now on, what is written to the maps is kept.
    pub fn record(&mut self) {
        self.recorded = true;
    }
    /// Each node's agent, and what it has written since this was asked, in its order.
    pub fn take_changes(&mut self) -> Vec<(String, u64, Vec<Change>)> {
        self.records.iter_mut().map(|(name, r)| (name.clone(), r.number, std::mem::take(&mut r.written))).collect()
    }
    /// What was not as it should be.
    pub fn problems(&self) -> &[String] {
        &self.problems
    }
    /// How much each node has.
    pub fn sizes(&self) -> Vec<Sizes> {
        self.agents.values().map(|a| a.engine.sizes()).collect()
    }
}

impl Agent {
    /// What a pod's policies say of a flow that it opens or gets; `from_stack` if this node's own stack sends it. A pod that is not
    /// known here has no policies.
    pub fn ruling(
        &self,
        pod: &PodKey,
        direction: Direction,
        from_stack: bool,
        flow: (IpAddr, IpAddr),
        what: explain::What,
    ) -> Option<Ruling> {
        let set = self.image.endpoints.get(pod)?.of(direction);
        explain::ruling(&self.image, (direction, set), from_stack, flow, what)
    }
}

/// What an operation tells.
#[derive(Debug)]
pub(crate) enum Told {
    /// This.
    Event(Event),
    /// A policy, or what is none.
    Policy(Box<Result<Read, Broken>>),
}

/// Reads an operation.
///
/// # Errors
/// When its object is none.
pub(crate) fn event(op: &Op) -> Result<Told, BadCase> {
    let namespace = op.namespace.clone().unwrap_or_else(|| "default".to_owned());
    let name = op.name.clone();
    if op.op == Verb::Delete {
        return Ok(Told::Event(match op.kind {
            ObjectKind::NetworkPolicy => Event::Policy(PolicyName::Network { namespace, name }, None),
            ObjectKind::ClusterNetworkPolicy => Event::Policy(PolicyName::Cluster { name }, None),
            ObjectKind::Pod => Event::Pod(PodKey::new(namespace, name), None),
            ObjectKind::Namespace => Event::Namespace(name, None),
            ObjectKind::Node => Event::Node(name, None),
            ObjectKind::Dns => Event::Dns(name, None),
        }));
    }
    let object = op.object.clone().ok_or_else(|| BadCase::new(format!("apply of {name}"), "it has no object"))?;
    Ok(Told::Event(match op.kind {
        ObjectKind::NetworkPolicy => {
            return Ok(Told::Policy(Box::new(objects::network_policy(whole(object, NETWORK, Some(op))))));
        }
        ObjectKind::ClusterNetworkPolicy => {
            return Ok(Told::Policy(Box::new(objects::cluster_policy(whole(object, CLUSTER, Some(op))))));
        }
        ObjectKind::Pod => {
            let mut fields: PodFields = typed("Pod", &name, object)?;
            fields.name = name;
            if op.namespace.is_some() || fields.namespace.is_empty() {
                fields.namespace = namespace;
            }
            let pod = fields.pod();
            Event::Pod(pod.key(), Some(pod))
        }
        ObjectKind::Namespace => {
            let fields: NamespaceFields = typed("Namespace", &name, object)?;
            Event::Namespace(name, Some(fields.labels.unwrap_or_default()))
        }
        ObjectKind::Node => {
            let fields: NodeFields = typed("Node", &name, object)?;
            node_event(&NodeFields { name, ..fields })
        }
        ObjectKind::Dns => {
            // The addresses themselves, or an object that has them.
            let list = match object {
                Value::Object(mut fields) => {
                    let found = ["addresses", "ips"].iter().find_map(|f| fields.remove(*f));
                    found.unwrap_or(Value::Object(fields))
                }
                list => list,
            };
            let addresses = typed("DNS", &name, list)?;
            Event::Dns(name, Some(addresses))
        }
    }))
}

const NETWORK: &str = "NetworkPolicy";
const CLUSTER: &str = "ClusterNetworkPolicy";

/// A policy object with the fields that the API leaves out of a list's items, or that the operation gives.
fn whole(mut object: Value, kind: &str, op: Option<&Op>) -> Value {
    let version = if kind == NETWORK { "networking.k8s.io/v1" } else { "policy.networking.k8s.io/v1alpha2" };
    if let Value::Object(fields) = &mut object {
        fields.entry("apiVersion").or_insert_with(|| version.into());
        fields.entry("kind").or_insert_with(|| kind.into());
        if let Some(op) = op
            && let Value::Object(metadata) = fields.entry("metadata").or_insert_with(|| Value::Object(Map::new()))
        {
            metadata.entry("name").or_insert_with(|| op.name.clone().into());
            if let Some(namespace) = op.namespace.as_ref().filter(|_| kind == NETWORK) {
                metadata.entry("namespace").or_insert_with(|| namespace.clone().into());
            }
        }
    }
    object
}

fn node_event(node: &NodeFields) -> Event {
    let addresses = node.ips.iter().map(|a| a.ip).collect();
    Event::Node(node.name.clone(), Some((node.labels.clone().unwrap_or_default(), addresses)))
}

fn typed<T: DeserializeOwned>(kind: &str, name: &str, object: Value) -> Result<T, BadCase> {
    serde_path_to_error::deserialize(object)
        .map_err(|error| BadCase::new(format!("{kind} {name}, field {}", error.path()), error.inner()))
}
