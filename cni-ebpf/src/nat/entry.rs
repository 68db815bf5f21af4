//! A flow's translation: which it is, in either direction, and for how long.
//!
//! It has two halves: *back*, by what the world writes, to the pod's end; and *forth*, by the flow, to the node's end. Each half's value with what
//! is known of the packet is the other half's key, so they name each other. A translation holds while both halves do, and lives while its flow
//! lives in conntrack: it has no time of its own. So it is looked at with every packet:
//!
//! - forth, a flow that is not known has none (the packet is dropped by name); one half without the other, or an address that the node no longer
//!   uses there, is an orphan, and a new translation is made, with the old port if that is free;
//! - back, an entry of a flow that is over is none, so the packet is the node's own; one whose flow has another by now is an orphan, and
//!   the packet is dropped by name.
//!
//! The agent takes out the halves of flows that are over, as it takes out the flows; it enters the hold (see `port`) before.
use cni_common::{
    maps::{CT_HI_OPENED, CtConfig},
    net::{Be16, Ports},
};

use super::{
    family::{NatFamily, is_same_end},
    port::{self, Wanted},
    rewrite::End,
    table::{NatSystem, Sockets},
};
use crate::{
    DropReason as D, Res,
    ct::{
        CtEnv, Flow, Flows,
        entry::{Stage, is_within},
        key::{Asker, Rest},
        lifetime::lifetime,
    },
};

/// A masqueraded flow: its two real ends. Of an echo both ports are the identifier.
#[derive(Clone, Copy)]
pub struct Pair<F: NatFamily> {
    /// The pod.
    pub pod: End<F>,
    /// The end outside of the cluster.
    pub world: End<F>,
    /// IP protocol.
    pub proto: u32,
    /// Who asks, if it is an echo; the pod is the sender.
    pub asker: Asker,
}

impl<F: NatFamily> Pair<F> {
    /// Of a packet from the pod, as conntrack reads it.
    #[inline(always)]
    pub fn sent(pod: &F::Addr, world: &F::Addr, rest: Rest) -> Self {
        Self {
            pod: End { addr: *pod, port: rest.ports.src() },
            world: End { addr: *world, port: rest.ports.dst() },
            proto: rest.proto,
            asker: rest.asker,
        }
    }
    /// Of a packet to the pod, as conntrack reads it.
    #[inline(always)]
    pub fn received(pod: &F::Addr, world: &F::Addr, rest: Rest) -> Self {
        Self::sent(pod, world, turned(rest))
    }
    /// All ones of an echo, else 0: no branch, which the verifier would walk all that follows once for each.
    #[inline(always)]
    fn echo(&self) -> u16 {
        let code = self.asker.code();
        0u16.wrapping_sub(((code | code >> 1) & 1) as u16)
    }
    /// For conntrack's key.
    #[inline(always)]
    pub fn rest(&self) -> Rest {
        let (pod, world, echo) = (self.pod.port, self.world.port, self.echo());
        let world = Be16::new((world.raw() & !echo | pod.raw() & echo).to_ne_bytes());
        Rest { ports: Ports::new(pod, world), proto: self.proto, asker: self.asker }
    }
    /// Conntrack's key, and whether the pod is the end that comes last in it.
    #[inline(always)]
    pub fn flow(&self) -> (F::CtKey, bool) {
        F::ct_key(&self.pod.addr, &self.world.addr, self.rest())
    }
    /// The key of what the world writes to it at this end of the node.
    #[inline(always)]
    pub fn key(&self, node: &End<F>) -> F::Key {
        let port = Be16::new((self.world.port.raw() & !self.echo()).to_ne_bytes());
        F::key(&End { addr: self.world.addr, port }, node, self.proto)
    }
}

