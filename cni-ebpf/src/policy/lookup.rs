//! The look-up: from the ends of a flow to what policy says of it.
use cni_common::{
    net::Be16,
    policy::{
        Holder, IDENTITY_OTHER, IDENTITY_UNKNOWN, RULES_ALLOW_ALL, RULES_DENY_ALL, Rule, RuleKey, SET_NONE, SenderKey,
        are_by_port, only_audits,
    },
};

use super::{Ruling, Why};
use crate::family::Family;

/// What a new flow is, in the direction of its opener: its ends are the real ones, after translation of a Service's address.
#[derive(Clone, Copy)]
pub struct Flow<F: Family> {
    /// Who opens it.
    pub src: F::Addr,
    /// To whom.
    pub dst: F::Addr,
    /// IP protocol.
    pub proto: u32,
    /// Destination port; 0 for protocols without ports.
    pub port: Be16,
}

/// The maps of sets and rules.
pub trait Rules {
    /// Which rule set a policy set has for an identity, and for nobody else.
    fn rules_of(&self, set: u32, identity: u32) -> Option<u32>;
    /// The entry of this very key, of rule sets whose single ports have a map of their own.
    fn port_rule(&self, key: &RuleKey) -> Option<&Rule>;
    /// The entry with the longest prefix of this key.
    fn rule(&self, key: &RuleKey) -> Option<&Rule>;
    /// The same number, of which the kernel's verifier forgets by which way it came to be: it then walks what follows once for all ways.
    #[inline(always)]
    fn blur(&self, n: u64) -> u64 {
        n
    }
}

/// The maps that say who an address is, of one family.
pub trait Identities<F: Family> {
    /// Who has this very address: of every pod and node that is known.
    fn holder(&self, a: &F::Addr) -> Option<&Holder>;
    /// The node behind the address of a pod that is elsewhere.
    fn node(&self, a: &F::Addr) -> Option<u32>;
    /// The identity of that node's pod with this label class, under the longest prefix that holds the address.
    fn sender(&self, key: &SenderKey) -> Option<u32>;
    /// The identity of the longest prefix that holds the address, of those that policies name.
    fn block(&self, a: &F::Addr) -> Option<u32>;
    /// Whether only a pod can have the address: it is in a pod CIDR.
    fn is_inside(&self, a: &F::Addr) -> bool;
    /// Whether it is this node's own address.
    fn is_own(&self, a: &F::Addr) -> bool;
    /// Whether it is a Service's, which the node's stack translates.
    fn is_service(&self, a: &F::Addr) -> bool;
}

/// Who is told what policy says of a packet besides its verdict.
pub trait Blame {
    /// Why it is dropped, or passes only because policies are in audit mode, for the event about it. The network header of the packet that was judged is at `at`, this cookie
    /// names the rule that decides (0: what no rule allows), and its opener was judged under this label class (0: under none).
    fn blame(&self, at: u32, cookie: u32, class: u32);
    /// What the opener's policy set and the other end's have said, to be counted: see [`Ruling::hit`].
    fn ruled(&self, egress: (u32, Ruling), ingress: (u32, Ruling));
}

/// Who an address is; `None` when it must be a pod's and no pod is known to have it, or when the maps have no room for what is said of it. A trie is asked only when the hash does not know it.
#[inline(always)]
pub fn identify<F: Family, S: Identities<F>>(s: &S, a: &F::Addr) -> Option<u32> {
    identify_sender(s, a, 0)
}

/// The same of who has sent something through the tunnel, under this label class; 0: under none.
///
/// A class that is the address's is the rule, and costs nothing. If the two differ, then the pod's object is known and its address is not yet, or is still thought to be
/// that of the pod which had it before: a class that the sending node has pods of, and no other one with its hash, decides. Else the address does.
#[inline(always)]
pub fn identify_sender<F: Family, S: Identities<F>>(s: &S, a: &F::Addr, class: u32) -> Option<u32> {
    let found = find(s, a, class)?;
    if found == IDENTITY_UNKNOWN { None } else { Some(found) }
}

#[inline(always)]
fn find<F: Family, S: Identities<F>>(s: &S, a: &F::Addr, class: u32) -> Option<u32> {
    let known = s.holder(a);
    if let Some(holder) = known
        && (class == 0 || holder.class == class)
    {
        return Some(holder.identity);
    }
    if class != 0
        && let Some(node) = s.node(a)
        && let Some(identity) = s.sender(&SenderKey { node, class, addr: F::widen(a) })
    {
        return Some(identity);
    }
    if let Some(holder) = known {
        return Some(holder.identity);
    }
    if s.is_inside(a) {
        return None;
    }
    Some(s.block(a).unwrap_or(IDENTITY_OTHER))
}

