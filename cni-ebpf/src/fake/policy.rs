//! The policy maps.
use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    net::IpAddr,
};

use cni_common::{
    drop::Outcome,
    event::{Blame as Said, DropEvent, Told, WOULD_BE},
    net::{Ip4, Ip6},
    policy::{
        HitKey, Holder, IDENTITY_OTHER, RULE_BITS, RULE_PORT_BITS, RULE_PROTO_BITS, RULES_ALLOW_ALL, RULES_BY_PORT,
        RULES_DENY_ALL, Rule, RuleKey, SET_AUDIT, SenderKey, VERDICT_ALLOW, VERDICT_AUDIT, VERDICT_DENY, is_by_port,
    },
    wire::{TCP, UDP},
};

use super::{Fake, holds};
use crate::{
    Packet, Tables,
    ct::Ask,
    event,
    family::{V4, V6},
    flow::way_to,
    policy::{Blame, Identities, Judged, Rules, Ruling},
};

/// What the agent writes.
#[derive(Clone, Debug)]
pub struct PolicyTables {
    /// Policy set and identity → rule set.
    pub peers: BTreeMap<(u32, u32), u32>,
    /// Bits of a rule's key, the key and what it says: of both maps.
    pub rules: Vec<(u32, RuleKey, Rule)>,
    /// IPv4 address → identity.
    pub identities4: BTreeMap<Ip4, Holder>,
    /// IPv6 address → identity.
    pub identities6: BTreeMap<Ip6, Holder>,
    /// Prefix length and IPv4 address → identity.
    pub blocks4: Vec<(u32, Ip4, u32)>,
    /// Prefix length and IPv6 address → identity.
    pub blocks6: Vec<(u32, Ip6, u32)>,
    /// Bits of a sender's key, the key and its identity.
    pub senders: Vec<(u32, SenderKey, u32)>,
    /// How often anybody was asked.
    pub asked: RefCell<u32>,
    /// What was said last of a packet besides its verdict.
    pub told: Cell<Told>,
    /// How often was judged so, by [`HitKey::number`].
    pub hits: RefCell<BTreeMap<u64, u64>>,
    /// What policies in audit mode have let pass since that was looked at: what was counted, and the event but for its time and endpoint.
    pub audited: RefCell<Vec<(Outcome, DropEvent)>>,
}

impl Default for PolicyTables {
    fn default() -> Self {
        Self {
            peers: BTreeMap::new(),
            rules: Vec::new(),
            identities4: BTreeMap::new(),
            identities6: BTreeMap::new(),
            blocks4: Vec::new(),
            blocks6: Vec::new(),
            senders: Vec::new(),
            asked: RefCell::default(),
            told: Cell::new(bytemuck::Zeroable::zeroed()),
            hits: RefCell::default(),
            audited: RefCell::default(),
        }
    }
}

impl Blame for Fake {
    fn blame(&self, at: u32, cookie: u32, class: u32) {
        self.policy.told.set(Told { blame: Said { at, cookie, class }, ..self.policy.told.get() });
    }
    fn ruled(&self, (egress_set, egress): (u32, Ruling), (ingress_set, ingress): (u32, Ruling)) {
        let (egress, ingress) = (egress.word(), ingress.word());
        self.policy.told.set(Told { egress, ingress, egress_set, ingress_set, ..self.policy.told.get() });
    }
}

impl Fake {
    /// How often was judged so.
    pub fn hits_of(&self, key: HitKey) -> u64 {
        self.policy.hits.borrow().get(&key.number()).copied().unwrap_or_default()
    }

    /// Counts which rules have decided, and reports which ends let a packet pass only because their policies are in audit mode.
    pub fn report<P: Packet>(&self, p: &P, met: &Ask, judged: Judged) {
        let Told { blame, egress, ingress, egress_set, ingress_set, .. } = self.policy.told.get();
        if judged.is_hit() {
            let mut hits = self.policy.hits.borrow_mut();
            let both =
                [(egress, egress_set), (ingress, ingress_set)].map(|(word, set)| Ruling::from_word(word).hit(set));
            both.into_iter().filter(|n| *n != 0).for_each(|n| *hits.entry(n).or_default() += 1);
        }
        for of_opener in [true, false] {
            let said = judged.audited(of_opener, blame.cookie);
            let Some((outcome, reason, cookie)) = said else { continue };
            let said = Said { at: met.l3() as u32, cookie, class: judged.class() };
            let mut e: DropEvent = bytemuck::Zeroable::zeroed();
            let point = met.point().expect("where it was met is known");
            event::describe(p, point as u8, reason as u8 | WOULD_BE, said, &mut e);
            self.policy.audited.borrow_mut().push((outcome, e));
        }
    }
}

