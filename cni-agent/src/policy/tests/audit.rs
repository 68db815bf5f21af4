//! Policies in audit mode: every verdict is that of the same cluster without them, and reported is what would be denied if all were obeyed, and nothing else.
use std::collections::BTreeSet;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::{
    naive::Objects,
    properties::event,
    random::{self, Dice, NODES, OUTSIDE, PROBES},
};
use crate::policy::{
    objects::Direction,
    verdicts::{
        Case, Mode, World,
        matrix::{End, ends},
    },
};

/// What becomes of the operations that apply policies in audit mode.
#[derive(Clone, Copy)]
enum Told {
    /// They are as they are.
    Audited,
    /// There are no such policies.
    Without,
    /// The policies are obeyed.
    Obeyed,
}

fn is_audited(op: &Value) -> bool {
    op["object"]["metadata"]["annotations"].is_object()
}
fn told(ops: &[Value], how: Told) -> Vec<Value> {
    let each = ops.iter().cloned().map(|mut op| {
        match how {
            Told::Without if is_audited(&op) => op["op"] = json!("delete"),
            Told::Obeyed if is_audited(&op) => drop(op["object"]["metadata"]["annotations"].take()),
            _ => {}
        }
        op
    });
    each.collect()
}

/// What an end's policies say of a flow: may it pass, and only for audit.
fn says(
    world: &World,
    at: &End,
    direction: Direction,
    (src, dst): (&End, &End),
    probe: usize,
    case: &Case,
) -> (bool, bool) {
    let Some((pod, node)) = at.pod() else { return (true, false) };
    let probe = &case.probes[probe];
    let what = (probe.number(src.ip().is_ipv4()), probe.port);
    let flow = (src.ip(), dst.ip());
    let ruling = world.agent(node).and_then(|a| a.ruling(pod, direction, src.is_stack_of(node), flow, what));
    ruling.map_or((true, false), |r| (r.is_allowed(), r.is_audited()))
}

/// Of a story: flows that pass only because policies are in audit mode, and those that are denied all the same.
fn check(seed: u64, steps: usize, events: u64) -> Result<(usize, usize), TestCaseError> {
    let mut d = Dice::new(seed);
    let mut o = Objects::default();
    for (n, name) in NODES.into_iter().enumerate() {
        o.nodes.insert(name.into(), random::node(&mut d, n));
    }
    let nodes: Vec<Value> = o.nodes.values().cloned().collect();
    let stories: Vec<Vec<Value>> = (0..steps)
        .map(|n| {
            let crowd = if n == 0 { 40 } else { 0 };
            let mut ops: Vec<Value> = (0..=d.below(events) + crowd).map(|_| event(&mut d, &mut o)).collect();
            for op in &mut ops {
                let kind = op["kind"].as_str().unwrap_or_default();
                if op["op"] == "apply" && kind.ends_with("Policy") && d.percent(50) {
                    op["object"]["metadata"]["annotations"] = json!({"weft.dev/mode": "audit"});
                }
            }
            ops
        })
        .collect();
    let cases = [Told::Audited, Told::Without, Told::Obeyed].map(|how| {
        let steps: Vec<Value> = stories.iter().map(|ops| json!({"ops": told(ops, how)})).collect();
        let case = json!({
            "schema": "netpol-verdict-case/1", "id": "audit", "cluster": {"nodes": nodes},
            "external": OUTSIDE, "probes": PROBES, "steps": steps,
        });
        case.to_string().parse::<Case>().expect("a case")
    });
    let mut worlds = cases.each_ref().map(|case| World::new(case, Mode::Incremental).expect("a cluster"));
    let (mut reported, mut denied) = (0, 0);
    for n in 0..steps {
        for (world, case) in worlds.iter_mut().zip(&cases) {
            world.step(&case.steps[n].ops).expect("a step");
        }
        let [audited, without, obeyed] = &worlds;
        let ends = ends(audited, &cases[0]);
        let flows = ends.iter().flat_map(|src| ends.iter().map(move |dst| (src, dst)));
        for (src, dst) in flows.filter(|(src, dst)| src.ip().is_ipv4() == dst.ip().is_ipv4()) {
            for (at, direction) in [(src, Direction::Egress), (dst, Direction::Ingress)] {
                for (probe, name) in PROBES.iter().enumerate() {
                    let of = |world, case| says(world, at, direction, (src, dst), probe, case);
                    let (may, told) = of(audited, &cases[0]);
                    let (enforced, full) = (of(without, &cases[1]).0, of(obeyed, &cases[2]).0);
                    let what = || format!("step {n}: {direction:?} of {src} -> {dst} {name}\n{stories:#?}");
                    prop_assert!(may == enforced, "{may}, and without them {enforced}: {}", what());
                    prop_assert!(told == (enforced && !full), "{told}, of {enforced} and {full}: {}", what());
                    reported += usize::from(told);
                    denied += usize::from(!may);
                }
            }
        }
        // Who is isolated by nothing but policies in audit mode has a set that denies nothing.
        let lenient = |world: &World| -> BTreeSet<String> {
            let agents = NODES.iter().filter_map(|n| world.agent(n));
            let pods = agents
                .flat_map(|a| a.engine.endpoints().filter(|(_, sets)| !sets.isolate()).map(|(pod, _)| pod.to_string()));
            pods.collect()
        };
        prop_assert_eq!(lenient(audited), lenient(without));
    }
    Ok((reported, denied))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: ProptestConfig::default().cases / 6, max_shrink_iters: 400, ..ProptestConfig::default() })]
    #[test]
    fn policies_in_audit_mode_change_no_verdict_and_what_they_would_deny_is_told(seed in any::<u64>(), steps in 1_usize..6, events in 1_u64..16) {
        check(seed, steps, events)?;
    }
}

#[test]
fn the_stories_of_audit_are_about_something() {
    let all: Vec<(usize, usize)> = (0..12).map(|seed| check(seed, 5, 14).unwrap()).collect();
    let (reported, denied) = all.into_iter().fold((0, 0), |(a, b), (c, d)| (a + c, b + d));
    assert!(reported > 5_000 && denied > 5_000, "{reported} {denied}");
}