/// Whether a pod of this node may open the flow: its egress policy. `set` is the pod's policy set of that direction.
#[inline(always)]
pub fn egress<F: Family, S: Rules + Identities<F>>(s: &S, set: u32, flow: &Flow<F>) -> Ruling {
    egress_of(s, set, flow, true)
}

/// The same; `by_backend`: what it says of a Service's address does not count, as it is asked of who is behind it.
#[inline(always)]
pub fn egress_of<F: Family, S: Rules + Identities<F>>(s: &S, set: u32, flow: &Flow<F>, by_backend: bool) -> Ruling {
    if set == SET_NONE {
        return Ruling::allowed(Why::NotIsolated);
    }
    // Also what comes back from a Service to the pod that asked it.
    if F::is_same(&flow.src, &flow.dst) {
        return Ruling::allowed(Why::Itself);
    }
    let ruling = judge(s, set, identify(s, &flow.dst), flow.proto, flow.port);
    let ruling = Ruling::from_word(s.blur(ruling.word()));
    if by_backend && ruling.may_wait() && s.is_service(&flow.dst) && s.holder(&flow.dst).is_none() {
        return Ruling::allowed(Why::Service);
    }
    ruling
}

/// Whether a pod of this node may be reached by the flow: its ingress policy. `from_stack` says that the packet came out of this node's own
/// stack; what the stack merely forwards has another source than the node's addresses, and is judged like any other.
#[inline(always)]
pub fn ingress<F: Family, S: Rules + Identities<F>>(s: &S, set: u32, from_stack: bool, flow: &Flow<F>) -> Ruling {
    ingress_of(s, set, from_stack, flow, 0)
}

/// The same, of a flow whose opener was named by this label class in the tunnel; 0: by none.
#[inline(always)]
pub fn ingress_of<F: Family, S: Rules + Identities<F>>(
    s: &S,
    set: u32,
    from_stack: bool,
    flow: &Flow<F>,
    class: u32,
) -> Ruling {
    if set == SET_NONE {
        return Ruling::allowed(Why::NotIsolated);
    }
    if F::is_same(&flow.src, &flow.dst) {
        return Ruling::allowed(Why::Itself);
    }
    // The kubelet's probes, daemons of the node, and pods in its network.
    if from_stack && s.is_own(&flow.src) {
        return Ruling::allowed(Why::OwnNode);
    }
    judge(s, set, identify_sender(s, &flow.src, class), flow.proto, flow.port)
}

/// See [`Rules::blur`].
#[inline(always)]
fn blurred<S: Rules>(s: &S, n: Option<u32>) -> Option<u32> {
    const NONE: u64 = 1 << 32;
    let n = s.blur(n.map_or(NONE, u64::from));
    if n & NONE == 0 { Some(n as u32) } else { None }
}

/// What a policy set says of a peer, protocol and port.
#[inline(always)]
fn judge<S: Rules>(s: &S, set: u32, peer: Option<u32>, proto: u32, port: Be16) -> Ruling {
    let ruling = look_up(s, set, peer, proto, port);
    if only_audits(set) { ruling.in_audit() } else { ruling }
}
#[inline(always)]
fn look_up<S: Rules>(s: &S, set: u32, peer: Option<u32>, proto: u32, port: Be16) -> Ruling {
    let Some(identity) = blurred(s, peer) else { return Ruling::denied(Why::UnknownPeer) };
    let own = s.rules_of(set, identity);
    let found = if own.is_none() && identity != IDENTITY_OTHER { s.rules_of(set, IDENTITY_OTHER) } else { own };
    let Some(rules) = blurred(s, found) else { return Ruling::denied(Why::NoSet) };
    if rules == RULES_ALLOW_ALL {
        return Ruling::allowed(Why::Whole);
    }
    if rules == RULES_DENY_ALL {
        return Ruling::denied(Why::Whole);
    }
    let key = RuleKey::of(rules, proto as u8, port);
    // No prefix is longer than a whole key.
    let single = if are_by_port(rules) { s.port_rule(&key) } else { None };
    match single.or_else(|| s.rule(&key)) {
        Some(rule) => Ruling::of_entry(rule),
        None => Ruling::denied(Why::NoEntry),
    }
}