/// What conntrack reads of a packet, seen from its receiver.
#[inline(always)]
pub fn turned(rest: Rest) -> Rest {
    let code = rest.asker.code();
    // The sender and the receiver, 1 and 2, are exchanged.
    let asker = Asker::of((code << 1) & 2 | code >> 1);
    Rest { ports: Ports::new(rest.ports.dst(), rest.ports.src()), proto: rest.proto, asker }
}

/// Who has a translation.
#[derive(Clone, Copy)]
pub enum Holder<F: NatFamily> {
    /// This pod.
    Pod(End<F>),
    /// The node itself, since then.
    Node(u64),
}

/// Who has a translation: one without a pod is the node's own.
#[inline(always)]
pub fn holder<F: NatFamily>(back: &F::Back) -> Holder<F> {
    let (pod, made) = F::pod_end(back);
    holder_of(&pod, made)
}

/// Who has a translation to this end, made then: one without a pod is the node's own.
#[inline(always)]
fn holder_of<F: NatFamily>(pod: &End<F>, made: u64) -> Holder<F> {
    if F::is_same(&pod.addr, &bytemuck::Zeroable::zeroed()) { Holder::Node(made) } else { Holder::Pod(*pod) }
}

/// The flow, wherever it is: it may move from one table to the other between two look-ups.
#[inline(always)]
pub fn flow<'s, F: NatFamily, S: Flows<F>>(s: &'s S, key: &F::CtKey) -> Option<&'s Flow> {
    match s.flow(key) {
        None => match s.new_flow(key) {
            None => s.flow(key),
            found => found,
        },
        found => found,
    }
}

/// The flow, if it is not over.
#[inline(always)]
pub fn living<'s, F: NatFamily, S: CtEnv + Flows<F>>(s: &'s S, key: &F::CtKey) -> Option<&'s Flow> {
    let flow = flow::<F, S>(s, key)?;
    if is_within(s.jiffies(), flow.seen.get(), flow.lifetime.get()) { Some(flow) } else { None }
}

/// Whether the translation to this end, made then, belongs to a flow that may still be used: one that ends in this second is, as another CPU may just renew it.
#[inline(always)]
pub fn lives<F: NatFamily, S: NatSystem<F>>(s: &S, pair: &Pair<F>, pod: &End<F>, made: u64) -> bool {
    let Some(cfg) = s.ct_config() else { return true };
    match holder_of::<F>(pod, made) {
        Holder::Node(made) => is_within(s.jiffies(), made, claim(cfg, pair.rest())),
        Holder::Pod(pod) => {
            let (key, _) = Pair { pod, ..*pair }.flow();
            flow::<F, S>(s, &key)
                .is_some_and(|f| is_within(s.jiffies(), f.seen.get(), f.lifetime.get().saturating_add(cfg.second)))
        }
    }
}

/// For how long the node keeps what it has taken back, if it does not use it: as long as a flow that nobody has answered yet.
#[inline(always)]
fn claim(cfg: &CtConfig, rest: Rest) -> u32 {
    lifetime(cfg, rest, Stage::Handshake, |n| n)
}

/// Whether the entry under this key is this pod's.
#[inline(always)]
pub fn is_of<F: NatFamily, S: NatSystem<F>>(s: &S, key: &F::Key, pod: &End<F>) -> bool {
    s.back(key).is_some_and(|b| is_same_end(&F::pod_end(&b).0, pod))
}

/// A flow that this very packet has begun was seen in this jiffy or, if that has just ended, in the last one.
const BEGUN: u32 = 2;

/// What is known of how a pod's packet leaves.
#[derive(Clone, Copy)]
pub enum Known<F: NatFamily> {
    /// As itself: the world has opened its flow, by the pod's own address.
    Itself,
    /// As this end of the node.
    As(End<F>),
    /// As nothing yet: [`choose`](port::choose) finds an end.
    Nothing,
}

