//! Why one flow may pass or not, in words: the entries that were found, and what each rule says of it.
use cni_ebpf::policy::{Ruling, Why};

use super::{
    case::{BadCase, Case, Probe},
    matrix::{End, ends},
    world::{Agent, World},
};
use crate::{
    policy::{
        classes::{Class, Owner},
        flatten::{Asked, View, ask},
        image::Image,
        mentions::OTHER_VALUE,
        objects::{Action, Direction, Kind},
        sets::Set,
    },
    tables::PodKey,
};

/// Which flow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// After this step, counted from 0.
    pub step: usize,
    /// Who opens it, as a matrix names it.
    pub from: String,
    /// To whom.
    pub to: String,
    /// Protocol and port.
    pub probe: Probe,
}

/// The text for one flow.
pub(super) fn explain(world: &World, case: &Case, q: &Question) -> Result<String, BadCase> {
    let ends = ends(world, case);
    let find = |id: &String| {
        ends.iter().find(|e| e.id(world) == *id).ok_or_else(|| {
            let known: Vec<String> = ends.iter().map(|e| e.id(world)).collect();
            BadCase::new("--explain", format!("no end is called {id}; there are {}", known.join(", ")))
        })
    };
    let (src, dst) = (find(&q.from)?, find(&q.to)?);
    if src.ip().is_ipv4() != dst.ip().is_ipv4() {
        return Ok(format!("{} -> {} {}: no flow, the families differ\n", q.from, q.to, q.probe));
    }
    let mut text = String::new();
    let mut all = true;
    for (end, direction, peer) in [(src, Direction::Egress, dst), (dst, Direction::Ingress, src)] {
        let (line, allowed) = match end.pod() {
            None => (format!("{}: {} is no pod, nothing to say\n", direction.name(), end.id(world)), true),
            Some((pod, node)) => {
                let agent = world.agent(node).ok_or_else(|| BadCase::new(node, "there is no such node"))?;
                let flow = (src.ip(), dst.ip());
                let what = (q.probe.number(src.ip().is_ipv4()), q.probe.port);
                let Some(ruling) = agent.ruling(pod, direction, src.is_stack_of(node), flow, what) else {
                    return Err(BadCase::new(end.id(world), "its node does not know it"));
                };
                (side(agent, pod, direction, peer, what, ruling), ruling.is_allowed())
            }
        };
        all &= allowed;
        text += &line;
    }
    let verdict = if all { "allowed" } else { "denied" };
    Ok(format!("{} -> {} {}: {verdict}\n{text}", q.from, q.to, q.probe))
}

fn side(agent: &Agent, pod: &PodKey, direction: Direction, peer: &End, what: (u8, u16), ruling: Ruling) -> String {
    let mut text = String::new();
    let verdict = if ruling.is_allowed() { "allowed" } else { "denied" };
    let why = match ruling.why() {
        Why::NotIsolated => "no policy selects the pod".to_owned(),
        Why::Itself => "a pod always reaches itself".to_owned(),
        Why::OwnNode => "the pod's own node always gets in".to_owned(),
        Why::Whole if ruling.is_allowed() => "all that goes between these two is allowed".to_owned(),
        Why::Whole | Why::NoEntry => "policies isolate the pod, and none of their rules allows it".to_owned(),
        Why::Entry => agent.engine.rule_of(ruling.cookie()).map_or_else(
            || "no rule says otherwise".to_owned(),
            |(r, d, n)| format!("{}, {} rule {n} decides", r.policy.name, d.name()),
        ),
        Why::UnknownPeer => "the peer must be a pod, and no pod is known to have its address".to_owned(),
        Why::NoSet => "the maps do not hold the pod's policies".to_owned(),
    };
    line(&mut text, format_args!("{} of {pod}: {verdict}: {why}", direction.name()));
    let sets = agent.engine.sets_of(pod).unwrap_or_default();
    let id = if direction == Direction::Egress { sets.set_out } else { sets.set_in };
    let Some(set) = agent.engine.set(id) else { return text };
    let identity = identity(&agent.image, peer);
    let class = agent.engine.class(identity).map_or_else(|| "another address".to_owned(), |c| about(c));
    line(&mut text, format_args!("  policy set {id}; the peer's identity is {identity}: {class}"));
    rules(&mut text, agent, set, identity, what);
    text
}

/// Each tier's rules, in the order in which they are asked.
fn rules(text: &mut String, agent: &Agent, set: &Set, identity: u32, (proto, port): (u8, u16)) {
    let (met, ports) = agent.engine.view(set, identity);
    let ports = if set.key.direction == Direction::Ingress { &set.key.ports } else { &ports };
    let view = View { meets: &|c| met.get(c).copied().unwrap_or_default(), ports };
    let tiers = ask(&set.program, &view, proto, port);
    for (name, asked) in ["Admin tier", "NetworkPolicy", "Baseline tier"].into_iter().zip(tiers) {
        for Asked { clause, peer, port } in asked {
            let rule = agent.engine.rule_of(clause.cookie);
            let rule = rule.map_or_else(String::new, |(r, d, n)| format!("{}, {} rule {n}", r.policy.name, d.name()));
            let action = match clause.action {
                Action::Accept => "Accept",
                Action::Deny => "Deny",
                Action::Pass => "Pass",
            };
            let says = match (peer, port) {
                (true, true) => "matches",
                (false, true) => "is not about the peer",
                (true, false) => "is not about the port",
                (false, false) => "is about neither peer nor port",
            };
            line(text, format_args!("  {name}: {rule} ({action}) {says}"));
        }
        if name == "NetworkPolicy" {
            let of_kind = set.policies.iter().filter(|r| r.policy.kind == Kind::Network);
            for r in of_kind {
                line(text, format_args!("  {name}: {} isolates the pod", r.policy.name));
            }
        }
    }
}

fn identity(image: &Image, peer: &End) -> u32 {
    let found = match peer.ip() {
        std::net::IpAddr::V4(a) => cni_ebpf::policy::identify::<cni_ebpf::family::V4, _>(image, &a.into()),
        std::net::IpAddr::V6(a) => cni_ebpf::policy::identify::<cni_ebpf::family::V6, _>(image, &a.into()),
    };
    found.unwrap_or_default()
}

fn about(class: &Class) -> String {
    let mut words = match &class.owner {
        Owner::Nobody => String::new(),
        Owner::Node(_) => "a node".to_owned(),
        Owner::Pod { part, .. } => {
            let labels: Vec<String> = part
                .seen
                .labels
                .iter()
                .map(|(k, v)| if &**v == OTHER_VALUE { format!("{k}=(other)") } else { format!("{k}={v}") })
                .collect();
            let ports: Vec<String> = part.seen.ports.iter().map(|p| format!("{}={}", p.name, p.port)).collect();
            format!("a pod of {} [{}] [{}]", part.seen.namespace, labels.join(","), ports.join(","))
        }
    };
    if let Some(block) = class.block {
        words += &format!(" in {block}");
    }
    for domain in &class.domains {
        words += &format!(" named {domain}");
    }
    words.trim_start().to_owned()
}

fn line(text: &mut String, words: std::fmt::Arguments<'_>) {
    *text += &words.to_string();
    text.push('\n');
}
