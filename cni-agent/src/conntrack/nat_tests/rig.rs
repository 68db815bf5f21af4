//! A node whose pods are masqueraded, by the programs' own functions, and the agent's tables over its maps.
use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    io,
    net::IpAddr,
};

use bytemuck::bytes_of;
use cni_common::{
    maps::{CT_HI_OPENED, CtEntry},
    net::Be16,
    wire::TCP,
};
use cni_ebpf::{
    DropReason as D,
    ct::{
        key::{Asker, Rest},
        lifetime,
    },
    fake::{
        Fake,
        flows::{FlowTable, FlowTables},
        nat::{FromIp, NatTables, addr, end_of},
        world,
    },
    family::{V4, V6},
    nat::{End, Pair, family::is_same_end, receiver},
};

use crate::{
    conntrack::{
        nat::{Holds, Swept, remove, sweep},
        table::Table,
        translation::{Tables, Translated},
    },
    datapath::map::Contents,
};

pub(super) const HZ: u64 = 250;
/// The port that all want, and what an echo is known by.
pub(super) const PORT: Be16 = Be16::from_host(40_000);

pub(super) type Map = RefCell<BTreeMap<Vec<u8>, Vec<u8>>>;

/// The families, with what the programs' functions need a concrete one for.
pub(super) trait Tested: Translated<Addr: FromIp> {
    const IS_6: bool;
    fn flows(w: &Fake) -> &FlowTables;
    fn nat(w: &Fake) -> &NatTables;
    fn forth_of(w: &Fake, pair: &Pair<Self>, node: &Self::Addr) -> Result<Option<End<Self>>, D>;
    fn back_of(w: &Fake, node: End<Self>, pair: &Pair<Self>) -> Result<Option<End<Self>>, D>;
    /// The node has bound a socket to the port, and speaks to the same end of the world: what that answers takes the port from the pod.
    fn node_takes(w: &Fake, node: End<Self>, pair: &Pair<Self>) {
        let key = bytes_of(&pair.key(&node)).to_vec();
        Self::nat(w).used.borrow_mut().insert(key.clone());
        assert_eq!(Self::back_of(w, node, pair).map(|pod| pod.is_some()), Ok(false));
        Self::nat(w).used.borrow_mut().remove(&key);
    }
}
macro_rules! tested {
    ($family:ident, $is_6:literal, $ct:ident, $nat:ident) => {
        impl Tested for $family {
            const IS_6: bool = $is_6;
            fn flows(w: &Fake) -> &FlowTables {
                &w.$ct
            }
            fn nat(w: &Fake) -> &NatTables {
                &w.$nat
            }
            fn forth_of(w: &Fake, pair: &Pair<Self>, node: &Self::Addr) -> Result<Option<End<Self>>, D> {
                end_of(&mut (), w, pair, node)
            }
            fn back_of(w: &Fake, node: End<Self>, pair: &Pair<Self>) -> Result<Option<End<Self>>, D> {
                let answered = Pair { pod: node, ..*pair }.rest();
                let asker = if pair.asker == Asker::SENDER { Asker::RECEIVER } else { Asker::NONE };
                let ports = cni_common::net::Ports::new(answered.ports.dst(), answered.ports.src());
                receiver::<$family, _, _>(&mut (), w, &pair.world.addr, &node.addr, Rest { ports, asker, ..answered })
            }
        }
    };
}
tested!(V4, false, ct4, nat4);
tested!(V6, true, ct6, nat6);

/// What one of them does at which of the agent's steps.
pub(super) type Act<'a> = &'a dyn Fn(u32);

