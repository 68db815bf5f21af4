//! One flow of a case in words.
use super::{
    case::{BadCase, Case, Probe},
    matrix::ends,
    world::World,
};
use crate::policy::{
    explain::{Judge, no_pod, text},
    objects::Direction,
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
    let mut sides = Vec::new();
    for (end, direction, peer) in [(src, Direction::Egress, dst), (dst, Direction::Ingress, src)] {
        let Some((pod, node)) = end.pod() else {
            sides.push(no_pod(direction, end.id(world)));
            continue;
        };
        let agent = world.agent(node).ok_or_else(|| BadCase::new(node, "there is no such node"))?;
        let flow = (src.ip(), dst.ip());
        let what = (q.probe.number(src.ip().is_ipv4()), q.probe.port);
        let unknown = || BadCase::new(end.id(world), "its node does not know it");
        let ruling = agent.ruling(pod, direction, src.is_stack_of(node), flow, what).ok_or_else(unknown)?;
        let sets = agent.engine.sets_of(pod).ok_or_else(unknown)?;
        let judge = Judge { engine: &agent.engine, pod, direction, set: sets.of(direction) };
        sides.push(judge.side(&agent.image, peer, what, ruling));
    }
    Ok(text(&format!("{} -> {} {}", q.from, q.to, q.probe), &sides))
}