impl Rules for Fake {
    fn rules_of(&self, set: u32, identity: u32) -> Option<u32> {
        *self.policy.asked.borrow_mut() += 1;
        self.policy.peers.get(&(set, identity)).copied()
    }
    fn port_rule(&self, key: &RuleKey) -> Option<&Rule> {
        let singles = self.policy.rules.iter().filter(|(bits, single, _)| is_by_port(single.rules, *bits));
        singles.map(|(_, single, rule)| (single, rule)).find(|(single, _)| *single == key).map(|(_, rule)| rule)
    }
    fn rule(&self, key: &RuleKey) -> Option<&Rule> {
        let prefixes = self.policy.rules.iter().filter(|(bits, prefix, _)| !is_by_port(prefix.rules, *bits));
        let covering = prefixes.filter(|(bits, prefix, _)| holds(*bits, prefix, key));
        covering.max_by_key(|(bits, ..)| *bits).map(|(.., rule)| rule)
    }
}

macro_rules! identities {
    ($family:ty, $address:ty, $identities:ident, $blocks:ident) => {
        impl Identities<$family> for Fake {
            fn holder(&self, a: &$address) -> Option<&Holder> {
                self.policy.$identities.get(a)
            }
            fn node(&self, a: &$address) -> Option<u32> {
                way_to::<$family, _>(self, a).map(|(node, _)| node)
            }
            fn sender(&self, key: &SenderKey) -> Option<u32> {
                let covering = self.policy.senders.iter().filter(|(bits, prefix, _)| holds(*bits, prefix, key));
                covering.max_by_key(|(bits, ..)| *bits).map(|(.., identity)| *identity)
            }
            fn block(&self, a: &$address) -> Option<u32> {
                let covering = self.policy.$blocks.iter().filter(|(bits, prefix, _)| holds(*bits, prefix, a));
                covering.max_by_key(|(bits, ..)| *bits).map(|(.., identity)| *identity)
            }
            fn is_inside(&self, a: &$address) -> bool {
                Tables::<$family>::cidr(self, a).is_some()
            }
            fn is_own(&self, a: &$address) -> bool {
                Tables::<$family>::own(self, a) != 0
            }
            fn is_service(&self, a: &$address) -> bool {
                Tables::<$family>::is_service(self, a)
            }
        }
    };
}
identities!(V4, Ip4, identities4, blocks4);
identities!(V6, Ip6, identities6, blocks6);

/// Policy set of the server's ingress in [`isolate`].
pub const SERVER_IN: u32 = 5;
/// Of the client's egress.
pub const CLIENT_OUT: u32 = 6;
/// Of the client's ingress.
pub const CLIENT_IN: u32 = 7;
/// Identities by role: the client, the server, pod 1 of another node, that node, and those who are outside and whom a policy names.
pub const CLIENT: u32 = 70;
/// See above.
pub const SERVER: u32 = 71;
/// See above.
pub const FAR: u32 = 72;
/// See above.
pub const NODE: u32 = 73;
/// See above.
pub const WORLD: u32 = 74;

/// Gives an address to who has this identity and label class.
pub fn hold(w: &mut Fake, who: IpAddr, identity: u32, class: u32) {
    let holder = Holder { identity, class };
    match who {
        IpAddr::V4(a) => w.policy.identities4.insert(a.into(), holder),
        IpAddr::V6(a) => w.policy.identities6.insert(a.into(), holder),
    };
}

