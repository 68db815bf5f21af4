//! What translation asks of packets and maps.
use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use bytemuck::{Pod, bytes_of};
use cni_common::{
    maps::NatConfig,
    net::{Be16, Ip4, Ip6},
    schema::MAX_TRANSLATIONS,
};

use super::{Fake, Frame, holds};
use crate::{
    DropReason as D, Packet, Res,
    ct::Ask,
    family::{Family, L3, V4, V6},
    nat::{
        End, Entered, Leave, Masquerade, Mend, NatEnv, NatFamily, NatSystem, Pair, Sockets, Step, Translations, Ways,
        entry::{self, Known},
        port::{self, Attempts, Try, Wanted},
        rewrite::Cover,
        sum::Diff,
        way,
    },
};

/// As `bpf_l4_csum_replace` does it.
impl Mend for Frame {
    fn mend(&mut self, at: usize, diff: u32, cover: Cover) -> Res<()> {
        let field: Be16 = self.read(at)?;
        if cover.may_be_absent() && field == Be16::ZERO {
            return Ok(());
        }
        let mended = match (self.partial, cover.is_pseudo()) {
            (false, _) => Diff::of(diff).apply(field),
            (true, true) => Diff::of(diff).add_to(field),
            (true, false) => field,
        };
        let absent = cover.may_be_absent() && mended == Be16::ZERO;
        self.write(at, if absent { Be16::new([0xff; 2]) } else { mended })
    }
}

/// The tables of one family, by the bytes of their keys.
#[derive(Clone, Debug)]
pub struct NatTables {
    /// By what the world writes.
    pub back: RefCell<BTreeMap<Vec<u8>, Vec<u8>>>,
    /// By flow.
    pub forth: RefCell<BTreeMap<Vec<u8>, Vec<u8>>>,
    /// Translations by the endpoint on whose account they are.
    pub held: RefCell<BTreeMap<u32, u64>>,
    /// What sockets of the node would receive.
    pub sockets: RefCell<BTreeSet<Vec<u8>>>,
    /// What those would that are more than listening.
    pub used: RefCell<BTreeSet<Vec<u8>>>,
    /// Entries of each.
    pub room: usize,
}
impl Default for NatTables {
    fn default() -> Self {
        Self {
            back: RefCell::default(),
            forth: RefCell::default(),
            held: RefCell::default(),
            sockets: RefCell::default(),
            used: RefCell::default(),
            room: MAX_TRANSLATIONS as usize,
        }
    }
}

/// The end as which a pod's packet appears in the world, found if there is none; `None`: itself.
pub fn end_of<F, P, S>(p: &mut P, s: &S, pair: &Pair<F>, node: &F::Addr) -> Res<Option<End<F>>>
where
    F: NatFamily,
    S: NatSystem<F> + Sockets<P, F>,
{
    Ok(match entry::forth(s, pair, node)? {
        Known::Itself => None,
        Known::As(end) => Some(end),
        Known::Nothing => {
            let wanted = entry::wanted(s, pair)?;
            port::choose(&mut There { p, s, pair, node }, wanted)?;
            match entry::forth(s, pair, node)? {
                Known::As(end) => Some(end),
                _ => return Err(D::NatOrphan),
            }
        }
    })
}

/// A flow that is to leave under an address.
struct There<'a, F: NatFamily, P, S> {
    p: &'a mut P,
    s: &'a S,
    pair: &'a Pair<F>,
    node: &'a F::Addr,
}
impl<F: NatFamily, P, S: NatSystem<F> + Sockets<P, F>> Attempts for There<'_, F, P, S> {
    fn attempt(&mut self, w: Wanted) -> Res<Try> {
        port::attempt(self.p, self.s, self.pair, self.node, w)
    }
    fn take_over(&mut self, w: Wanted) -> Res<Try> {
        port::take_over(self.s, self.pair, self.node, w)
    }
    fn settle(&mut self, w: Wanted) -> Res<Try> {
        port::settle(self.p, self.s, self.pair, self.node, w)
    }
}

type Map = RefCell<BTreeMap<Vec<u8>, Vec<u8>>>;

fn get<K: Pod, V: Pod>(map: &Map, key: &K) -> Option<V> {
    map.borrow().get(bytes_of(key)).map(|v| bytemuck::pod_read_unaligned(v))
}
fn enter<K: Pod, V: Pod>(map: &Map, room: usize, key: &K, value: &V) -> Entered {
    let mut map = map.borrow_mut();
    if map.contains_key(bytes_of(key)) {
        return Entered::Other;
    }
    if map.len() >= room {
        return Entered::Full;
    }
    map.insert(bytes_of(key).to_vec(), bytes_of(value).to_vec());
    Entered::Done
}
/// `BPF_ANY`.
fn put<K: Pod, V: Pod>(map: &Map, room: usize, key: &K, value: &V) -> bool {
    let mut map = map.borrow_mut();
    let fits = map.len() < room || map.contains_key(bytes_of(key));
    if fits {
        map.insert(bytes_of(key).to_vec(), bytes_of(value).to_vec());
    }
    fits
}

impl NatEnv for Fake {
    fn nat_config(&self) -> Option<&NatConfig> {
        Some(&self.nat_config)
    }
    /// There is one CPU.
    fn fence(&self) {}
}

