//! What the container runtime finds: configurations and plugin.
use super::{Facts, Finding, hinders, hint};
use crate::api::types::{InstallStatus, Stage};

pub(super) fn findings(facts: &Facts, found: &mut Vec<Finding>) {
    configurations(facts, found);
    if let Ok(agent) = &facts.agent {
        installation(&agent.install, found);
    }
}

fn configurations(facts: &Facts, found: &mut Vec<Finding>) {
    match facts.cni_files.first() {
        None => found.push(hint(
            "cni-none",
            format!("There is no CNI configuration in {}", facts.cni_dir),
            "The runtime calls no plugin until there is one; on a node without a runtime that is as it should be.",
            "weft status  # says why the agent has not written one; with --cni-install no it is for you to write",
        )),
        Some(first) if !first.is_ours() => found.push(hinders(
            "cni-foreign",
            format!("The runtime takes {}, which is not Weft's", first.path.display()),
            "It takes the first file by name; pods that are made now are not Weft's.",
            format!("mv {0} {0}.disabled", first.path.display()),
        )),
        Some(_) => {}
    }
    for list in facts.cni_files.iter().filter(|list| list.has_behind_ours("bandwidth")) {
        found.push(hinders(
            "cni-bandwidth",
            format!("{} chains the plugin bandwidth behind weft-cni", list.path.display()),
            "It shapes at the host's end of the pod's veth pair, which Weft's packets do not leave through: no limit takes effect.",
            format!("edit {}: remove the plugin bandwidth", list.path.display()),
        ));
    }
}

fn installation(install: &InstallStatus, found: &mut Vec<Finding>) {
    if install.stage == Stage::Failed {
        found.push(hinders(
            "cni-install",
            format!("Weft is not installed for the runtime: {}", install.why),
            "The runtime makes no pods by Weft until it is, or goes on with what an earlier agent installed.",
            "weft status  # shows when it is cured; the agent tries again when something changes, and every 30 s",
        ));
    }
    if !install.plugin_differs.is_empty() {
        let rule = if install.stage == Stage::Off { hint } else { hinders };
        found.push(rule(
            "cni-plugin",
            format!("The CNI plugin is not the agent's: {}", install.plugin_differs),
            "Plugin and agent of different releases may not understand each other; without a plugin there are no pods.",
            "weft-agent --cni-install yes  # or copy the weft-cni that lies beside weft-agent there yourself"
                .to_owned(),
        ));
    }
}