/// Isolates both pods of [`world`](super::world::world()).
///
/// | who | may |
/// |---|---|
/// | the client to the server | TCP 80 and 32768 to 49151, UDP 53, TCP 443 but for its ingress |
/// | pod 1 of node 1 to the server | TCP 443, and all UDP |
/// | the client to pod 1 of node 1 | anything |
/// | the client to who is outside | TCP, but for port 53 |
/// | node 1, and who is outside, to the server | TCP 80 |
/// | pod 1 of node 1 to the client | nothing: a rule says so |
/// | anybody to the client | UDP 53 |
pub fn isolate(w: &mut Fake) {
    use super::world::{CLIENT_IFINDEX, client, outside, pod, server, underlay};
    let rules_of = [
        (SERVER_IN, IDENTITY_OTHER, RULES_DENY_ALL),
        (SERVER_IN, CLIENT, 16),
        (SERVER_IN, FAR, 17),
        (SERVER_IN, NODE, 18),
        (SERVER_IN, WORLD, 18),
        (CLIENT_OUT, IDENTITY_OTHER, RULES_DENY_ALL),
        (CLIENT_OUT, SERVER, 19),
        (CLIENT_OUT, FAR, RULES_ALLOW_ALL),
        (CLIENT_OUT, WORLD, 20),
        (CLIENT_IN, IDENTITY_OTHER, 21),
        (CLIENT_IN, FAR, 22),
    ];
    w.policy.peers.extend(rules_of.map(|(set, identity, rules)| ((set, identity), rules)));
    let whole = RULE_PORT_BITS;
    let entries = [
        (16, TCP, 80, whole, VERDICT_ALLOW),
        (16, TCP, 0x8000, RULE_PROTO_BITS + 2, VERDICT_ALLOW),
        (16, UDP, 53, whole, VERDICT_ALLOW),
        (17, TCP, 443, whole, VERDICT_ALLOW),
        (17, UDP, 0, RULE_PROTO_BITS, VERDICT_ALLOW),
        (18, TCP, 80, whole, VERDICT_ALLOW),
        (19, TCP, 80, whole, VERDICT_ALLOW),
        (19, TCP, 443, whole, VERDICT_ALLOW),
        (19, TCP, 0x8000, RULE_PROTO_BITS + 1, VERDICT_ALLOW),
        (19, UDP, 53, whole, VERDICT_ALLOW),
        (20, TCP, 0, RULE_PROTO_BITS, VERDICT_ALLOW),
        (20, TCP, 53, whole, VERDICT_DENY),
        (21, UDP, 53, whole, VERDICT_ALLOW),
        (22, 0, 0, RULE_BITS, VERDICT_DENY),
    ];
    for ((rules, proto, port, bits, verdict), cookie) in entries.into_iter().zip(1..) {
        let key = RuleKey { rules, proto, port: u16::to_be_bytes(port), pad: 0 };
        w.policy.rules.push((bits, key, Rule { verdict, cookie }));
    }
    for v6 in [false, true] {
        let known = [
            (client(v6), CLIENT),
            (server(v6), SERVER),
            (pod(v6, 1, 1), FAR),
            (underlay(v6, 0), NODE),
            (underlay(v6, 1), NODE),
        ];
        for (who, identity) in known {
            hold(w, who, identity, 0);
        }
        match outside(v6) {
            IpAddr::V4(a) => w.policy.blocks4.push((24, a.into(), WORLD)),
            IpAddr::V6(a) => w.policy.blocks6.push((64, a.into(), WORLD)),
        }
    }
    let ep = w.endpoints.get_mut(&CLIENT_IFINDEX).expect("the world has it");
    (ep.set_in, ep.set_out) = (CLIENT_IN, CLIENT_OUT);
    for who in [client as fn(bool) -> IpAddr, server] {
        let is_client = who(false) == client(false);
        let locals = match (who(false), who(true)) {
            (IpAddr::V4(a), IpAddr::V6(b)) => [w.v4.local.get_mut(&a.into()), w.v6.local.get_mut(&b.into())],
            _ => unreachable!("one of each family"),
        };
        for l in locals.into_iter().flatten() {
            (l.set_in, l.set_out) = if is_client { (CLIENT_IN, CLIENT_OUT) } else { (SERVER_IN, 0) };
        }
    }
}

/// Marks these rule sets of an [isolated](isolate) world, so that their single ports are in the hash.
pub fn put_by_port(w: &mut Fake, rule_sets: &[u32]) {
    for rules in w.policy.peers.values_mut().chain(w.policy.rules.iter_mut().map(|(_, key, _)| &mut key.rules)) {
        if rule_sets.contains(rules) {
            *rules |= RULES_BY_PORT;
        }
    }
}

/// Policy set of the client's egress in [`audit`].
pub const CLIENT_OUT_AUDITED: u32 = CLIENT_OUT | SET_AUDIT;

/// Puts policies of an [isolated](isolate) world in audit mode: all of the client's egress, and some of the server's ingress, so that what [`isolate`] lets the
/// client and pod 1 of node 1 send there passes and is reported. What is denied there stays denied.
pub fn audit(w: &mut Fake) {
    use super::world::{CLIENT_IFINDEX, client};
    let own: Vec<_> = w.policy.peers.extract_if((CLIENT_OUT, 0)..=(CLIENT_OUT, u32::MAX), |_, _| true).collect();
    w.policy.peers.extend(own.into_iter().map(|((_, identity), rules)| ((CLIENT_OUT_AUDITED, identity), rules)));
    for (_, key, rule) in &mut w.policy.rules {
        if [16, 17].contains(&key.rules) {
            rule.verdict = VERDICT_AUDIT;
        }
    }
    w.endpoints.get_mut(&CLIENT_IFINDEX).expect("the world has it").set_out = CLIENT_OUT_AUDITED;
    let (IpAddr::V4(a), IpAddr::V6(b)) = (client(false), client(true)) else { unreachable!("one of each family") };
    for local in [w.v4.local.get_mut(&a.into()), w.v6.local.get_mut(&b.into())].into_iter().flatten() {
        local.set_out = CLIENT_OUT_AUDITED;
    }
}
