//! An explanation as text.
use super::{NETWORK, RuleSays, Side, together};

/// A flow, as `FROM -> TO PROBE`, and what its ends say.
pub fn text(flow: &str, sides: &[Side]) -> String {
    let verdict = match together(sides) {
        Some(true) => "allowed",
        Some(false) => "denied",
        None => "allowed as far as this node judges it",
    };
    let mut text = format!("{flow}: {verdict}\n");
    for side in sides {
        lines(side).iter().for_each(|line| {
            text += line;
            text.push('\n');
        });
    }
    text
}

fn lines(side: &Side) -> Vec<String> {
    let Side { direction, end, why, .. } = side;
    let mut lines = vec![match side.allowed {
        Some(allowed) => format!("{direction} of {end}: {}: {why}", if allowed { "allowed" } else { "denied" }),
        None => format!("{direction}: {end} {why}"),
    }];
    if let Some(asked) = &side.asked {
        let (set, identity) = (asked.set, asked.identity);
        lines.push(format!("  policy set {set}; the peer's identity is {identity}: {}", asked.peer));
        // NetworkPolicies isolate between the rules of their tier and of the Baseline tier.
        let (before, after): (Vec<_>, Vec<_>) = asked.rules.iter().partition(|r| r.tier != "Baseline tier");
        lines.extend(before.into_iter().map(rule));
        lines.extend(asked.isolated_by.iter().map(|name| format!("  {NETWORK}: {name} isolates the pod")));
        lines.extend(after.into_iter().map(rule));
    }
    if let Some(missing) = &side.missing {
        lines.push(format!("  to allow it: {}", missing.words));
        lines.extend(missing.rule.as_ref().map(|rule| format!("    - {rule}")));
    }
    lines
}

fn rule(r: &RuleSays) -> String {
    let says = match (r.peer, r.port) {
        (true, true) => "matches",
        (false, true) => "is not about the peer",
        (true, false) => "is not about the port",
        (false, false) => "is about neither peer nor port",
    };
    format!("  {}: {} ({}) {says}", r.tier, r.rule, r.action)
}
