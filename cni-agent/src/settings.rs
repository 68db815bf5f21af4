//! The agent's settings: one struct, which is flags, environment, file keys and their documentation at once.
//!
//! A setting is taken from the first of: flag, environment (`WEFT_<NAME>`), the TOML file that `--config` names,
//! built-in default. The file's values become the flags' defaults, so that all four go through the same checks.
use std::{
    any::TypeId,
    ffi::OsString,
    io,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
};

use clap::{
    Arg, ArgAction, Command, CommandFactory, FromArgMatches, Parser, ValueEnum,
    error::{ContextKind, ContextValue},
};
use cni_common::schema::MAX_SPARED;
use ipnet::IpNet;
use serde::Serialize;

use crate::{datapath::features, fault::DieAt, ports::PortRange};

mod values;

use self::values::{
    cidr, conflist_name, device_name, listen_address, log_filter, masquerade_ports, mtu, node_name, server_url,
};

const ABOUT: &str = "\
weft-agent is the node daemon of Weft, a CNI that forwards packets with eBPF. It loads the BPF programs and attaches them \
to the node's devices, wires the pods that the CNI plugin weft-cni announces, follows the cluster's Node and Pod objects \
and keeps the BPF maps equal to what they ask for. When it stops, programs and maps stay and packets flow on; the next \
agent adopts them.

