//! Which API servers there may be, and how the agent says who it is.
use std::{
    env,
    fmt::{self, Display, Formatter},
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use crate::install::place;
use hyper::Uri;
use kube::config::{Config, KubeConfigOptions, Kubeconfig};
use serde::{Deserialize, Serialize};

/// A server that does not answer keeps the next one waiting so long.
const CONNECT: Duration = Duration::from_secs(5);
/// The name that the certificate of every API server has, whatever its address (kubeadm and kube-apiserver put it in).
const NAME: &str = "kubernetes.default.svc";
/// The file in the cache directory that has the servers that were last heard of.
pub const KNOWN: &str = "kube-api.json";
/// Where a pod finds the token of its service account.
const TOKEN: &str = "/var/run/secrets/kubernetes.io/serviceaccount/token";

/// Servers and credentials.
#[derive(Clone, Debug, Default)]
pub struct Access {
    /// `--kube-api`: go before all others.
    pub api: Vec<String>,
    /// `--kubeconfig`: credentials, and a server.
    pub kubeconfig: Option<PathBuf>,
    /// `--kubelet-kubeconfig`: a server only.
    pub kubelet: PathBuf,
    /// The servers that were last heard of.
    pub known: PathBuf,
}

/// A server that may answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    /// Where it is.
    pub url: String,
    /// It is asked for by the address that somebody else has for it: its certificate may not have that address, but has [`NAME`].
    pub by_address: bool,
}

/// Why no server can be asked.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    /// The kubeconfig cannot be used.
    #[error("read the kubeconfig {}: correct the file, or --kubeconfig", path.display())]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: Box<kube::config::KubeconfigError>,
    },
    /// The service account cannot be used.
    #[error("read the service account's token and certificate")]
    ServiceAccount(#[source] Box<kube::config::InClusterError>),
    /// A server's URL is none.
    #[error("`{url}` is no URL of an API server: write it as https://HOST:PORT")]
    Url {
        /// What stands there.
        url: String,
    },
    /// Nothing is known to ask.
    #[error("no API server is known: give --kube-api or --kubeconfig, or run the agent as a pod of the cluster")]
    NoServer,
    /// Certificates or the token are not usable.
    #[error("prepare the connection to {url}")]
    Client {
        /// The server.
        url: String,
        /// The cause.
        #[source]
        source: Box<kube::Error>,
    },
}

#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Known {
    #[serde(default)]
    servers: Vec<String>,
}

impl Access {
    /// All servers, in the order in which they are tried. Files are read anew.
    pub fn servers(&self) -> Vec<Server> {
        let given = |url: String| Server { url, by_address: false };
        let found = |url: String| Server { url, by_address: true };
        let own = self.kubeconfig.as_deref().and_then(server_of);
        let mut all: Vec<Server> = self.api.iter().cloned().chain(own).map(given).collect();
        all.extend(self.known().into_iter().map(found));
        all.extend(server_of(&self.kubelet).map(found));
        all.extend(in_cluster().map(given));
        let mut each = Vec::with_capacity(all.len());
        for server in all {
            if !each.iter().any(|s: &Server| s.url == server.url) {
                each.push(server);
            }
        }
        each
    }

    /// How to ask a server: with credentials as they are now.
    pub async fn config(&self, server: &Server) -> Result<Config, AccessError> {
        let url: Uri = server.url.parse().map_err(|_| AccessError::Url { url: server.url.clone() })?;
        let mut config = match &self.kubeconfig {
            Some(path) => {
                let failed = |source| AccessError::Kubeconfig { path: path.clone(), source: Box::new(source) };
                let text = Kubeconfig::read_from(path).map_err(failed)?;
                Config::from_custom_kubeconfig(text, &KubeConfigOptions::default()).await.map_err(failed)?
            }
            None if Path::new(TOKEN).exists() => {
                Config::incluster_dns().map_err(|e| AccessError::ServiceAccount(Box::new(e)))?
            }
            // As `kubectl proxy` wants it: it has the credentials.
            None => Config::new(url.clone()),
        };
        config.cluster_url = url;
        config.connect_timeout = Some(CONNECT);
        // We have our own, which know what is being retried.
        config.default_retry = false;
        if server.by_address && config.tls_server_name.is_none() {
            config.tls_server_name = Some(NAME.into());
        }
        Ok(config)
    }

    /// The servers that were last heard of. What cannot be read is as good as none.
    pub fn known(&self) -> Vec<String> {
        let text = fs::read(&self.known).unwrap_or_default();
        serde_json::from_slice::<Known>(&text).map(|k| k.servers).unwrap_or_default()
    }

    /// Keeps the servers for the next start.
    pub fn keep(&self, servers: &[String]) {
        let text = serde_json::to_vec(&Known { servers: servers.to_vec() }).unwrap_or_default();
        if let Err(error) = place(&self.known, &text, 0o600) {
            tracing::warn!(
                %error, path = %self.known.display(),
                "cannot keep where the API servers are; --cache-dir must name a directory that root can write"
            );
        }
    }
}

impl Display for Access {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let servers = self.servers();
        f.write_str(servers.first().map_or("no API server is known", |s| &s.url))
    }
}

/// The server that a kubeconfig names.
fn server_of(path: &Path) -> Option<String> {
    let config = Kubeconfig::read_from(path).ok()?;
    let current = config.current_context.as_ref();
    let context = config.contexts.iter().find(|c| Some(&c.name) == current).or(config.contexts.first());
    let named = context.and_then(|c| c.context.as_ref()).map(|c| &c.cluster);
    let cluster = config.clusters.iter().find(|c| Some(&c.name) == named).or(config.clusters.first());
    cluster?.cluster.as_ref()?.server.clone()
}

/// What the kubelet tells each pod: the Service's address, which leads somewhere only where somebody does Services.
fn in_cluster() -> Option<String> {
    let (host, port) = (env::var("KUBERNETES_SERVICE_HOST").ok()?, env::var("KUBERNETES_SERVICE_PORT").ok()?);
    Some(if host.contains(':') { format!("https://[{host}]:{port}") } else { format!("https://{host}:{port}") })
}
