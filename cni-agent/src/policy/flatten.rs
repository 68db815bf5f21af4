//! From the policies that hold for a pod in one direction, and what they see in a peer, to entries of which one decides. Pure.
//!
//! Tiers, priorities, the order of rules, unions and denials end here, and what policies in audit mode would change: for each protocol every port gets one decision.
use cni_common::{
    policy::{RULE_BITS, RULE_PROTO_BITS},
    wire,
};

use super::{
    objects::{Action, PortMatch},
    ports::{Space, prefixes},
};
use crate::tables::{NamedPort, Protocol};

/// Who a clause is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Who {
    /// Everyone.
    Any,
    /// Whoever meets any of these criteria; indices into the set's list.
    Of(Vec<usize>),
}

/// One rule of a policy, compiled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Clause {
    /// What it does.
    pub action: Action,
    /// With whom.
    pub who: Who,
    /// On which ports; `None` for all traffic.
    pub ports: Option<Vec<PortMatch>>,
    /// Its policy is in audit mode: nobody obeys it.
    pub audited: bool,
    /// Names the rule.
    pub cookie: u32,
}

/// All policies of a policy set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Program {
    /// Admin tier, in the order in which the first match decides.
    pub admin: Vec<Clause>,
    /// Whether a NetworkPolicy isolates the pod in this direction.
    pub isolated: bool,
    /// Whether one in audit mode would.
    pub would_isolate: bool,
    /// Whether any policy is in audit mode.
    pub audits: bool,
    /// What NetworkPolicies allow.
    pub network: Vec<Clause>,
    /// Baseline tier, in the order in which the first match decides.
    pub baseline: Vec<Clause>,
}

/// What a set's policies see in a peer. Peers with equal views are treated alike.
pub struct View<'a> {
    /// Whether the peer meets each criterion of the set.
    pub meets: &'a dyn Fn(usize) -> bool,
    /// The named ports of the pod that receives the flow; none if it is no pod.
    pub ports: &'a [NamedPort],
}

/// What becomes of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// It may not pass.
    Deny,
    /// It may pass, and would not if no policy were in audit mode.
    Audit,
    /// It may pass.
    Allow,
}

/// What becomes of a flow, and the rule that says so, of [`Verdict::Audit`] the one that would deny it; cookie 0 is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Decision {
    /// What becomes of it.
    pub verdict: Verdict,
    /// Names the rule.
    pub cookie: u32,
}
impl Decision {
    const ALLOW: Self = Self { verdict: Verdict::Allow, cookie: 0 };
    const DENY: Self = Self { verdict: Verdict::Deny, cookie: 0 };
}

/// An entry of the map of rules, but for the rule set's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Entry {
    /// Bits of its prefix.
    pub bits: u32,
    /// IP protocol, 0 when absent.
    pub proto: u8,
    /// Port, 0 when absent.
    pub port: u16,
    /// What it says.
    pub decision: Decision,
}

/// A rule set's content.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Content {
    /// All may pass, and no rule says so.
    AllowAll,
    /// Nothing may, and no rule says so.
    DenyAll,
    /// As the entries say; nothing else may.
    Entries(Box<[Entry]>),
}

/// How far a port has come through the tiers.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Cell {
    Open,
    /// A rule has said Pass: open again in the next tier.
    Passed,
    Final(Decision),
}

/// The protocols that rules tell apart, with their IP numbers, then all others.
const PROTOCOLS: [(Option<Protocol>, u8); 4] =
    [(Some(Protocol::Tcp), wire::TCP), (Some(Protocol::Udp), wire::UDP), (Some(Protocol::Sctp), wire::SCTP), (None, 0)];

/// Flattens a program for one view.
pub fn flatten(program: &Program, view: &View<'_>) -> Content {
    let mut cells = decide(program, view, Obeyed::Enforced);
    if program.audits {
        for (space, all) in cells.iter_mut().zip(decide(program, view, Obeyed::All)) {
            for (first, last, full) in all.pieces() {
                space.paint(first, last, |enforced| audited(enforced, full));
            }
        }
    }
    entries(&cells)
}

/// Which policies are taken for obeyed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Obeyed {
    /// Those that are not in audit mode.
    Enforced,
    /// All.
    All,
}
impl Obeyed {
    fn clauses(self, all: &[Clause]) -> impl Iterator<Item = &Clause> {
        all.iter().filter(move |c| self == Self::All || !c.audited)
    }
}