/// As what a packet from a pod to the world appears there, `node` being the address to use.
///
/// The packet has been tracked before: so its flow lives, and nobody else takes what is its.
///
/// # Errors
/// [`NatOrphan`](D::NatOrphan): the packet is of no flow that is known.
#[inline(always)]
pub fn forth<F, S>(s: &S, pair: &Pair<F>, node: &F::Addr) -> Res<Known<F>>
where
    F: NatFamily,
    S: NatSystem<F>,
{
    let (key, from_hi) = pair.flow();
    let Some(flow) = living::<F, S>(s, &key) else { return Err(D::NatOrphan) };
    if (flow.verdicts.get() & CT_HI_OPENED != 0) != from_hi {
        return Ok(Known::Itself);
    }
    if is_within(s.jiffies(), flow.seen.get(), BEGUN) {
        s.fence();
    }
    if let Some(said) = s.forth(&key).map(|f| F::node_end(&f))
        && F::is_same(&said.addr, node)
        && is_of::<F, S>(s, &pair.key(&said), &pair.pod)
    {
        return Ok(Known::As(said));
    }
    Ok(Known::Nothing)
}

/// What a flow of which nothing is known is to get.
///
/// # Errors
/// [`NatOrphan`](D::NatOrphan): the packet is of no flow that is known.
#[inline(always)]
pub fn wanted<F: NatFamily, S: NatSystem<F>>(s: &S, pair: &Pair<F>) -> Res<Wanted> {
    let (key, _) = pair.flow();
    let Some(flow) = living::<F, S>(s, &key) else { return Err(D::NatOrphan) };
    let account = flow.charged.get();
    match s.forth(&key) {
        Some(said) => Ok(Wanted::new(Some(F::node_end(&said).port), account)),
        None => Ok(Wanted::new(None, account)),
    }
}

/// The pod's end that is meant by a packet from the world to the node, as conntrack reads it. `None`: the node itself.
///
/// # Errors
/// [`NatOrphan`](D::NatOrphan).
#[inline(always)]
pub fn back<F: NatFamily, S: NatSystem<F>>(s: &S, world: &F::Addr, node: &F::Addr, rest: Rest) -> Res<Option<End<F>>> {
    // The node's end stands for the pod's, which is no part of the key.
    let asked = Pair::<F>::received(node, world, rest);
    if rest.asker == Asker::SENDER {
        // A pod only asks; whom the world asks is the node.
        return Ok(None);
    }
    let Some(found) = s.back(&asked.key(&asked.pod)) else { return Ok(None) };
    let Holder::Pod(pod) = holder::<F>(&found) else { return Ok(None) };
    let (key, _) = Pair { pod, ..asked }.flow();
    if living::<F, S>(s, &key).is_none() {
        return Ok(None);
    }
    match s.forth(&key) {
        Some(said) if is_same_end(&F::node_end(&said), &asked.pod) => Ok(Some(pod)),
        _ => Err(D::NatOrphan),
    }
}

/// The key of what this packet from the world is to the node.
#[inline(always)]
fn key_of<F: NatFamily>(world: &F::Addr, node: &F::Addr, rest: Rest) -> F::Key {
    let asked = Pair::<F>::received(node, world, rest);
    asked.key(&asked.pod)
}

/// To which pod what the world sends to the node goes, as conntrack reads it. `None`: to the node itself. The node's own flows win, also those
/// that have begun since a pod's got their port: the pod's gives it up, and goes on under another one.
///
/// # Errors
/// As of [`back`].
#[inline(always)]
pub fn receiver<F: NatFamily, P, S: NatSystem<F> + Sockets<P, F>>(
    p: &mut P,
    s: &S,
    world: &F::Addr,
    node: &F::Addr,
    rest: Rest,
) -> Res<Option<End<F>>> {
    let pod = back(s, world, node, rest);
    if let Ok(None) = pod {
        return Ok(None);
    }
    let mut key = key_of::<F>(world, node, rest);
    if s.is_used(p, &key) {
        port::hand_over(s, &mut key);
        return Ok(None);
    }
    pod
}
