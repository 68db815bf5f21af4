//! An explanation as text.
use super::{NETWORK, RuleSays, Side, is_audited, together};

/// A flow, as `FROM -> TO PROBE`, and what its ends say.
pub fn text(flow: &str, sides: &[Side]) -> String {
    let verdict = match together(sides) {
        Some(true) => "allowed",
        Some(false) => "denied",
        None => "allowed as far as this node judges it",
    };
    let audited = if is_audited(sides) { ", and would be denied if no policy were in audit mode" } else { "" };
    let mut text = format!("{flow}: {verdict}{audited}\n");
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
    let reason = side.reason.as_ref().map_or_else(String::new, |reason| {
        let dropped = if side.audited { "would be dropped" } else { "dropped" };
        format!(" ({dropped} as {reason})")
    });
    let mut lines = vec![match side.allowed {
        Some(allowed) => format!("{direction} of {end}: {}: {why}{reason}", if allowed { "allowed" } else { "denied" }),
        None => format!("{direction}: {end} {why}"),
    }];
    if let Some(asked) = &side.asked {
        let (set, identity) = (asked.set, asked.identity);
        lines.push(format!("  policy set {set}; the peer's identity is {identity}: {}", asked.peer));
        // NetworkPolicies isolate between the rules of their tier and of the Baseline tier.
        let (before, after): (Vec<_>, Vec<_>) = asked.rules.iter().partition(|r| r.tier != "Baseline tier");
        lines.extend(before.into_iter().map(rule));
        lines.extend(asked.isolated_by.iter().map(|name| format!("  {NETWORK}: {name} isolates the pod")));
        lines.extend(
            asked
                .would_isolate
                .iter()
                .map(|name| format!("  {NETWORK}: {name} would isolate the pod, and is in audit mode")),
        );
        lines.extend(after.into_iter().map(rule));
    }
    if let Some(missing) = &side.missing {
        let when = if side.audited { " once that is enforced" } else { "" };
        lines.push(format!("  to allow it{when}: {}", missing.words));
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
    let mode = if r.audit { ", audit" } else { "" };
    format!("  {}: {} ({}{mode}) {says}", r.tier, r.rule, r.action)
}