macro_rules! translations {
    ($family:ty, $tables:ident, $maps:ident) => {
        impl Translations<$family> for Fake {
            fn back(&self, key: &<$family as NatFamily>::Key) -> Option<<$family as NatFamily>::Back> {
                get(&self.$tables.back, key)
            }
            fn enter(&self, key: &<$family as NatFamily>::Key, back: &<$family as NatFamily>::Back) -> Entered {
                enter(&self.$tables.back, self.$tables.room, key, back)
            }
            fn exchange(&self, key: &<$family as NatFamily>::Key, back: &<$family as NatFamily>::Back) -> bool {
                put(&self.$tables.back, self.$tables.room, key, back)
            }
            fn release(&self, hold: &<$family as NatFamily>::Key) {
                self.$tables.back.borrow_mut().remove(bytes_of(hold));
            }
            fn forth(&self, flow: &<$family as Family>::CtKey) -> Option<<$family as NatFamily>::Forth> {
                get(&self.$tables.forth, flow)
            }
            fn enter_forth(&self, flow: &<$family as Family>::CtKey, forth: &<$family as NatFamily>::Forth) -> Entered {
                enter(&self.$tables.forth, self.$tables.room, flow, forth)
            }
            fn replace_forth(&self, flow: &<$family as Family>::CtKey, forth: &<$family as NatFamily>::Forth) -> bool {
                put(&self.$tables.forth, self.$tables.room, flow, forth)
            }
            fn translated(&self, endpoint: u32) -> u64 {
                self.$tables.held.borrow().get(&endpoint).copied().unwrap_or(0)
            }
            fn count_translated(&self, endpoint: u32) {
                *self.$tables.held.borrow_mut().entry(endpoint).or_default() += 1;
            }
        }
        impl<P> Sockets<P, $family> for Fake {
            fn has_socket(&self, _: &mut P, key: &<$family as NatFamily>::Key) -> bool {
                self.$tables.sockets.borrow().contains(bytes_of(key))
            }
            fn is_used(&self, _: &mut P, key: &<$family as NatFamily>::Key) -> bool {
                self.$tables.used.borrow().contains(bytes_of(key))
            }
        }
        impl<P> Ways<P, $family> for Fake {
            fn device(&self, _: &mut P, _: &L3<$family>) -> u32 {
                self.$maps.default_route
            }
            fn leave(&self, ifindex: u32) -> Option<Leave<$family>> {
                self.$maps.leave.get(&ifindex).map(|(addr, mtu)| Leave { addr: *addr, mtu: *mtu })
            }
            fn is_spared(&self, a: &<$family as Family>::Addr) -> bool {
                self.$maps.spared.iter().chain(&self.$maps.services).any(|(len, prefix)| holds(*len, prefix, a))
            }
        }
        impl<P: Mend> Masquerade<P, $family> for Fake {
            fn way(&self, p: &mut P, ask: Ask) -> u32 {
                way::way::<$family, _, _>(p, self, &ask)
            }
            fn mtu(&self, p: &mut P) -> u32 {
                way::mtu::<$family, _, _>(p, self)
            }
            fn translate(&self, p: &mut P, ask: Ask, by: u32) -> Res<Step> {
                way::translate::<$family, _, _>(p, self, &ask, by)
            }
            fn translate_error(&self, p: &mut P, ask: Ask) -> Res<Step> {
                way::translate_error::<$family, _, _>(p, self, &ask)
            }
            fn wanted(&self, p: &mut P, ask: Ask) -> Res<Wanted> {
                way::wanted::<$family, _, _>(p, self, &ask)
            }
            fn attempt(&self, p: &mut P, ask: Ask, by: u32, w: Wanted) -> Res<Try> {
                way::attempt::<$family, _, _>(p, self, &ask, by, w)
            }
            fn take_over(&self, p: &mut P, ask: Ask, by: u32, w: Wanted) -> Res<Try> {
                way::take_over::<$family, _, _>(p, self, &ask, by, w)
            }
            fn settle(&self, p: &mut P, ask: Ask, by: u32, w: Wanted) -> Res<Try> {
                way::settle::<$family, _, _>(p, self, &ask, by, w)
            }
            fn arrive(&self, p: &mut P) -> Res<Step> {
                way::arrive::<$family, _, _>(p, self)
            }
            fn arrive_error(&self, p: &mut P) -> Res<Step> {
                way::arrive_error::<$family, _, _>(p, self)
            }
        }
    };
}
translations!(V4, nat4, v4);
translations!(V6, nat6, v6);

/// Addresses of a family, from text.
pub trait FromIp: Sized {
    /// `None`: of the other family.
    fn from_ip(a: IpAddr) -> Option<Self>;
}
impl FromIp for Ip4 {
    fn from_ip(a: IpAddr) -> Option<Self> {
        match a {
            IpAddr::V4(a) => Some(a.into()),
            IpAddr::V6(_) => None,
        }
    }
}
impl FromIp for Ip6 {
    fn from_ip(a: IpAddr) -> Option<Self> {
        match a {
            IpAddr::V6(a) => Some(a.into()),
            IpAddr::V4(_) => None,
        }
    }
}
/// The same, where the family is known.
pub fn addr<A: FromIp>(a: IpAddr) -> A {
    A::from_ip(a).unwrap_or_else(|| panic!("{a} is of the other family"))
}
