//! What the programs are told by files: who may do what, and where the API server is.
use std::{fmt::Write as _, fs, io::Read as _, path::Path, process::Command};

use anyhow::{Context as _, Result, bail};

use crate::layout::{MAX_NODES, api_server, directory, kubeconfig, node_name};

/// Users of the API beside the nodes: name of the kubeconfig, user, groups. The administrator is the first.
const USERS: [(&str, &str, &str); 4] = [
    ("admin", "admin", "system:masters"),
    ("controllers", "system:kube-controller-manager", "system:masters"),
    ("scheduler", "system:kube-scheduler", ""),
    ("proxy", "system:kube-proxy", ""),
];

/// So many nodes may come while the cluster is up.
const LATER: u8 = 2;

/// Writes tokens, kubeconfigs and the key of service accounts.
pub(crate) fn write(nodes: u8) -> Result<()> {
    let dir = directory("control-plane");
    for place in [dir.join("log"), directory("kubeconfig")] {
        fs::create_dir_all(&place).with_context(|| format!("make {}", place.display()))?;
    }
    let mut tokens = String::new();
    let mut user = |file: &str, user: &str, groups: &str| -> Result<()> {
        let token = token()?;
        writeln!(tokens, "{token},{user},{file},{groups}")?;
        write_kubeconfig(file, &token)
    };
    for (file, name, groups) in USERS {
        user(file, name, groups)?;
    }
    // The API server reads this once: nodes that come later have theirs already.
    for name in (1..=(nodes + LATER).min(MAX_NODES)).map(node_name) {
        user(&name, &format!("system:node:{name}"), "system:nodes")?;
    }
    fs::write(dir.join("tokens.csv"), tokens).context("write the API's tokens")?;
    // Who asks what of the API, as far as it is Weft.
    let audit = serde_json::json!({"apiVersion": "audit.k8s.io/v1", "kind": "Policy", "omitStages": ["RequestReceived"], "rules": [
        {"level": "Metadata", "users": ["system:serviceaccount:kube-system:weft"]}, {"level": "None"}]});
    write_file(&dir.join("audit.json"), &audit.to_string())?;
    let mut openssl = Command::new("openssl");
    openssl.args(["genrsa", "-out"]).arg(dir.join("service-accounts.key")).arg("2048");
    succeeds(&mut openssl).map(drop)
}

fn token() -> Result<String> {
    let mut bytes = [0; 16];
    fs::File::open("/dev/urandom").and_then(|mut f| f.read_exact(&mut bytes)).context("read /dev/urandom")?;
    Ok(bytes.iter().map(|b| format!("{b:02x}")).collect())
}

fn write_kubeconfig(user: &str, token: &str) -> Result<()> {
    let text = serde_json::json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "weft-cluster",
        // The API server makes its certificate itself when it starts.
        "clusters": [{"name": "weft-cluster", "cluster": {
            "server": api_server(), "insecure-skip-tls-verify": true}}],
        "users": [{"name": user, "user": {"token": token}}],
        "contexts": [{"name": "weft-cluster", "context": {"cluster": "weft-cluster", "user": user}}],
    });
    write_file(&kubeconfig(user), &text.to_string())
}

/// Writes a file, with the directories above it.
pub(crate) fn write_file(file: &Path, text: &str) -> Result<()> {
    let write = || {
        fs::create_dir_all(file.parent().unwrap_or(Path::new("/")))?;
        fs::write(file, text)
    };
    write().with_context(|| format!("write {}", file.display()))
}

/// Runs a program to its end; it must end with 0. Gives what it printed.
pub(crate) fn succeeds(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("start {command:?}"))?;
    if !output.status.success() {
        bail!("{command:?} failed ({}): {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