It needs root (CAP_BPF or CAP_SYS_ADMIN, CAP_NET_ADMIN, CAP_SYS_ADMIN for pods' namespaces), Linux 5.10 or newer and a \
BPF file system. No setting is required on a node with one network interface.";

const AFTER: &str = "\
Precedence:
  A setting is taken from the first of: flag, environment variable, file given by --config,
  built-in default.
  A list given at one level replaces the lists of the levels below it.

The configuration file:
  TOML. Its keys are the names of the flags without the dashes in front. Example:

      node-name = \"node-1\"
      mtu = 9000
      device = [\"eth0\", \"eth1\"]

  An unknown key or a value of the wrong type is an error: the agent does not start.

Files:
  /etc/weft/manifests/           Node and Pod objects, YAML or JSON (--manifests)
  /run/weft/cni.sock             where weft-cni connects (--run-dir)
  /run/weft/api.sock             where the weft command connects (--run-dir)
  /run/weft/lock                 held while the agent runs (--run-dir)
  /run/weft/state/               one record for each endpoint (--state-dir)
  /sys/fs/bpf/weft/              pinned maps, programs and links (--bpffs)
  /opt/cni/bin/weft-cni          the CNI plugin, for the runtime (--cni-bin-dir)
  /etc/cni/net.d/05-weft.conflist  the network configuration (--cni-conf-dir, --cni-conf-name)

Exit status:
  0  stopped by SIGTERM or SIGINT
  1  could not start or go on; the last line on standard error says why and what cures it
  2  a wrong flag or value

Examples:
  weft-agent --node-name node-1 --manifests ./cluster
  WEFT_LOG_LEVEL=debug weft-agent --config /etc/weft/agent.toml
  weft status";

/// The settings of `weft-agent`.
#[derive(Clone, Debug, PartialEq, Eq, Parser, Serialize)]
#[command(name = "weft-agent", version, about = "The node daemon of Weft, a CNI in eBPF", long_about = ABOUT)]
#[command(after_long_help = AFTER, after_help = "--help says more on each setting.", max_term_width = 110)]
#[serde(rename_all = "kebab-case")]
pub struct Settings {
    /// TOML file with settings
    ///
    /// Its values stand in for the built-in defaults; environment and flags go before it. Without this flag no file is
    /// read.
    #[arg(long, env = "WEFT_CONFIG", value_name = "FILE", hide_env_values = true)]
    pub config: Option<PathBuf>,

    /// Name of this node's Node object [default: the host name, in lower case]
    ///
    /// The object carries the node's pod CIDRs and InternalIP addresses. The agent is not ready before it has seen it.
    #[arg(long, env = "WEFT_NODE_NAME", value_name = "NAME", help_heading = "Cluster")]
    #[arg(default_value_t = host_name(), hide_default_value = true, value_parser = node_name)]
    pub node_name: String,

    /// Where Node and Pod objects come from
    ///
    /// manifests: from the files in --manifests. kube: from the Kubernetes API, as with deploy/weft.yaml; credentials are those of the pod's service account, or of
    /// --kubeconfig.
    #[arg(long, env = "WEFT_SOURCE", value_name = "SOURCE", help_heading = "Cluster", default_value = "manifests")]
    pub source: SourceKind,

    /// URL of an API server, for --source kube [default: whatever is known of one]
    ///
    /// Such as https://10.0.0.1:6443. Give it, and every other server of the cluster, where nothing but Weft makes Services work: the agent does not need them then.
    /// Servers are tried in turn until one answers: these, that of --kubeconfig, those that the cluster last named (kept in --cache-dir), that of --kubelet-kubeconfig, and the
    /// Service's address that the kubelet tells each pod. May be repeated; in the environment, separated by commas.
    #[arg(long, env = "WEFT_KUBE_API", value_name = "URL", help_heading = "Cluster", value_delimiter = ',')]
    #[arg(value_parser = server_url)]
    pub kube_api: Vec<String>,

    /// Kubeconfig with the agent's credentials, for --source kube [default: the pod's service account]
    ///
    /// Its current context counts. Read anew with each connection.
    #[arg(long, env = "WEFT_KUBECONFIG", value_name = "FILE", help_heading = "Cluster")]
    pub kubeconfig: Option<PathBuf>,

    /// The kubelet's kubeconfig, of which only the server's address is read
    #[arg(long, env = "WEFT_KUBELET_KUBECONFIG", value_name = "FILE", help_heading = "Cluster")]
    #[arg(default_value = "/etc/kubernetes/kubelet.conf")]
    pub kubelet_kubeconfig: PathBuf,

    /// Directory of Node and Pod manifests, for --source manifests
    ///
    /// All *.yaml, *.yml and *.json files directly in it are read and followed, each with one or more objects. Write a
    /// file under a name that begins with a dot and rename it, so that it appears whole. Made if it does not exist.
    #[arg(long, env = "WEFT_MANIFESTS", value_name = "DIR", help_heading = "Cluster")]
    #[arg(default_value = "/etc/weft/manifests")]
    pub manifests: PathBuf,

    /// Addresses of the cluster's pods [default: the pod CIDRs of all nodes]
    ///
    /// The node gets one route for each, and what goes to another address is not ours. May be repeated; in the
    /// environment, separated by commas.
    #[arg(long, env = "WEFT_CLUSTER_CIDR", value_name = "CIDR", help_heading = "Cluster", value_delimiter = ',')]
    #[arg(value_parser = cidr)]
    pub cluster_cidr: Vec<IpNet>,

    /// Addresses of the cluster's Services, where kube-proxy or another program serves them in the node's stack [default: the cluster's ServiceCIDR objects]
    ///
    /// The API server's --service-cluster-ip-range: Kubernetes 1.33 and newer tell it by ServiceCIDR objects, which are followed unless this is given. What pods send there goes to the stack under their own address, and policy is asked about the address that the stack
    /// makes of it. What the stack makes an address of another host's, and no pod's, leaves as this node's: the agent keeps the nftables table inet weft for it. The node
    /// gets one route for each, so that what nothing translates stays there. May be repeated; in the environment, separated by commas.
    #[arg(long, env = "WEFT_SERVICE_CIDR", value_name = "CIDR", help_heading = "Cluster", value_delimiter = ',')]
    #[arg(value_parser = cidr)]
    pub service_cidr: Vec<IpNet>,

    /// Directory of endpoint records
    ///
    /// What a restarted agent needs to know its pods by. It must not outlive a boot: keep it on a tmpfs.
    #[arg(long, env = "WEFT_STATE_DIR", value_name = "DIR", help_heading = "Paths", default_value = "/run/weft/state")]
    pub state_dir: PathBuf,

    /// Directory of what may outlive a boot and is not missed: where the API servers were
    #[arg(long, env = "WEFT_CACHE_DIR", value_name = "DIR", help_heading = "Paths", default_value = "/var/lib/weft")]
    pub cache_dir: PathBuf,

    /// Directory of the sockets cni.sock and api.sock and of the lock file
    ///
    /// Only one agent at a time runs on it. Only its owner may connect to the sockets.
    #[arg(long, env = "WEFT_RUN_DIR", value_name = "DIR", help_heading = "Paths", default_value = "/run/weft")]
    pub run_dir: PathBuf,

    /// BPF file system; maps, programs and links are pinned in its directory weft
    ///
    /// Mounted if nothing is mounted there.
    #[arg(long, env = "WEFT_BPFFS", value_name = "DIR", help_heading = "Paths", default_value = "/sys/fs/bpf")]
    pub bpffs: PathBuf,

    /// Whether Weft installs itself for the container runtime
    ///
    /// The plugin weft-cni that lies beside weft-agent is copied into --cni-bin-dir, packets are sent through a probe that is wired
    /// like a pod, and then the network configuration is written into --cni-conf-dir. Both stay so while the agent runs. Configurations of
    /// other names are left alone.
    #[arg(long, env = "WEFT_CNI_INSTALL", value_name = "YES|NO", help_heading = "Installation", default_value = "yes")]
    pub cni_install: YesNo,

    /// Where the container runtime looks for CNI plugins
    #[arg(long, env = "WEFT_CNI_BIN_DIR", value_name = "DIR", help_heading = "Installation")]
    #[arg(default_value = "/opt/cni/bin")]
    pub cni_bin_dir: PathBuf,

    /// Where the container runtime looks for network configurations
    #[arg(long, env = "WEFT_CNI_CONF_DIR", value_name = "DIR", help_heading = "Installation")]
    #[arg(default_value = "/etc/cni/net.d")]
    pub cni_conf_dir: PathBuf,

    /// Name of Weft's network configuration
    ///
    /// Runtimes take the first by name. The file is Weft's: what else is written into it is replaced.
    #[arg(long, env = "WEFT_CNI_CONF_NAME", value_name = "FILE", help_heading = "Installation")]
    #[arg(default_value = "05-weft.conflist", value_parser = conflist_name)]
    pub cni_conf_name: String,

    /// Device that leads to other nodes and to the world [default: those with the node's InternalIP addresses]
    ///
    /// The programs for packets from outside are attached to it. May be repeated; in the environment, separated by
    /// commas.
    #[arg(long, env = "WEFT_DEVICE", value_name = "NAME", help_heading = "Network", value_delimiter = ',')]
    #[arg(value_parser = device_name)]
    pub device: Vec<String>,

    /// Address family between nodes
    ///
    /// auto takes IPv4 when this node has an InternalIP of that family, else IPv6. All nodes of a cluster must agree.
    #[arg(long, env = "WEFT_UNDERLAY", value_name = "FAMILY", help_heading = "Network", default_value = "auto")]
    pub underlay: Underlay,

    /// UDP port of the VXLAN tunnel
    ///
    /// All nodes of a cluster must agree. Pods cannot send UDP to this port of a node.
    #[arg(long, env = "WEFT_TUNNEL_PORT", value_name = "PORT", help_heading = "Network", default_value_t = 8472)]
    #[arg(value_parser = clap::value_parser!(u16).range(1..))]
    pub tunnel_port: u16,

    /// MTU between nodes in bytes; 0 takes that of the devices
    ///
    /// Pods get a route MTU that is smaller by what the tunnel adds: 50 bytes over IPv4, 70 over IPv6. Set it when a
    /// hop between the nodes carries less than their devices do.
    #[arg(long, env = "WEFT_MTU", value_name = "BYTES", help_heading = "Network", default_value_t = 0)]
    #[arg(value_parser = mtu)]
    pub mtu: u32,

    /// Whether pods speak to the world with an address of their node
    ///
    /// What a pod opens to an address outside of the cluster leaves with the address that the node itself would use there, and answers find
    /// their way back: TCP, UDP, SCTP, ICMP echo and every other protocol, in both families, without netfilter. Whoever is spoken to sees the node.
    /// With no, packets leave with the pod's own address: routers outside must know the way back to it, or something else on the node masquerades
    /// them. Flows of before that had the node's address are cut.
    #[arg(long, env = "WEFT_MASQUERADE", value_name = "YES|NO", help_heading = "Masquerade", default_value = "yes")]
    pub masquerade: YesNo,

    /// Ports of the node that masqueraded flows get when another flow to the same destination has their own
    ///
    /// As many flows with equal ports can go to one destination at a time; others are dropped by the name NatExhausted. Towards another
    /// destination all ports are free again. The node's own programs do not get them by chance, as they are added to net.ipv4.ip_local_reserved_ports (and taken out again by
    /// `weft uninstall --node`, or when masquerade is switched off); one that asks for a port by its number has it.
    #[arg(long, env = "WEFT_MASQUERADE_PORTS", value_name = "FIRST-LAST", help_heading = "Masquerade")]
    #[arg(default_value = "61000-65535", value_parser = masquerade_ports)]
    pub masquerade_ports: PortRange,

    /// The kernel's list of ports that the node's own programs do not get by chance, where the agent may write it
    ///
    /// Below /proc/sys nothing can be written in a container that is not privileged: deploy/weft.yaml mounts this one file of the node's there under another
    /// name. The file must be of the node's network namespace.
    #[arg(long, env = "WEFT_RESERVED_PORTS_FILE", value_name = "FILE", help_heading = "Masquerade")]
    #[arg(default_value = crate::node::reserved::RESERVED)]
    pub reserved_ports_file: PathBuf,

    /// Addresses outside of the cluster to which pods speak with their own address
    ///
    /// Networks that know the way back to the pods, as one that routes to them. Nobody needs to name the addresses of pods and nodes, --cluster-cidr and link-local
    /// addresses (169.254.0.0/16, fe80::/10): towards those nothing is masqueraded anyway. May be repeated; in the environment, separated by commas.
    #[arg(long, env = "WEFT_NO_MASQUERADE_CIDR", value_name = "CIDR", help_heading = "Masquerade")]
    #[arg(value_delimiter = ',', value_parser = cidr)]
    pub no_masquerade_cidr: Vec<IpNet>,

    /// Feature of the kernel that is not used, even where it is there: for kernels in which it does harm
    ///
    /// What Weft does without it says `weft doctor`. May be repeated; in the environment, separated by commas.
    #[arg(long, env = "WEFT_WITHOUT", value_name = "FEATURE", help_heading = "Network", value_delimiter = ',')]
    #[arg(value_parser = clap::builder::PossibleValuesParser::new(features::SWITCHABLE))]
    pub without: Vec<String>,

    /// Address at which metrics are served for Prometheus, and /healthz for probes [default: none]
    ///
    /// HTTP without a password, at /metrics: give an address that only the monitoring reaches, or 127.0.0.1:PORT. :PORT stands for all addresses of the node. While the
    /// address cannot be had, the agent goes on without and tries again.
    #[arg(long, env = "WEFT_METRICS_ADDRESS", value_name = "ADDRESS:PORT", help_heading = "Logs and events")]
    #[arg(value_parser = listen_address)]
    pub metrics_address: Option<SocketAddr>,

    /// Drop events a second that each CPU may report; 0 reports none
    ///
    /// Only `weft observe` sees events. Counters count every drop, whatever this says, and events beyond the rate are
    /// counted as lost.
    #[arg(long, env = "WEFT_EVENT_RATE", value_name = "N", help_heading = "Logs and events", default_value_t = 100)]
    pub event_rate: u32,

    /// Seconds between two comparisons of everything with the kernel, 10 at least
    ///
    /// What somebody else has changed of maps, programs, devices, routes, neighbours and nftables of Weft's is then repaired, counted and logged.
    /// `weft status --verify` does it at once.
    #[arg(long, env = "WEFT_VERIFY_EVERY", value_name = "SECONDS", help_heading = "Logs and events")]
    #[arg(default_value_t = 300, value_parser = clap::value_parser!(u32).range(10..))]
    pub verify_every: u32,

    /// Form of the log lines on standard error
    #[arg(long, env = "WEFT_LOG_FORMAT", value_name = "FORMAT", help_heading = "Logs and events")]
    #[arg(default_value = "text")]
    pub log_format: LogFormat,

    /// What is logged: error, warn, info, debug, trace or off
    ///
    /// May differ by module: "info,cni_agent::reconcile=debug".
    #[arg(long, env = "WEFT_LOG_LEVEL", value_name = "FILTER", help_heading = "Logs and events")]
    #[arg(default_value = "info", value_parser = log_filter)]
    pub log_level: String,

    /// BPF object to load instead of the one inside this program
    ///
    /// For Weft's tests, which give objects that the kernel refuses. Neither environment nor file can name it.
    #[arg(long, value_name = "FILE", hide = true)]
    #[serde(skip)]
    pub bpf_object: Option<PathBuf>,

    /// Point at which to be killed
    ///
    /// For Weft's tests: `fault::Point` has the names. Neither environment nor file can name one.
    #[arg(long, value_name = "POINT[:N]", hide = true)]
    #[serde(skip)]
    pub die_at: Option<DieAt>,
}

/// Where the cluster's objects come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum SourceKind {
    /// The manifest directory.
    Manifests,
    /// The Kubernetes API.
    Kube,
}

/// Address family of the outer packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Underlay {
    /// IPv4 where the node has an InternalIP of it, else IPv6.
    Auto,
    /// IPv4.
    Ipv4,
    /// IPv6.
    Ipv6,
}
impl Underlay {
    /// The address that the tunnel ends on, out of a node's InternalIP addresses; `None` when none is of that family.
    pub fn tunnel_address(self, internal_ips: &[IpAddr]) -> Option<IpAddr> {
        let first = |v4: bool| internal_ips.iter().copied().find(|ip| ip.is_ipv4() == v4);
        match self {
            Self::Auto => first(true).or_else(|| first(false)),
            Self::Ipv4 => first(true),
            Self::Ipv6 => first(false),
        }
    }
}

