//! From rows to the engine's objects. Level-triggered: a row is compared with what the engine has of it.
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use ipnet::IpNet;

use crate::{
    compile::{Facts, NodeNumbers},
    policy::{senders::Way, store::Store},
    tables::{Contents, Phase, Pod, PodKey, Row},
};

/// What of the rows the engine was told in another form.
#[derive(Debug)]
pub struct Feed {
    facts: Facts,
    /// Pods of this node's endpoints.
    pods: BTreeMap<u16, PodKey>,
    endpoints: BTreeMap<PodKey, BTreeSet<u16>>,
}

impl Feed {
    pub(super) fn new(facts: &Facts) -> Self {
        Self { facts: facts.clone(), pods: BTreeMap::new(), endpoints: BTreeMap::new() }
    }

    /// All rows, to a store that knows nothing.
    pub(super) fn all(&mut self, contents: &Contents, numbers: &mut NodeNumbers, store: &mut Store) {
        self.pods.clear();
        self.endpoints.clear();
        let rows = (contents.namespaces.keys().map(|name| Row::Namespace(name.as_str().into())))
            .chain(contents.nodes.keys().cloned().map(Row::Node))
            .chain(contents.pods.keys().cloned().map(Row::Pod))
            .chain(contents.endpoints.keys().copied().map(Row::Endpoint))
            .chain(contents.policies.keys().map(|name| Row::Policy(name.clone().into())))
            .collect();
        self.rows(&rows, contents, numbers, store);
    }

    /// Rows that may have changed.
    pub(super) fn rows(
        &mut self,
        rows: &BTreeSet<Row>,
        contents: &Contents,
        numbers: &mut NodeNumbers,
        store: &mut Store,
    ) {
        let mut pods = BTreeSet::new();
        // The family of all tunnels follows this node's.
        if rows.contains(&Row::Node(self.facts.node.clone())) {
            contents.nodes.keys().for_each(|name| self.way(name, contents, numbers, store));
        }
        for row in rows {
            match row {
                // Its pods and policies have rows of their own, and go with those.
                Row::Namespace(name) => match contents.namespaces.get(&**name) {
                    Some(namespace) => store.apply_namespace(name, &namespace.labels),
                    None if store.namespaces.contains_key(&**name) => {
                        store.apply_namespace(name, &BTreeMap::new());
                    }
                    None => {}
                },
                Row::Node(name) => {
                    match contents.nodes.get(name) {
                        Some(node) => store.apply_node(name, &node.labels, node.addresses.clone()),
                        None => store.delete_node(name),
                    }
                    self.way(name, contents, numbers, store);
                }
                Row::Policy(name) => match contents.policies.get(&**name) {
                    Some(read) => store.apply_read(Arc::clone(read)),
                    None => store.delete_policy(name),
                },
                Row::Pod(key) => drop(pods.insert(key.clone())),
                Row::Endpoint(id) => pods.extend(self.endpoint(*id, contents)),
                Row::NodeAddresses | Row::Devices | Row::NextHop(_) | Row::ServiceCidr(_) => {}
            }
        }
        for key in pods {
            match (self.pod(&key, contents), contents.pods.labels(&key)) {
                (Some(pod), Some(labels)) => store.apply_labelled(&key, &pod, labels.clone()),
                (Some(pod), None) => store.apply_pod(&key, &pod),
                (None, _) => store.delete_pod(&key),
            }
        }
    }

    /// How packets of another node's pods come in.
    fn way(&self, name: &str, contents: &Contents, numbers: &mut NodeNumbers, store: &mut Store) {
        let node = contents.nodes.get(name).filter(|_| name != self.facts.node);
        let way = node.and_then(|node| {
            let to = self.facts.tunnel_to(contents, &node.internal_ips)?;
            // Without one, its row says why.
            let number = numbers.number(to).ok()?;
            Some(Way { number, cidrs: node.pod_cidrs.iter().map(IpNet::trunc).collect() })
        });
        store.senders.apply_way(name, way);
    }

    /// Notes whose endpoint it is; the pods that this is about.
    fn endpoint(&mut self, id: u16, contents: &Contents) -> Vec<PodKey> {
        let pod = contents.endpoints.get(&id).filter(|e| e.is_kubernetes()).map(|e| e.pod());
        let before = match &pod {
            Some(pod) => self.pods.insert(id, pod.clone()),
            None => self.pods.remove(&id),
        };
        if let Some(before) = &before
            && let Some(ids) = self.endpoints.get_mut(before)
        {
            ids.remove(&id);
            if ids.is_empty() {
                self.endpoints.remove(before);
            }
        }
        if let Some(pod) = &pod {
            self.endpoints.entry(pod.clone()).or_default().insert(id);
        }
        before.into_iter().chain(pod).collect()
    }

    /// A pod as policies see it. One of this node has the addresses that its endpoints have, as soon as they have them, and none that its object
    /// still shows.
    fn pod(&self, key: &PodKey, contents: &Contents) -> Option<Pod> {
        let ids = self.endpoints.get(key);
        let endpoints = || ids.into_iter().flatten().filter_map(|id| contents.endpoints.get(id));
        let here = || Some(self.facts.node.clone());
        match contents.pods.get(key) {
            Some(pod) if ids.is_some() || pod.node.as_deref() == Some(&self.facts.node) => {
                Some(Pod { node: here(), ips: endpoints().flat_map(|e| e.ips()).collect(), ..pod })
            }
            Some(pod) => Some(pod),
            None if ids.is_some() && !self.facts.objects_are_all => Some(Pod {
                namespace: key.namespace().to_owned(),
                name: key.name().to_owned(),
                node: here(),
                labels: BTreeMap::new(),
                ips: endpoints().flat_map(|e| e.ips()).collect(),
                phase: Phase::Running,
                host_network: false,
                ports: BTreeSet::new(),
            }),
            None => None,
        }
    }
}
