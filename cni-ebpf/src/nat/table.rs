//! What translation asks of maps and of the node's sockets.
use cni_common::maps::NatConfig;

use super::family::NatFamily;
use crate::ct::{CtEnv, Flows};

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
}

/// All that translation may ask for.
pub trait NatSystem<F: NatFamily>: NatEnv + Flows<F> + Translations<F> {}
impl<F: NatFamily, T: NatEnv + Flows<F> + Translations<F>> NatSystem<F> for T {}
