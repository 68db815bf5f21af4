//! What a row's entries lack while the agent has not heard of everything yet.
use super::Facts;
use crate::tables::{Contents, Row};

/// How far the agent has heard what there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heard {
    /// The cluster's objects.
    pub objects: bool,
    /// The ways to other nodes: a row of one that is missing is of a node that nobody leads to.
    pub ways: bool,
    /// The policies, and they are in the maps.
    pub policies: bool,
}

impl Heard {
    /// Of all.
    pub const EVERYTHING: Self = Self { objects: true, ways: true, policies: true };
}

/// Whether what the row's entries are compiled from is known. If not, they hold a stand-in, which is good for a new entry but must not
/// replace what a former agent, who had heard of everything, has written.
pub fn is_whole(row: &Row, contents: &Contents, facts: &Facts, heard: Heard) -> bool {
    match row {
        // The label class is the Pod object's; policies are all objects'.
        Row::Endpoint(id) => contents.endpoints.get(id).is_none_or(|e| {
            (heard.objects || contents.pods.contains_key(&e.pod())) && (heard.policies || !e.is_kubernetes())
        }),
        // Which of them are announced says the Node object.
        Row::NodeAddresses => heard.objects || contents.nodes.contains_key(&facts.node),
        Row::Node(name) if *name != facts.node => {
            let to = contents.nodes.get(name).and_then(|n| facts.tunnel_to(contents, &n.internal_ips));
            heard.ways || to.is_none_or(|to| contents.next_hops.contains_key(&to))
        }
        Row::Node(_)
        | Row::Pod(_)
        | Row::Devices
        | Row::NextHop(_)
        | Row::Namespace(_)
        | Row::Policy(_)
        | Row::ServiceCidr(_) => true,
    }
}