/// Whether the agent does something. In the file also `true` and `false`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum YesNo {
    /// It does.
    #[value(alias = "true")]
    Yes,
    /// It does not.
    #[value(alias = "false")]
    No,
}

/// Form of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Why there are no settings.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// The command line or the environment is wrong, or asks for help.
    #[error(transparent)]
    Usage(#[from] clap::Error),
    /// The file cannot be read.
    #[error("read the configuration file {} (correct --config, or make the file readable)", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The file is no TOML.
    #[error("{} is not valid TOML, line {line}: {cause}: correct the file", path.display())]
    Toml {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// What the parser says.
        cause: String,
    },
    /// The file has a key that is no setting.
    #[error("unknown key `{key}` in {}; valid keys are: {valid}", path.display())]
    UnknownKey {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
        /// All keys.
        valid: String,
    },
    /// The file has a value of another type.
    #[error("key `{key}` in {}: expected {expected}, found {found}; valid keys are: {valid}", path.display())]
    WrongType {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
        /// What the key takes.
        expected: &'static str,
        /// What stands there.
        found: &'static str,
        /// All keys.
        valid: String,
    },
    /// Settings of a source that is not the one.
    #[error("--kube-api and --kubeconfig are for the Kubernetes API: give --source kube with them, or leave them out")]
    NotKube,
    /// More CIDRs than the map of them holds.
    #[error(
        "--cluster-cidr, --service-cidr and --no-masquerade-cidr name {given} networks, and {SPARED} is the most: join neighbouring ones into wider ones"
    )]
    TooManyCidrs {
        /// So many.
        given: usize,
    },
    /// An address cannot be a pod's and a Service's.
    #[error(
        "--service-cidr {service} overlaps --cluster-cidr {pods}: give the API server's --service-cluster-ip-range, and addresses of pods outside of it"
    )]
    ServicesAmongPods {
        /// Of the one.
        service: IpNet,
        /// Of the other.
        pods: IpNet,
    },
    /// The file has a value of the right type that the setting refuses.
    #[error("key `{key}` in {}: `{value}` is refused: {cause}", path.display())]
    BadValue {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
        /// The value.
        value: String,
        /// What is wrong with it.
        cause: String,
    },
}

