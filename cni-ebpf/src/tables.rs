//! What the logic asks of maps and helpers.
use cni_common::maps::{Cidr, Config, Endpoint, Local, Remote, Tunnel};

use crate::{
    ct::Track,
    family::{Family, V4, V6},
    nat::Masquerade,
};

/// What does not depend on the address family.
pub trait Env {
    /// The agent's configuration; `None` until it was written.
    fn config(&self) -> Option<&Config>;
    /// The pod's interface behind this host-side veth.
    fn endpoint(&self, ifindex: u32) -> Option<&Endpoint>;
    /// How to reach a node. A slot that was never written is all zero (`family == 0`).
    fn tunnel(&self, node: u32) -> Option<&Tunnel>;
    /// Whether one more ICMP error may be sent now; takes it from the budget.
    fn may_answer(&self) -> bool;
    /// The policy epoch, to be read before any look at who is isolated and at policy.
    fn epoch(&self) -> u32;
}

/// The maps of one address family.
pub trait Tables<F: Family> {
    /// A pod of this node.
    fn local(&self, a: &F::Addr) -> Option<&Local>;
    /// A pod of another node, or another node.
    fn remote(&self, a: &F::Addr) -> Option<&Remote>;
    /// The pod CIDR that holds the address; a trie, so asked only when the hashes do not know it.
    fn cidr(&self, a: &F::Addr) -> Option<&Cidr>;
    /// The node with this tunnel address.
    fn node_of(&self, underlay: &F::Addr) -> Option<u32>;
    /// `OWN_*` bits of an address of this node, 0 of any other.
    fn own(&self, a: &F::Addr) -> u32;
    /// Whether it is a Service's address, which something in the node's stack translates; a trie.
    fn is_service(&self, a: &F::Addr) -> bool;
}

/// All a datapath function may ask for; `P` is the packet.
pub trait System<P>: Env + Of<P, V4> + Of<P, V6> {}
impl<P, T: Env + Of<P, V4> + Of<P, V6>> System<P> for T {}

/// What it may ask for of one address family.
pub trait Of<P, F: Family>: Tables<F> + Track<P, F> + Masquerade<P, F> {}
impl<P, F: Family, T: Tables<F> + Track<P, F> + Masquerade<P, F>> Of<P, F> for T {}
