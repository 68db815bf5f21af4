//! What translation asks of maps and of the node's sockets.
use cni_common::maps::NatConfig;

use super::{
    family::NatFamily,
    port::{Try, Wanted},
};
use crate::{
    Res, Tables,
    ct::{Ask, CtEnv, Flows, Track},
    family::{Family, L3},
};

/// What became of an entry that was to be made where there is none.
#[repr(u64)]
#[derive(Clone, Copy, PartialEq, Eq)]
#[cfg_attr(not(target_arch = "bpf"), derive(Debug, PartialOrd, Ord))]
pub enum Entered {
    /// It is there.
    Done = 0,
    /// There is one already.
    Other = 1,
    /// There is no room.
    Full = 2,
}

/// What does not depend on the address family.
pub trait NatEnv: CtEnv {
    /// What the agent says; all zero until it has written it.
    fn nat_config(&self) -> Option<&NatConfig>;
    /// What was written before is seen by all other CPUs before anything is looked up after. On x86-64 `lock *(u64 *) += …` does that, on
    /// arm64 an atomic that fetches (Linux 5.12). A map's update alone does not: its store may wait in the CPU while a later look-up is answered.
    fn fence(&self);
}

/// The tables of one family. Entries are replaced whole, so a look-up gives a copy of one that was meant as it is.
pub trait Translations<F: NatFamily> {
    /// Who is meant by what the world writes.
    fn back(&self, key: &F::Key) -> Option<F::Back>;
    /// Enters that, unless there is one: of several CPUs that do so at a time one succeeds (`BPF_NOEXIST`).
    fn enter(&self, key: &F::Key, back: &F::Back) -> Entered;
    /// Replaces it; false: there was no memory, and the old one is there. Only who has the hold on the key may.
    fn exchange(&self, key: &F::Key, back: &F::Back) -> bool;
    /// Takes out a hold. Only who has entered it may.
    fn release(&self, hold: &F::Key);
    /// As what the flow appears outside.
    fn forth(&self, flow: &F::CtKey) -> Option<F::Forth>;
    /// Says so, unless something is said already.
    fn enter_forth(&self, flow: &F::CtKey, forth: &F::Forth) -> Entered;
    /// Says so, in the place of what was said.
    fn replace_forth(&self, flow: &F::CtKey, forth: &F::Forth) -> bool;
    /// Translations on an endpoint's account, those of flows that are over included until the agent takes them out, and counts anew. Several CPUs
    /// count at a time, so it may be a few off.
    fn translated(&self, endpoint: u32) -> u64;
    /// One more.
    fn count_translated(&self, endpoint: u32);
}

/// The sockets of the node; `P` is the packet, by whose device the kernel finds the namespace.
pub trait Sockets<P, F: NatFamily> {
    /// Whether a socket of the node, a listening or an unconnected one included, would receive what the world writes so: TCP and UDP
    /// (`bpf_sk_lookup_tcp`, `bpf_sk_lookup_udp`); of other protocols the kernel does not tell, and the answer is no.
    fn has_socket(&self, p: &mut P, key: &F::Key) -> bool;
    /// Whether one that the node has connected to just that end of the world would.
    fn is_connected(&self, p: &mut P, key: &F::Key) -> bool;
}

/// The node's routes; `P` is the packet, by whose device the kernel finds the namespace.
pub trait Ways<P, F: Family> {
    /// The device by which the node's stack would forward it, 0 if it would not, or if the kernel does not say which
    /// (`bpf_fib_lookup`). A next hop whose neighbour is not resolved is no obstacle.
    fn device(&self, p: &mut P, ip: &L3<F>) -> u32;
    /// The node's address under which pods leave by this device; `None`: they do not.
    fn leave(&self, ifindex: u32) -> Option<F::Addr>;
    /// Whether pods keep their address towards this one.
    fn is_spared(&self, a: &F::Addr) -> bool;
}

/// What is to be done with a packet that may have to be translated.
#[repr(u32)]
#[derive(Clone, Copy, PartialEq, Eq)]
#[cfg_attr(not(target_arch = "bpf"), derive(Debug))]
pub enum Step {
    /// It is not: it goes on as it is.
    Itself = 0,
    /// It is translated.
    Done = 1,
    /// Its flow needs an end of the node first.
    Choose = 2,
    /// It is an ICMP error, which is translated with the flow that it quotes.
    Error = 3,
}

/// The steps of translation, in the kernel each a global function: verified once, and with a stack of its own.
pub trait Masquerade<P, F: Family> {
    /// The device by which a pod's packet leaves under the node's address, or 0.
    fn way(&self, p: &mut P, ask: Ask) -> u32;
    /// Gives a pod's packet, which was tracked, the node's end.
    ///
    /// # Errors
    /// Why it is dropped. So below.
    fn translate(&self, p: &mut P, ask: Ask, by: u32) -> Res<Step>;
    /// Gives an ICMP error of a pod's the form that the world knows.
    ///
    /// # Errors
    /// As above.
    fn translate_error(&self, p: &mut P, ask: Ask) -> Res<Step>;
    /// What the packet's flow is to get.
    ///
    /// # Errors
    /// As above.
    fn wanted(&self, p: &mut P, ask: Ask) -> Res<Wanted>;
    /// See [`Attempts`](super::port::Attempts).
    ///
    /// # Errors
    /// As above.
    fn attempt(&self, p: &mut P, ask: Ask, by: u32, w: Wanted) -> Res<Try>;
    /// As above.
    ///
    /// # Errors
    /// As above.
    fn take_over(&self, p: &mut P, ask: Ask, by: u32, w: Wanted) -> Res<Try>;
    /// As above.
    ///
    /// # Errors
    /// As above.
    fn settle(&self, p: &mut P, ask: Ask, by: u32, w: Wanted) -> Res<Try>;
    /// Gives what the world sends to the node the pod's end, if it is a pod's.
    ///
    /// # Errors
    /// As above.
    fn arrive(&self, p: &mut P) -> Res<Step>;
    /// The same of an ICMP error.
    ///
    /// # Errors
    /// As above.
    fn arrive_error(&self, p: &mut P) -> Res<Step>;
}

/// All that translation may ask for.
pub trait NatSystem<F: NatFamily>: NatEnv + Flows<F> + Translations<F> {}
impl<F: NatFamily, T: NatEnv + Flows<F> + Translations<F>> NatSystem<F> for T {}

/// And all that its steps may.
pub trait NatNode<P, F: NatFamily>: NatSystem<F> + Tables<F> + Sockets<P, F> + Ways<P, F> + Track<P, F> {}
impl<P, F: NatFamily, T: NatSystem<F> + Tables<F> + Sockets<P, F> + Ways<P, F> + Track<P, F>> NatNode<P, F> for T {}