impl Settings {
    /// From this process's command line, environment and file. A wrong command line, `--help` and `--version` print
    /// what they have to say and end the process.
    pub fn load() -> Result<Self, SettingsError> {
        match Self::from_args(std::env::args_os()) {
            Err(SettingsError::Usage(error)) => error.exit(),
            other => other,
        }
    }

    /// From a command line (its first word is the program's name), the environment, and the file that they name.
    pub fn from_args<I>(args: I) -> Result<Self, SettingsError>
    where
        I: IntoIterator,
        I::Item: Into<OsString>,
    {
        let args: Vec<OsString> = args.into_iter().map(Into::into).collect();
        let first = Self::try_parse_from(&args)?;
        let Some(path) = &first.config else { return first.checked() };
        let text =
            std::fs::read_to_string(path).map_err(|source| SettingsError::Read { path: path.clone(), source })?;
        let table = text.parse::<toml::Table>().map_err(|error| {
            let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
            let (line, cause) = (before.matches('\n').count() + 1, error.message().replace('\n', "; "));
            SettingsError::Toml { path: path.clone(), line, cause }
        })?;
        let mut command = Self::command();
        for (key, value) in table {
            command = with_default(command, path, &key, value)?;
        }
        Self::from_arg_matches(&command.try_get_matches_from(args)?)?.checked()
    }

