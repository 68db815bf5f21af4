//! Who asks whom: all ends of a case against each other, by probe.
use serde::{Deserialize, Serialize};

use super::{
    case::{Case, Probe},
    world::World,
};
pub use crate::policy::explain::End;
use crate::policy::objects::Direction;

/// The verdicts of a step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Matrix {
    /// Sources are rows, destinations columns, both in this order.
    pub endpoints: Vec<String>,
    /// Probes with equal verdicts together.
    pub verdicts: Vec<Verdicts>,
}

/// Verdicts of some probes, one letter for each flow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdicts {
    /// The probes.
    pub probes: Vec<String>,
    /// A row for each source.
    pub rows: Vec<String>,
}

impl End {
    /// What the case calls it.
    pub fn id(&self, world: &World) -> String {
        self.called(&world.written(self.ip()))
    }
}

/// All ends: every address of every pod that has its own and is not over, of every node, and those outside.
pub fn ends(world: &World, case: &Case) -> Vec<End> {
    let pods = world.pods().filter(|p| !p.host_network && !p.phase.is_over()).flat_map(|p| {
        let node = p.node.clone().unwrap_or_default();
        p.ips.iter().map(move |ip| End::Pod { key: p.key(), node: node.clone(), ip: *ip })
    });
    let nodes = world.nodes().flat_map(|(name, ips)| ips.iter().map(|ip| End::Node { name: name.clone(), ip: *ip }));
    pods.chain(nodes).chain(case.external.iter().map(|a| End::Outside(a.ip))).collect()
}

/// What each side says of a flow: whether it may pass. `None` for a flow that there is not.
pub type Sides = Option<(bool, bool)>;

/// The verdicts of all flows, as `sides` says of each.
///
/// # Errors
/// Those of `sides`.
pub fn matrix<E>(
    world: &World,
    case: &Case,
    mut sides: impl FnMut(&End, &End, Probe) -> Result<Sides, E>,
) -> Result<Matrix, E> {
    let ends = ends(world, case);
    let mut verdicts: Vec<Verdicts> = Vec::new();
    for probe in &case.probes {
        let mut row = |src| ends.iter().map(|dst| sides(src, dst, *probe).map(letter)).collect::<Result<String, E>>();
        let rows = ends.iter().map(&mut row).collect::<Result<Vec<_>, E>>()?;
        match verdicts.iter_mut().find(|v| v.rows == rows) {
            Some(same) => same.probes.push(probe.to_string()),
            None => verdicts.push(Verdicts { probes: vec![probe.to_string()], rows }),
        }
    }
    Ok(Matrix { endpoints: ends.iter().map(|e| e.id(world)).collect(), verdicts })
}

/// As the look-up finds it, natively.
pub fn sides(world: &World, src: &End, dst: &End, probe: Probe) -> Sides {
    if src.ip().is_ipv4() != dst.ip().is_ipv4() || src.pod().is_none() && dst.pod().is_none() {
        return None;
    }
    let allows = |end: &End, direction| match end.pod() {
        Some((pod, node)) => world
            .agent(node)
            .and_then(|a| {
                let proto = (probe.number(src.ip().is_ipv4()), probe.port);
                a.ruling(pod, direction, src.is_stack_of(node), (src.ip(), dst.ip()), proto)
            })
            .is_none_or(|r| r.is_allowed()),
        None => true,
    };
    Some((allows(src, Direction::Egress), allows(dst, Direction::Ingress)))
}

fn letter(sides: Sides) -> char {
    match sides {
        None => '-',
        Some((true, true)) => '.',
        Some((false, true)) => 'E',
        Some((true, false)) => 'I',
        Some((false, false)) => 'B',
    }
}
