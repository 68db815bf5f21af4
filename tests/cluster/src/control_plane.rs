//! etcd, API server, controllers and scheduler.
use std::{
    fs,
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result};
use nix::mount::{MsFlags, mount};

use crate::{
    init::Programs,
    layout::{
        API_PORT, Families, POD_CIDRS, Ranges, SERVICE_CIDRS, control_plane_addresses, directory, kubeconfig, logs,
    },
    node::hyperkube,
    wait::until,
};

/// Starts them; gives them when the API answers.
pub(crate) fn start() -> Result<Programs> {
    let dir = directory("control-plane");
    let etcd = dir.join("etcd");
    fs::create_dir_all(&etcd).context("make etcd's directory")?;
    // Fast, and gone with the unit.
    mount(Some("tmpfs"), &etcd, Some("tmpfs"), MsFlags::empty(), None::<&str>).context("mount etcd's tmpfs")?;
    let mut programs = Programs::new(logs("control-plane"));
    let hyperkube = hyperkube()?;
    let hyperkube = hyperkube.to_str().context("the path of hyperkube")?;
    let families = Families::of_cluster();
    let own = families.first(control_plane_addresses());
    let services = families.of(SERVICE_CIDRS).join(",");
    let file = |name: &str| dir.join(name).display().to_string();
    let flag = |name: &str, value: &str| format!("--{name}={value}");
    let mut start = |name: &str, flags: &[String]| {
        let words: Vec<&str> = [hyperkube, name].into_iter().chain(flags.iter().map(String::as_str)).collect();
        programs.start(name, &words)
    };
    let (clients, peers) = ("http://127.0.0.1:2379", "http://127.0.0.1:2380");
    start(
        "etcd",
        &[
            flag("data-dir", &file("etcd/data")),
            flag("unsafe-no-fsync", "true"),
            flag("log-level", "warn"),
            flag("listen-client-urls", clients),
            flag("advertise-client-urls", clients),
            flag("listen-peer-urls", peers),
            flag("initial-advertise-peer-urls", peers),
            flag("initial-cluster", &format!("default={peers}")),
        ],
    )?;
    let key = file("service-accounts.key");
    start(
        "kube-apiserver",
        &[
            flag("etcd-servers", clients),
            flag("cert-dir", &file("certificates")),
            flag("advertise-address", &own.to_string()),
            flag("external-hostname", &own.to_string()),
            flag("bind-address", "::"),
            flag("secure-port", &API_PORT.to_string()),
            flag("service-cluster-ip-range", &services),
            flag("allow-privileged", "true"),
            flag("authorization-mode", "Node,RBAC"),
            flag("token-auth-file", &file("tokens.csv")),
            flag("service-account-issuer", "https://kubernetes.default.svc"),
            flag("service-account-key-file", &key),
            flag("service-account-signing-key-file", &key),
            flag("kubelet-preferred-address-types", "InternalIP"),
            flag("shutdown-delay-duration", "0s"),
            flag("profiling", "false"),
            flag("audit-policy-file", &file("audit.json")),
            flag("audit-log-path", &file("log/audit.log")),
        ],
    )?;
    // The controllers, started before it answers, would wait for seconds before they ask again.
    let mut asks = Command::new(hyperkube);
    asks.args(["kubectl", "get", "--raw", "/readyz", "--kubeconfig"]).arg(kubeconfig("admin")).stdin(Stdio::null());
    asks.stdout(Stdio::null()).stderr(Stdio::null());
    until("answer of the API server", Duration::from_secs(60), || Ok(asks.status()?.success().then_some(())))?;
    let client = |user: &str| {
        let config = kubeconfig(user).display().to_string();
        [
            flag("kubeconfig", &config),
            flag("leader-elect", "false"),
            flag("profiling", "false"),
            flag("bind-address", "127.0.0.1"),
        ]
    };
    let mut controllers = client("controllers").to_vec();
    controllers.extend([
        flag("kube-api-qps", "500"),
        flag("kube-api-burst", "1000"),
        flag("service-account-private-key-file", &key),
        flag("root-ca-file", &file("certificates/apiserver.crt")),
        flag("cluster-cidr", &families.of(POD_CIDRS).join(",")),
        flag("service-cluster-ip-range", &services),
        flag("allocate-node-cidrs", if Ranges::of_cluster() == Ranges::Controllers { "true" } else { "false" }),
        flag("node-monitor-period", "2s"),
        flag("node-monitor-grace-period", "20s"),
    ]);
    controllers.extend(families.of([flag("node-cidr-mask-size-ipv4", "24"), flag("node-cidr-mask-size-ipv6", "64")]));
    start("kube-controller-manager", &controllers)?;
    start("kube-scheduler", &client("scheduler"))?;
    Ok(programs)
}