    /// What no single setting is to blame for.
    fn checked(self) -> Result<Self, SettingsError> {
        if self.source != SourceKind::Kube && (!self.kube_api.is_empty() || self.kubeconfig.is_some()) {
            return Err(SettingsError::NotKube);
        }
        let overlap = |(a, b): &(IpNet, IpNet)| a.contains(b) || b.contains(a);
        let pairs = self.service_cidr.iter().flat_map(|s| self.cluster_cidr.iter().map(|c| (*s, *c)));
        if let Some((service, pods)) = pairs.into_iter().find(overlap) {
            return Err(SettingsError::ServicesAmongPods { service, pods });
        }
        let given = self.cluster_cidr.len() + self.service_cidr.len() + self.no_masquerade_cidr.len();
        if given > SPARED { Err(SettingsError::TooManyCidrs { given }) } else { Ok(self) }
    }
}

/// As many CIDRs can be spared from masquerade by settings. The map has some room more, for what always is.
const SPARED: usize = MAX_SPARED as usize - 24;

/// Makes a value of the file the default of its flag.
fn with_default(command: Command, path: &Path, key: &str, value: toml::Value) -> Result<Command, SettingsError> {
    // `config` names the file; it cannot stand in it. What is hidden is for tests.
    let settable = |a: &&Arg| a.get_long().is_some_and(|l| l != "config") && !a.is_hide_set();
    let settings = || command.get_arguments().filter(settable);
    let valid = || settings().filter_map(Arg::get_long).collect::<Vec<_>>().join(", ");
    let Some(arg) = settings().find(|a| a.get_long() == Some(key)) else {
        return Err(SettingsError::UnknownKey { path: path.into(), key: key.into(), valid: valid() });
    };
    let found = value.type_str();
    let (expected, values) = values_for(arg, value);
    let Some(values) = values else {
        return Err(SettingsError::WrongType { path: path.into(), key: key.into(), expected, found, valid: valid() });
    };
    for value in &values {
        // The flag's own parser judges the value. What the environment says was judged before.
        let line = [OsString::from("weft-agent"), OsString::from(format!("--{key}={value}"))];
        if let Err(error) = Settings::try_parse_from(line) {
            let (path, key, value) = (path.into(), key.into(), value.clone());
            return Err(SettingsError::BadValue { path, key, value, cause: cause(&error) });
        }
    }
    let id = arg.get_id().clone();
    Ok(command.mut_arg(id, |arg| arg.default_values(values)))
}