/// One table, of which the agent's steps are counted.
#[derive(Clone, Copy)]
pub(super) struct At<'a> {
    pub(super) on: On<'a>,
    pub(super) step: &'a Cell<u32>,
    pub(super) act: Act<'a>,
}
#[derive(Clone, Copy)]
pub(super) enum On<'a> {
    Flows(&'a FlowTable),
    Map(&'a Map, usize),
    Accounts(&'a RefCell<BTreeMap<u32, u64>>),
}

impl At<'_> {
    pub(super) fn step(&self) {
        (self.act)(self.step.get());
        self.step.set(self.step.get() + 1);
    }
    pub(super) fn all(&self) -> Contents {
        match self.on {
            On::Flows(flows) => flows.dump().into_iter().map(|(k, e)| (k, bytes_of(&e).to_vec())).collect(),
            On::Map(map, _) => map.borrow().clone(),
            On::Accounts(held) => {
                held.borrow().iter().map(|(k, n)| (k.to_ne_bytes().to_vec(), n.to_ne_bytes().to_vec())).collect()
            }
        }
    }
    pub(super) fn put(&self, key: &[u8], value: &[u8]) -> io::Result<()> {
        match self.on {
            On::Flows(_) => panic!("the sweep of translations writes no flow"),
            On::Map(map, room) => {
                if map.borrow().len() >= room && !map.borrow().contains_key(key) {
                    return Err(io::Error::from_raw_os_error(libc::E2BIG));
                }
                map.borrow_mut().insert(key.to_vec(), value.to_vec());
            }
            On::Accounts(held) => {
                let number =
                    (u32::from_ne_bytes(key.try_into().unwrap()), u64::from_ne_bytes(value.try_into().unwrap()));
                held.borrow_mut().insert(number.0, number.1);
            }
        }
        Ok(())
    }
}

impl Table for At<'_> {
    type Walk = Option<Vec<u8>>;

    fn walk(&self) -> Self::Walk {
        None
    }
    /// A lot is of two entries.
    fn lot(&self, walk: &mut Self::Walk, each: &mut dyn FnMut(&[u8], &[u8])) -> io::Result<bool> {
        self.step();
        let all = self.all();
        let mut rest = all.iter().filter(|(key, _)| walk.as_ref().is_none_or(|last| *key > last));
        let lot: Vec<_> = rest.by_ref().take(2).collect();
        lot.iter().for_each(|(key, value)| each(key, value));
        let more = rest.next().is_some();
        *walk = lot.last().map(|(key, _)| (*key).clone());
        Ok(more)
    }
    fn lookup(&self, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        self.step();
        Ok(self.all().remove(key))
    }
    fn delete(&self, key: &[u8]) -> io::Result<()> {
        self.step();
        match self.on {
            On::Flows(_) => panic!("the sweep of translations writes no flow"),
            On::Map(map, _) => drop(map.borrow_mut().remove(key)),
            On::Accounts(held) => drop(held.borrow_mut().remove(&u32::from_ne_bytes(key.try_into().unwrap()))),
        }
        Ok(())
    }
    fn update(&self, key: &[u8], value: &[u8]) -> io::Result<()> {
        self.step();
        self.put(key, value)
    }
    fn enter(&self, key: &[u8], value: &[u8]) -> io::Result<bool> {
        self.step();
        if self.all().contains_key(key) { Ok(false) } else { self.put(key, value).map(|()| true) }
    }
    fn dump(&self) -> io::Result<Contents> {
        self.step();
        Ok(self.all())
    }
}

/// A node whose pods are masqueraded.
pub(super) struct Node<F: Tested> {
    pub(super) w: Fake,
    address: F::Addr,
}

