//! `GET /v1/explain`: what both ends of a flow say of it, by the maps that packets meet.
use std::{io, sync::PoisonError};

use cni_common::drop::DropReason;

use super::{
    Inspector,
    ends::{Party, flows, parties},
    live::{Kernel, Live},
};
use crate::{
    api::{
        ExplainError,
        types::{ExplainedFlow, Explanation, FlowStatus},
    },
    conntrack::Filter,
    policy::{
        Engine,
        explain::{Judge, Side, is_audited, no_pod, ruling, together},
        objects::Direction,
        verdicts::case::Probe,
    },
    tables::PodKey,
};

/// Flows that are looked through at most.
const FLOWS: usize = 10_000;

impl Inspector {
    pub(super) fn explained(&self, from: &str, to: &str, probe: Probe) -> Result<Explanation, ExplainError> {
        let node = &self.facts.node;
        let (src, dst) = {
            let c = self.tables.read();
            (parties(&c, node, from)?, parties(&c, node, to)?)
        };
        let pairs = flows(&src, &dst);
        if pairs.is_empty() {
            return Err(ExplainError::NoFamily);
        }
        let (mut explained, problem) = {
            // Nobody writes to the maps meanwhile: what they hold and what was compiled are of one moment.
            let policies = self.policies.lock().unwrap_or_else(PoisonError::into_inner);
            let summary = policies.summary();
            let waits = || (!summary.in_force).then(|| "policies wait for the sources to be in sync".to_owned());
            let explained = pairs.iter().map(|pair| explain(&policies.engine, &*self.datapath, node, pair, probe));
            let explained = explained.collect::<io::Result<Vec<_>>>().map_err(|e| ExplainError::Read(e.to_string()))?;
            (explained, summary.problem.clone().or_else(waits))
        };
        let live = Live::new(&*self.datapath);
        let epoch = live.epoch();
        let epoch = live.finish(epoch).map_err(|e| ExplainError::Read(e.to_string()))?.unwrap_or_default();
        for ((src, dst), flow) in pairs.iter().zip(&mut explained) {
            flow.older = self.older((src, dst), probe, epoch)?;
        }
        Ok(Explanation { node: node.clone(), probe: probe.to_string(), epoch, problem, flows: explained })
    }

    /// Such flows that are known, with a verdict of an earlier epoch.
    fn older(&self, (src, dst): (&Party, &Party), probe: Probe, epoch: u32) -> Result<Vec<FlowStatus>, ExplainError> {
        let (src, dst) = (src.end.ip(), dst.end.ip());
        let filter = Filter {
            addresses: vec![dst],
            protocols: vec![probe.number(src.is_ipv4())],
            ports: if probe.port == 0 { Vec::new() } else { vec![probe.port] },
            ..Filter::default()
        };
        let all = self.flows.list(&filter, FLOWS).map_err(|e| ExplainError::Read(e.to_string()))?;
        let such = |f: &FlowStatus| {
            let port = f.destination_port.is_none_or(|port| port == probe.port);
            (f.source, f.destination) == (src, dst) && port && f.epoch != epoch
        };
        Ok(all.flows.into_iter().filter(such).collect())
    }
}

/// What both ends say.
fn explain<K: Kernel>(
    engine: &Engine,
    kernel: &K,
    node: &str,
    (src, dst): &(Party, Party),
    probe: Probe,
) -> io::Result<ExplainedFlow> {
    let what = (probe.number(src.end.ip().is_ipv4()), probe.port);
    let ends = (src.end.ip(), dst.end.ip());
    let side = |direction, at: &Party, peer: &Party| -> io::Result<Side> {
        let Some(e) = &at.endpoint else { return Ok(not_here(direction, at, node)) };
        let live = Live::new(kernel);
        let set = match direction {
            Direction::Egress => live.endpoint(e.ifindex).map(|found| found.set_out),
            Direction::Ingress => live.local(at.end.ip()).map(|found| found.set_in),
        };
        let pod = if e.is_kubernetes() { e.pod() } else { PodKey::new("endpoint", e.id.to_string()) };
        let judged = set.and_then(|set| {
            let from_stack = src.end.is_stack_of(node);
            Some((set, ruling(&live, (direction, set), from_stack, ends, what)?))
        });
        let side = match judged {
            Some((set, ruling)) => Judge { engine, pod: &pod, direction, set }.side(&live, &peer.end, what, ruling),
            None => Side {
                direction: direction.name().to_owned(),
                end: pod.to_string(),
                allowed: Some(false),
                why: "the maps do not hold its endpoint, so nothing reaches or leaves it".to_owned(),
                reason: Some(of_none(direction).name().to_owned()),
                ..Side::default()
            },
        };
        live.finish(side)
    };
    let sides = vec![side(Direction::Egress, src, dst)?, side(Direction::Ingress, dst, src)?];
    Ok(ExplainedFlow {
        from: src.end.to_string(),
        to: dst.end.to_string(),
        allowed: together(&sides),
        audited: is_audited(&sides),
        sides,
        older: Vec::new(),
    })
}

/// As what is dropped that an interface without entries sends, or that is for it.
fn of_none(direction: Direction) -> DropReason {
    match direction {
        Direction::Egress => DropReason::NoEndpoint,
        Direction::Ingress => DropReason::NoPod,
    }
}

/// An end that no map of this node says anything of.
fn not_here(direction: Direction, at: &Party, node: &str) -> Side {
    let Some((pod, on)) = at.end.pod() else { return no_pod(direction, at.end.to_string()) };
    let (why, ask) = match on {
        "" => ("is on no node yet".to_owned(), on),
        on if on == node => ("has no interface on this node yet: CNI ADD has not come to its end".to_owned(), on),
        on => (format!("is judged on node {on}: ask there"), on),
    };
    let (direction, end, ask) = (direction.name().to_owned(), pod.to_string(), Some(ask.to_owned()));
    Side { direction, end, why, ask, ..Side::default() }
}

#[cfg(test)]
mod tests;
