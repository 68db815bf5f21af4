//! The pods of all nodes, kept small: there may be tens of thousands. What replicas have in common is there once, and so is each text.
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use super::{NamedPort, Phase, Pod, PodKey};
use crate::{
    memory::pack,
    policy::labels::{Labels, Shared, Texts},
};

/// The addresses of a pod, in the object's order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ips {
    /// As most have.
    One(IpAddr),
    /// Another number of them.
    Many(Box<[IpAddr]>),
}
impl Ips {
    /// All of them.
    pub fn as_slice(&self) -> &[IpAddr] {
        match self {
            Self::One(ip) => std::slice::from_ref(ip),
            Self::Many(all) => all,
        }
    }
}
impl From<&[IpAddr]> for Ips {
    fn from(all: &[IpAddr]) -> Self {
        match all {
            [one] => Self::One(*one),
            _ => Self::Many(all.into()),
        }
    }
}

/// What pods made from one template have in common.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Template {
    labels: Labels,
    ports: Arc<[NamedPort]>,
    host_network: bool,
    // Nearly all pods are in one.
    phase: Phase,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Kept {
    template: Arc<Template>,
    node: Option<Arc<String>>,
    ips: Ips,
}
// There is one for every pod of the cluster.
const _: () = assert!(size_of::<Kept>() <= 40);
impl Kept {
    fn pod(&self, key: &PodKey) -> Pod {
        Pod {
            namespace: key.namespace().to_owned(),
            name: key.name().to_owned(),
            node: self.node.as_deref().cloned(),
            labels: self.template.labels.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect(),
            ips: self.ips.as_slice().to_vec(),
            phase: self.template.phase,
            host_network: self.template.host_network,
            ports: self.template.ports.iter().cloned().collect(),
        }
    }
}

/// Pods by key. Each is made anew for who asks for it.
#[derive(Clone, Debug, Default)]
pub struct Pods {
    rows: BTreeMap<PodKey, Kept>,
    templates: Shared<Template>,
    texts: Texts,
    ports: Shared<[NamedPort]>,
    nodes: Shared<String>,
}
impl PartialEq for Pods {
    fn eq(&self, other: &Self) -> bool {
        self.rows == other.rows
    }
}
impl Eq for Pods {}

impl Pods {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.rows.len()
    }
    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }
    /// Whether there is one of this name.
    pub fn contains_key(&self, key: &PodKey) -> bool {
        self.rows.contains_key(key)
    }
    /// All names, in order.
    pub fn keys(&self) -> impl Iterator<Item = &PodKey> {
        self.rows.keys()
    }
    /// All pods, in the order of their names.
    pub fn values(&self) -> impl Iterator<Item = Pod> {
        self.rows.iter().map(|(key, kept)| kept.pod(key))
    }
    /// One of them.
    pub fn get(&self, key: &PodKey) -> Option<Pod> {
        self.rows.get(key).map(|kept| kept.pod(key))
    }
    /// The labels of one of them, as all who know it may share them.
    pub fn labels(&self, key: &PodKey) -> Option<&Labels> {
        Some(&self.rows.get(key)?.template.labels)
    }
    /// The names of those on these nodes.
    pub fn on_nodes(&self, nodes: &BTreeSet<&str>) -> impl Iterator<Item = &PodKey> {
        let are = |kept: &Kept| kept.node.as_deref().is_some_and(|node| nodes.contains(&**node));
        self.rows.iter().filter(move |(_, kept)| are(kept)).map(|(key, _)| key)
    }

    /// Adds or replaces one; its name as all share it, and whether anything has changed.
    pub(crate) fn set(&mut self, pod: &Pod) -> (PodKey, bool) {
        let kept = Kept {
            template: self.template(pod),
            node: pod.node.clone().map(|node| self.nodes.keep(node)),
            ips: pod.ips.as_slice().into(),
        };
        let key = pod.key();
        if let Some((known, row)) = self.rows.range_mut(&key..=&key).next() {
            let changed = *row != kept;
            *row = kept;
            return (known.clone(), changed);
        }
        self.rows.insert(key.clone(), kept);
        (key, true)
    }
    /// Removes one; whether it was there.
    pub(super) fn remove(&mut self, key: &PodKey) -> bool {
        self.rows.remove(key).is_some()
    }

    /// Packs them as closely as it goes.
    pub(crate) fn pack(&mut self) {
        pack(&mut self.rows);
        self.templates.pack();
        self.texts.pack();
    }

    fn template(&mut self, pod: &Pod) -> Arc<Template> {
        let ports: Vec<NamedPort> = pod.ports.iter().cloned().collect();
        self.templates.keep(Template {
            labels: self.texts.labels(&pod.labels),
            ports: self.ports.share(&ports[..]),
            host_network: pod.host_network,
            phase: pod.phase,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(name: &str, app: &str, ips: &[IpAddr]) -> Pod {
        Pod {
            namespace: "shop".into(),
            name: name.into(),
            node: Some("n1".into()),
            labels: BTreeMap::from([("app".into(), app.into()), ("tier".into(), "web".into())]),
            ips: ips.to_vec(),
            phase: Phase::Running,
            host_network: false,
            ports: BTreeSet::from([NamedPort { name: "http".into(), protocol: Default::default(), port: 80 }]),
        }
    }

    #[test]
    fn a_pod_comes_out_as_it_went_in() {
        let mut pods = Pods::default();
        let (v4, v6): (IpAddr, IpAddr) = ([10, 0, 0, 1].into(), [0xfd00, 0, 0, 0, 0, 0, 0, 1].into());
        for ips in [&[][..], &[v4], &[v6], &[v6, v4], &[v4, v6, v4]] {
            let pod = pod("a", "web", ips);
            assert!(pods.set(&pod).1 && !pods.set(&pod).1);
            assert_eq!(pods.get(&pod.key()), Some(pod.clone()));
            assert!(pods.values().eq([pod]));
        }
    }

    #[test]
    fn whatever_changes_is_a_change() {
        let mut pods = Pods::default();
        let was = pod("a", "web", &[]);
        let change = |change: fn(&mut Pod)| {
            let mut pod = was.clone();
            change(&mut pod);
            pod
        };
        for pod in [
            change(|p| p.node = None),
            change(|p| drop(p.labels.remove("app"))),
            change(|p| p.ips.push([10, 0, 0, 1].into())),
            change(|p| p.phase = Phase::Failed),
            change(|p| p.host_network = true),
            change(|p| p.ports.clear()),
        ] {
            pods.set(&was);
            assert!(pods.set(&pod).1, "{pod:?}");
            assert_eq!(pods.get(&pod.key()), Some(pod));
        }
    }

    #[test]
    fn templates_that_no_pod_has_are_forgotten() {
        let mut pods = Pods::default();
        for n in 0..2000 {
            pods.set(&pod("a", &n.to_string(), &[]));
        }
        assert!(pods.templates.len() < 1000, "{}", pods.templates.len());
    }

    #[test]
    fn names_sort_by_namespace_first() {
        let keys = [("a", "z"), ("a-b", "a"), ("a.b", "a"), ("ab", "a")].map(|(ns, name)| PodKey::new(ns, name));
        assert!(keys.is_sorted());
        assert_eq!(keys[1].to_string(), "a-b/a");
        assert_ne!(PodKey::new("a\0b", "c"), PodKey::new("a", "b\0c"));
    }
}