impl<F: Tested> Node<F> {
    pub(super) fn new() -> Self {
        Self { w: Fake::default(), address: addr(world::underlay(F::IS_6, 0)) }
    }
    pub(super) fn after(&self, seconds: u32) -> &Self {
        self.w.now.set(self.w.now.get() + u64::from(seconds) * HZ);
        self
    }
    /// A flow of this pod's.
    pub(super) fn pair(pod: u8, proto: u8, port: Be16) -> Pair<F> {
        let asker = if proto == F::ICMP { Asker::SENDER } else { Asker::NONE };
        let world_port = if asker == Asker::SENDER { port } else { Be16::from_host(443) };
        let pod = End { addr: addr(world::pod(F::IS_6, 0, pod)), port };
        Pair { pod, world: End { addr: addr(world::outside(F::IS_6)), port: world_port }, proto: proto.into(), asker }
    }
    pub(super) fn tcp(pod: u8) -> Pair<F> {
        Self::pair(pod, TCP, PORT)
    }
    /// A packet of it, which conntrack knows; the node's end under which it leaves.
    pub(super) fn sends(&self, pair: &Pair<F>) -> Result<End<F>, D> {
        let (key, from_hi) = pair.flow();
        let verdicts = if from_hi { CT_HI_OPENED } else { 0 };
        let charged = F::ip(&pair.pod.addr);
        let charged = match charged {
            IpAddr::V4(a) => a.octets()[3],
            IpAddr::V6(a) => a.octets()[15],
        };
        let lifetime = lifetime::HANDSHAKE * HZ as u32;
        let entry = CtEntry {
            verdicts,
            seen: self.w.now.get(),
            lifetime,
            charged: charged.into(),
            ..bytemuck::Zeroable::zeroed()
        };
        F::flows(&self.w).new.replace(bytes_of(&key), &entry);
        F::forth_of(&self.w, pair, &self.address).map(|end| end.expect("is masqueraded"))
    }
    pub(super) fn port(&self, pair: &Pair<F>) -> u16 {
        self.sends(pair).expect("leaves").port.to_host()
    }
    pub(super) fn end(&self, port: u16) -> End<F> {
        End { addr: self.address, port: Be16::from_host(port) }
    }
    /// Whether the answer to what left under this port gets to the pod.
    pub(super) fn is_answered(&self, pair: &Pair<F>, port: u16) -> bool {
        F::back_of(&self.w, self.end(port), pair).is_ok_and(|pod| pod.is_some_and(|pod| is_same_end(&pod, &pair.pod)))
    }
    pub(super) fn tables<'a>(&'a self, step: &'a Cell<u32>, act: Act<'a>) -> Tables<At<'a>> {
        let (flows, nat) = (F::flows(&self.w), F::nat(&self.w));
        let at = |on| At { on, step, act };
        Tables {
            flows: at(On::Flows(&flows.flows)),
            new: at(On::Flows(&flows.new)),
            back: at(On::Map(&nat.back, nat.room)),
            forth: at(On::Map(&nat.forth, nat.room)),
            accounts: at(On::Accounts(&nat.held)),
        }
    }
    pub(super) fn sweep_with(&self, before: &Holds, act: Act<'_>) -> (Swept, u32) {
        let step = Cell::new(0);
        let tables = self.tables(&step, act);
        let now = || Ok(self.w.now.get());
        let swept = sweep::<F, _>(&tables, &self.w.ct_config, before, now, |_| true).unwrap().expect("goes through");
        (swept, step.get())
    }
    pub(super) fn sweep(&self) -> Swept {
        self.sweep_with(&Holds::new(), &|_| {}).0
    }
    pub(super) fn remove(&self, pod: u8) -> u64 {
        let step = Cell::new(0);
        let gone = world::pod(F::IS_6, 0, pod);
        remove::<F, _>(&self.tables(&step, &|_| {}), self.w.now.get(), &|a| a == gone).unwrap()
    }
    /// Entries by what the world writes, and by flow.
    pub(super) fn entries(&self) -> (usize, usize) {
        let nat = F::nat(&self.w);
        (nat.back.borrow().len(), nat.forth.borrow().len())
    }
    pub(super) fn has_hold(&self) -> bool {
        F::nat(&self.w).back.borrow().keys().any(|k| F::outside(&bytemuck::pod_read_unaligned(k)).is_hold)
    }
    pub(super) fn accounts(&self) -> Vec<(u32, u64)> {
        F::nat(&self.w).held.borrow().iter().map(|(id, n)| (*id, *n)).collect()
    }
}
