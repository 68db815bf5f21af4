//! Policies as Weft understands them, and how the API's objects become them. Pure.
pub mod cluster;
pub mod model;
pub mod network;
#[cfg(test)]
mod tests;

use std::fmt::{self, Display, Formatter};

use serde::de::DeserializeOwned;
use serde_json::Value;

pub use model::{
    Action, Direction, Domain, Kind, Mode, Namespaces, Peer, Peers, Policy, PolicyName, PortMatch, Ports, Rule,
    Subject, Tier,
};

/// A part of an object that says something it may not, as the API server would have refused it. It matches nothing (or denies all), the rest of the object holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flaw {
    /// Path of the field.
    pub field: String,
    /// What is wrong with it.
    pub cause: String,
    /// What follows from that.
    pub effect: &'static str,
}
impl Flaw {
    /// From its two texts; of what somebody wrote at great length the beginning will do. The part matches nothing.
    pub fn new(field: impl Into<String>, cause: impl Into<String>) -> Self {
        Self { field: short(field.into()), cause: short(cause.into()), effect: "this part matches nothing" }
    }
    /// The flaw, and what follows from it.
    pub fn in_full(&self) -> String {
        format!("{self}; {}", self.effect)
    }
}
impl Display for Flaw {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.cause)
    }
}

/// An object that is none of its kind: it is reported, and changes nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{object}, field {flaw}")]
pub struct Broken {
    /// Kind and name of the object.
    pub object: String,
    /// What is wrong with it.
    pub flaw: Flaw,
}

/// A policy, and what in it matches nothing because the API server would have refused it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Read {
    /// The policy.
    pub policy: Policy,
    /// What was wrong with it.
    pub flaws: Vec<Flaw>,
}

/// Reads a NetworkPolicy (networking.k8s.io/v1).
///
/// # Errors
/// When it is not of that form.
pub fn network_policy(object: Value) -> Result<Read, Broken> {
    let name = name_of("NetworkPolicy", &object, true);
    network::read(&typed(&name, object)?)
}

/// Reads a ClusterNetworkPolicy (policy.networking.k8s.io/v1alpha2).
///
/// # Errors
/// When it is not of that form.
pub fn cluster_policy(object: Value) -> Result<Read, Broken> {
    let name = name_of("ClusterNetworkPolicy", &object, false);
    cluster::read(typed(&name, object)?)
}

/// What names an object that should be a NetworkPolicy, if it says so.
pub fn network_name(object: &Value) -> Option<PolicyName> {
    let namespace = text_of(object, "namespace").filter(|n| !n.is_empty()).unwrap_or("default").to_owned();
    Some(PolicyName::Network { namespace, name: text_of(object, "name")?.to_owned() })
}
/// What names an object that should be a ClusterNetworkPolicy, if it says so.
pub fn cluster_name(object: &Value) -> Option<PolicyName> {
    Some(PolicyName::Cluster { name: text_of(object, "name")?.to_owned() })
}
fn text_of<'a>(object: &'a Value, field: &str) -> Option<&'a str> {
    object.get("metadata")?.get(field)?.as_str()
}

/// Bytes of a text that is shown.
const SHOWN: usize = 400;

fn short(mut text: String) -> String {
    if text.len() > SHOWN {
        text.truncate(text.floor_char_boundary(SHOWN));
        text.push('…');
    }
    text
}

fn name_of(kind: &str, object: &Value, namespaced: bool) -> String {
    let field = |name: &str| text_of(object, name);
    let name = field("name").unwrap_or("without a name");
    let name = short(name.to_owned());
    if namespaced {
        format!("{kind} {}/{name}", short(field("namespace").unwrap_or("default").to_owned()))
    } else {
        format!("{kind} {name}")
    }
}

fn typed<T: DeserializeOwned>(object: &str, value: Value) -> Result<T, Broken> {
    serde_path_to_error::deserialize(value).map_err(|error| Broken {
        object: object.to_owned(),
        flaw: Flaw::new(error.path().to_string(), error.inner().to_string()),
    })
}
