//! `weft doctor`: what on this node hinders Weft, why, and the cure.
mod facts;
mod rules;

use std::{
    collections::BTreeMap,
    io::{self, Write},
    path::PathBuf,
};

use clap::Args;
use serde::Serialize;

use self::{facts::Facts, rules::Finding};
use super::client::Client;
use crate::api::types::Attachment;

/// Below `weft doctor --help`.
pub(super) const ABOUT: &str = "\
Looks at this node and names what hinders Weft: forwarding that is switched off, firewalls that drop what is forwarded, CNI \
configurations of others that the runtime takes first, a plugin that is not the agent's, features and options that the kernel lacks, others on the tunnel's port, an agent that does \
not answer or is not ready. Each with the reason why it matters, and a command as the cure. It changes nothing, and works without a \
running agent. Run it as root, on the node (or in its network namespace).";

/// Behind the options.
pub(super) const AFTER: &str = "\
Exit status:
  0  nothing hinders Weft (there may be hints)
  1  something does
  2  wrong usage

Output:
  Text for people by default. With --json one object: healthy, findings (id, hinders, what, why,
  cure), programs (program, device, how) and features (by name, whether the kernel has it and it
  is used). Ids and names stay the same from version to version.

Examples:
  weft doctor
  weft doctor --json
  weft doctor --cni-conf-dir /var/lib/rancher/k3s/agent/etc/cni/net.d";

/// Its options.
#[derive(Debug, Args)]
pub(super) struct Doctor {
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Where the container runtime looks for CNI configurations [default: the agent's --cni-conf-dir, or /etc/cni/net.d]
    #[arg(long, value_name = "DIR")]
    cni_conf_dir: Option<PathBuf>,
}

#[derive(Debug, Serialize)]
struct Report {
    /// Nothing hinders.
    healthy: bool,
    findings: Vec<Finding>,
    /// Where our programs are, as the agent says.
    programs: Vec<Attachment>,
    /// What the kernel was tried for.
    features: BTreeMap<String, bool>,
}

impl Report {
    fn of(facts: &Facts) -> Self {
        let findings = rules::findings(facts);
        Self {
            healthy: !findings.iter().any(|f| f.hinders),
            findings,
            programs: facts.agent.as_ref().map(|s| s.datapath.programs.clone()).unwrap_or_default(),
            features: facts.features.clone(),
        }
    }

    fn text(&self) -> String {
        let mut text = String::new();
        for finding in &self.findings {
            let mark = if finding.hinders { "HINDERS" } else { "hint" };
            text.push_str(&format!(
                "{mark:<9}{}\n  why    {}\n  cure   {}\n\n",
                finding.what, finding.why, finding.cure
            ));
        }
        for p in &self.programs {
            text.push_str(&format!("{:<9}{} on {} ({})\n", "attached", p.program, p.device, p.how));
        }
        let hindering = self.findings.iter().filter(|f| f.hinders).count();
        text.push_str(&match hindering {
            0 => "Nothing on this node hinders Weft.\n".to_owned(),
            1 => "1 thing on this node hinders Weft.\n".to_owned(),
            n => format!("{n} things on this node hinder Weft.\n"),
        });
        text
    }
}

/// Looks and prints; whether the node is healthy.
pub(super) async fn run(client: &Client, doctor: &Doctor, out: &mut dyn Write) -> io::Result<bool> {
    let report = Report::of(&facts::gather(client, doctor.cni_conf_dir.as_deref()).await);
    if doctor.json {
        writeln!(out, "{:#}", serde_json::to_value(&report)?)?;
    } else {
        out.write_all(report.text().as_bytes())?;
    }
    out.flush()?;
    Ok(report.healthy)
}