fn decide(program: &Program, view: &View<'_>, obeyed: Obeyed) -> [Space<Cell>; 4] {
    let mut cells = PROTOCOLS.map(|_| Space::new(Cell::Open));
    tier(&mut cells, obeyed.clauses(&program.admin), view);
    if program.isolated || (obeyed == Obeyed::All && program.would_isolate) {
        // Rules without ports first: the order of a union is free, and so what they cover is one piece.
        let (wide, narrow): (Vec<_>, Vec<_>) = obeyed.clauses(&program.network).partition(|c| c.ports.is_none());
        wide.into_iter().chain(narrow).for_each(|c| clause(&mut cells, c, view));
        finish(&mut cells, Decision::DENY);
    } else {
        tier(&mut cells, obeyed.clauses(&program.baseline), view);
        finish(&mut cells, Decision::ALLOW);
    }
    cells
}

/// What is enforced, unless it lets pass what all policies together would deny.
fn audited(enforced: Cell, full: Cell) -> Cell {
    match (enforced, full) {
        (
            Cell::Final(Decision { verdict: Verdict::Allow, .. }),
            Cell::Final(Decision { verdict: Verdict::Deny, cookie }),
        ) => Cell::Final(Decision { verdict: Verdict::Audit, cookie }),
        _ => enforced,
    }
}

fn tier<'a>(cells: &mut [Space<Cell>; 4], clauses: impl Iterator<Item = &'a Clause>, view: &View<'_>) {
    for c in clauses {
        clause(cells, c, view);
    }
    for space in cells {
        space.paint(0, u16::MAX, |cell| if cell == Cell::Passed { Cell::Open } else { cell });
    }
}

fn clause(cells: &mut [Space<Cell>; 4], clause: &Clause, view: &View<'_>) {
    if !meets(clause, view) {
        return;
    }
    let to = match clause.action {
        Action::Accept => Cell::Final(Decision { verdict: Verdict::Allow, cookie: clause.cookie }),
        Action::Deny => Cell::Final(Decision { verdict: Verdict::Deny, cookie: clause.cookie }),
        Action::Pass => Cell::Passed,
    };
    let first_match = |cell| if cell == Cell::Open { to } else { cell };
    for ((protocol, _), space) in PROTOCOLS.iter().zip(cells) {
        match &clause.ports {
            None => space.paint(0, u16::MAX, first_match),
            Some(list) => {
                for (first, last) in list.iter().flat_map(|m| ranges(m, *protocol, view.ports)) {
                    space.paint(first, last, first_match);
                }
            }
        }
    }
}

fn finish(cells: &mut [Space<Cell>; 4], rest: Decision) {
    for space in cells {
        space.paint(0, u16::MAX, |cell| if let Cell::Final(_) = cell { cell } else { Cell::Final(rest) });
    }
}

/// Whether a clause is about the peer.
fn meets(clause: &Clause, view: &View<'_>) -> bool {
    match &clause.who {
        Who::Any => true,
        Who::Of(criteria) => criteria.iter().any(|c| (view.meets)(*c)),
    }
}

/// The ranges of a protocol's ports that an entry of a rule covers.
fn ranges(entry: &PortMatch, of: Option<Protocol>, named: &[NamedPort]) -> Vec<(u16, u16)> {
    match entry {
        PortMatch::Range { protocol, first, last } if Some(*protocol) == of => vec![(*first, *last)],
        PortMatch::Range { .. } => Vec::new(),
        PortMatch::Named { protocol, name } => named
            .iter()
            .filter(|p| p.name == *name && Some(p.protocol) == of && protocol.is_none_or(|want| want == p.protocol))
            .map(|p| (p.port, p.port))
            .collect(),
    }
}

fn entries(cells: &[Space<Cell>; 4]) -> Content {
    let decision = |cell| if let Cell::Final(d) = cell { d } else { Decision::DENY };
    let whole: Vec<Decision> = cells.iter().flat_map(|s| s.pieces().map(|(.., c)| decision(c))).collect();
    // What a rule allows has an entry that names it, so that it is counted.
    if whole.iter().all(|d| *d == Decision::ALLOW) {
        return Content::AllowAll;
    }
    if whole.iter().all(|d| *d == Decision::DENY) {
        return Content::DenyAll;
    }
    // What holds for other protocols holds, by the shortest prefix, for all of them unless a longer one says otherwise.
    let base = cells[3].uniform().map_or(Decision::DENY, decision);
    let mut all = Vec::new();
    if base != Decision::DENY {
        all.push(Entry { bits: RULE_BITS, proto: 0, port: 0, decision: base });
    }
    for ((_, proto), space) in PROTOCOLS.iter().zip(cells).take(3) {
        let pieces: Vec<(u16, u16, Decision)> = space.pieces().map(|(a, b, c)| (a, b, decision(c))).collect();
        let common = commonest(&pieces, base);
        if common != base {
            all.push(Entry { bits: RULE_PROTO_BITS, proto: *proto, port: 0, decision: common });
        }
        for (first, last, d) in pieces.into_iter().filter(|(.., d)| *d != common) {
            let each = prefixes(first, last).into_iter();
            all.extend(each.map(|(port, bits)| Entry {
                bits: RULE_PROTO_BITS + u32::from(bits),
                proto: *proto,
                port,
                decision: d,
            }));
        }
    }
    Content::Entries(all.into())
}