/// A TOML value as the words of a command line; `None` when its type is not that of the flag.
fn values_for(arg: &Arg, value: toml::Value) -> (&'static str, Option<Vec<String>>) {
    let parsed = arg.get_value_parser().type_id();
    if matches!(arg.get_action(), ArgAction::Append) {
        let text = |v: toml::Value| v.as_str().map(str::to_owned);
        let words = match value {
            toml::Value::Array(items) => items.into_iter().map(text).collect(),
            one => text(one).map(|word| vec![word]),
        };
        ("an array of strings", words)
    } else if parsed == TypeId::of::<u16>() || parsed == TypeId::of::<u32>() {
        ("an integer", value.as_integer().map(|n| vec![n.to_string()]))
    } else if let (true, Some(answer)) = (parsed == TypeId::of::<YesNo>(), value.as_bool()) {
        ("yes or no", Some(vec![answer.to_string()]))
    } else {
        ("a string", value.as_str().map(|s| vec![s.to_owned()]))
    }
}

/// What a flag's parser has against a value.
fn cause(error: &clap::Error) -> String {
    if let Some(source) = std::error::Error::source(error) {
        return source.to_string();
    }
    match error.get(ContextKind::ValidValue) {
        Some(ContextValue::Strings(values)) if !values.is_empty() => format!("valid are {}", values.join(", ")),
        _ => error.kind().to_string(),
    }
}

/// As the kubelet names its node.
fn host_name() -> String {
    nix::unistd::gethostname().map(|name| name.to_string_lossy().to_lowercase()).unwrap_or_default()
}

#[cfg(test)]
mod tests;