/// The decision that costs the most entries: it is written once, as the protocol's own. Without that, `base` holds for free.
fn commonest(pieces: &[(u16, u16, Decision)], base: Decision) -> Decision {
    let cost = |of: Decision| -> usize {
        pieces.iter().filter(|(.., d)| *d == of).map(|(a, b, _)| prefixes(*a, *b).len()).sum()
    };
    let dearest = pieces.iter().map(|(.., d)| *d).max_by_key(|d| (cost(*d), *d)).unwrap_or(base);
    // Its own entry must save more than one.
    if cost(dearest) > cost(base) + 1 || cost(base) == 0 { dearest } else { base }
}

/// A clause that was asked about a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asked<'a> {
    /// The clause.
    pub clause: &'a Clause,
    /// It is about the peer.
    pub peer: bool,
    /// It is about the protocol and port.
    pub port: bool,
}

/// What each clause says of one flow, tier by tier (Admin, NetworkPolicy, Baseline), whether or not it comes to it: for people.
pub fn ask<'a>(program: &'a Program, view: &View<'_>, proto: u8, port: u16) -> [Vec<Asked<'a>>; 3] {
    let of = PROTOCOLS.iter().find(|(p, n)| p.is_some() && *n == proto).and_then(|(p, _)| *p);
    let covers = |clause: &Clause| {
        clause.ports.as_ref().is_none_or(|list| {
            list.iter()
                .flat_map(|m| ranges(m, of, view.ports))
                .any(|(first, last)| of.is_some() && first <= port && port <= last)
        })
    };
    [&program.admin, &program.network, &program.baseline]
        .map(|tier| tier.iter().map(|c| Asked { clause: c, peer: meets(c, view), port: covers(c) }).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(protocol: Protocol, first: u16, last: u16) -> PortMatch {
        PortMatch::Range { protocol, first, last }
    }
    fn clause(action: Action, ports: Option<Vec<PortMatch>>, cookie: u32) -> Clause {
        Clause { action, who: Who::Any, ports, audited: false, cookie }
    }
    fn flat(program: &Program) -> Content {
        flatten(program, &View { meets: &|_| true, ports: &[] })
    }
    /// What the longest prefix says.
    fn decision(content: &Content, proto: u8, port: u16) -> Decision {
        let Content::Entries(all) = content else {
            return if *content == Content::AllowAll { Decision::ALLOW } else { Decision::DENY };
        };
        let covers = |e: &&Entry| {
            (e.bits == RULE_BITS || e.proto == proto) && {
                let rest = 16 - e.bits.saturating_sub(RULE_PROTO_BITS);
                u32::from(port) >> rest == u32::from(e.port) >> rest
            }
        };
        all.iter().filter(covers).max_by_key(|e| e.bits).map_or(Decision::DENY, |e| e.decision)
    }
    /// The same: may it pass, and by which rule.
    fn look(content: &Content, proto: u8, port: u16) -> (bool, u32) {
        let Decision { verdict, cookie } = decision(content, proto, port);
        (verdict != Verdict::Deny, cookie)
    }

    #[test]
    fn a_wide_accept_of_higher_precedence_beats_a_narrow_deny() {
        let program = Program {
            admin: vec![
                clause(Action::Accept, Some(vec![range(Protocol::Tcp, 0, u16::MAX)]), 1),
                clause(Action::Deny, Some(vec![range(Protocol::Tcp, 80, 80)]), 2),
            ],
            isolated: true,
            ..Program::default()
        };
        let content = flat(&program);
        assert_eq!(
            [look(&content, 6, 80), look(&content, 6, 81), look(&content, 17, 80)],
            [(true, 1), (true, 1), (false, 0)]
        );
        let Content::Entries(all) = content else { panic!("{content:?}") };
        assert_eq!(all.len(), 1);
    }

    #[test]
    fn pass_skips_the_rest_of_its_tier_and_no_more() {
        let program = Program {
            admin: vec![
                clause(Action::Pass, Some(vec![range(Protocol::Tcp, 80, 80)]), 1),
                clause(Action::Deny, None, 2),
            ],
            baseline: vec![
                clause(Action::Pass, Some(vec![range(Protocol::Tcp, 80, 80)]), 3),
                clause(Action::Deny, None, 4),
            ],
            ..Program::default()
        };
        let content = flat(&program);
        assert_eq!(
            [look(&content, 6, 80), look(&content, 6, 81), look(&content, 1, 0)],
            [(true, 0), (false, 2), (false, 2)]
        );
    }

    #[test]
    fn what_is_uniform_has_no_entries_unless_a_rule_denies() {
        assert_eq!(flat(&Program { isolated: true, ..Program::default() }), Content::DenyAll);
        assert_eq!(flat(&Program::default()), Content::AllowAll);
        let denied = Program { admin: vec![clause(Action::Deny, None, 7)], ..Program::default() };
        let Content::Entries(all) = flat(&denied) else { panic!("no entries") };
        assert_eq!((all.len(), all[0].bits, all[0].decision.cookie), (1, RULE_BITS, 7));
    }

    #[test]
    fn a_rule_with_ports_never_covers_icmp() {
        let all = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp].map(|p| range(p, 0, u16::MAX));
        let program = Program {
            isolated: true,
            network: vec![clause(Action::Accept, Some(all.into()), 1)],
            ..Program::default()
        };
        let content = flat(&program);
        assert_eq!([look(&content, 132, 9), look(&content, 1, 0)], [(true, 1), (false, 0)]);
    }

    #[test]
    fn a_range_that_is_nearly_everything_is_written_by_its_holes() {
        let program = Program {
            isolated: true,
            network: vec![clause(Action::Accept, Some(vec![range(Protocol::Tcp, 1, 65_534)]), 1)],
            ..Program::default()
        };
        let content = flat(&program);
        assert_eq!([0, 1, 65_534, 65_535].map(|p| look(&content, 6, p).0), [false, true, true, false]);
        let Content::Entries(all) = content else { panic!("no entries") };
        assert_eq!(all.len(), 3);
    }
    /// The same: may it pass, is that reported, and which rule says so.
    fn audit(content: &Content, proto: u8, port: u16) -> (bool, bool, u32) {
        let Decision { verdict, cookie } = decision(content, proto, port);
        (verdict != Verdict::Deny, verdict == Verdict::Audit, cookie)
    }
    fn in_audit(of: Clause) -> Clause {
        Clause { audited: true, ..of }
    }

    #[test]
    fn a_policy_in_audit_mode_denies_nothing_and_what_it_would_is_told() {
        let isolates = Program {
            would_isolate: true,
            audits: true,
            network: vec![in_audit(clause(Action::Accept, Some(vec![range(Protocol::Tcp, 80, 80)]), 1))],
            ..Program::default()
        };
        let content = flat(&isolates);
        assert_eq!(audit(&content, 6, 80), (true, false, 0));
        assert_eq!(audit(&content, 6, 81), (true, true, 0));
        assert_eq!(audit(&content, 1, 0), (true, true, 0), "protocols without ports too");
        let denies = Program {
            audits: true,
            admin: vec![in_audit(clause(Action::Deny, Some(vec![range(Protocol::Udp, 53, 53)]), 7))],
            ..Program::default()
        };
        let content = flat(&denies);
        assert_eq!([audit(&content, 17, 53), audit(&content, 17, 54)], [(true, true, 7), (true, false, 0)]);
    }

    #[test]
    fn what_is_denied_anyway_is_denied_by_its_own_rule_and_an_audited_allowance_allows_nothing() {
        let program = Program {
            audits: true,
            isolated: true,
            admin: vec![
                in_audit(clause(Action::Deny, Some(vec![range(Protocol::Tcp, 80, 81)]), 1)),
                in_audit(clause(Action::Accept, Some(vec![range(Protocol::Tcp, 90, 90)]), 2)),
                clause(Action::Deny, Some(vec![range(Protocol::Tcp, 81, 81)]), 3),
            ],
            network: vec![clause(Action::Accept, Some(vec![range(Protocol::Tcp, 80, 82)]), 4)],
            ..Program::default()
        };
        let content = flat(&program);
        let asked = [80, 81, 82, 83, 90].map(|port| audit(&content, 6, port));
        assert_eq!(asked, [(true, true, 1), (false, false, 3), (true, false, 4), (false, false, 0), (false, false, 0)]);
    }
}
