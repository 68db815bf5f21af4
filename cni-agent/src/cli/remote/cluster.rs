//! The cluster as its user reaches it: objects, logs, and commands in pods.
use std::{pin::pin, time::Duration};

use futures_util::future::{Either, select};
use hyper::{Method, Request, StatusCode};
use k8s_openapi::{api::core::v1::Pod, apimachinery::pkg::apis::meta::v1::Status as ExecStatus};
use kube::{
    Api, Client,
    api::{AttachParams, AttachedProcess},
    config::{Config, KubeConfigOptions, Kubeconfig},
};
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader, ReadHalf, SimplexStream, WriteHalf},
    time::timeout,
};

use super::Reach;
use crate::error_chain;

/// The container of an agent's pod that is the agent.
const CONTAINER: &str = "agent";
/// What agents' pods are labelled with.
pub(in crate::cli) const LABEL: &str = "app.kubernetes.io/name=weft";
/// `weft`, in Weft's image.
const WEFT: &str = "/usr/bin/weft";
/// A server that does not answer.
const CONNECT: Duration = Duration::from_secs(10);
/// As long as a command in a pod may take.
pub(in crate::cli) const ANSWER: Duration = Duration::from_secs(20);
/// So many bytes wait on their way here: by kube's own measure, 1 KiB, a map's dump is slow.
const PIPE: usize = 256 << 10;

/// Why the cluster does not answer. Each text says what to do.
#[derive(Debug, thiserror::Error)]
pub(in crate::cli) enum RemoteError {
    /// The kubeconfig cannot be used.
    #[error(
        "use the kubeconfig: {cause}. Name another one by --kubeconfig or KUBECONFIG, another context by --context"
    )]
    Kubeconfig {
        /// The cause.
        cause: String,
    },
    /// The API server says no, or nothing.
    #[error("ask {server} for {what}: {cause}")]
    Api {
        /// The server.
        server: String,
        /// What was asked for.
        what: String,
        /// The answer's HTTP status, if there was one.
        code: Option<StatusCode>,
        /// The cause.
        cause: String,
    },
    /// No agent is there.
    #[error(
        "no agent of Weft in namespace {namespace}{nodes}: name Weft's namespace by --weft-namespace, a node by its name in `kubectl get nodes`"
    )]
    NoAgent {
        /// Where they were looked for.
        namespace: String,
        /// On which nodes.
        nodes: String,
    },
    /// A command in a pod could not be run, or has not ended.
    #[error("run weft in pod {pod}: {cause}")]
    Exec {
        /// The pod.
        pod: String,
        /// The cause.
        cause: String,
    },
}

impl RemoteError {
    /// Whether the object, or its kind, is not there.
    pub(in crate::cli) fn not_found(&self) -> bool {
        matches!(self, Self::Api { code: Some(StatusCode::NOT_FOUND), .. })
    }
}

/// A cluster.
pub(in crate::cli) struct Cluster {
    client: Client,
    /// The API server's URL.
    pub(in crate::cli) name: String,
    /// Weft's namespace.
    pub(in crate::cli) namespace: String,
}

/// The agent of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::cli) struct Agent {
    /// Its node.
    pub(in crate::cli) node: String,
    /// Its pod.
    pub(in crate::cli) pod: String,
    /// Why nothing can be run in it; `None` when something can.
    pub(in crate::cli) down: Option<String>,
    /// How often it was started anew.
    pub(in crate::cli) restarts: u64,
    /// The image that it was started from.
    pub(in crate::cli) image: String,
}

impl Agent {
    /// From a Pod object.
    fn of(pod: &Value) -> Self {
        let text = |at: &Value| at.as_str().unwrap_or_default().to_owned();
        let status = pod["status"]["containerStatuses"].as_array().into_iter().flatten();
        let status = status.into_iter().find(|c| c["name"] == CONTAINER).cloned().unwrap_or_default();
        let waits = &status["state"]["waiting"];
        let ended = &status["lastState"]["terminated"];
        let down = (status["state"]["running"].is_null()).then(|| {
            let mut why = format!("the pod {} is {}", text(&pod["metadata"]["name"]), text(&pod["status"]["phase"]));
            for part in [&waits["reason"], &ended["reason"], &ended["exitCode"]] {
                match part {
                    Value::String(reason) => why.push_str(&format!(", {reason}")),
                    Value::Number(code) => why.push_str(&format!(", exit status {code}")),
                    _ => {}
                }
            }
            format!("{why}: `kubectl logs --previous` says more")
        });
        let of_spec = pod["spec"]["containers"].as_array().into_iter().flatten();
        Self {
            node: text(&pod["spec"]["nodeName"]),
            pod: text(&pod["metadata"]["name"]),
            down,
            restarts: status["restartCount"].as_u64().unwrap_or_default(),
            image: of_spec.into_iter().find(|c| c["name"] == CONTAINER).map(|c| text(&c["image"])).unwrap_or_default(),
        }
    }
}

/// What a command in a pod has said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::cli) struct Said {
    /// Standard output.
    pub(in crate::cli) stdout: String,
    /// Standard error.
    pub(in crate::cli) stderr: String,
    /// Exit status.
    pub(in crate::cli) code: i32,
}

impl Cluster {
    /// The cluster that the options name; nothing is asked yet.
    pub(in crate::cli) async fn reach(reach: &Reach) -> Result<Self, RemoteError> {
        let failed = |e: &dyn std::error::Error| RemoteError::Kubeconfig { cause: error_chain(e) };
        let options = KubeConfigOptions { context: reach.context.clone(), ..KubeConfigOptions::default() };
        let mut config = match &reach.kubeconfig {
            Some(path) => {
                let text = Kubeconfig::read_from(path).map_err(|e| failed(&e))?;
                Config::from_custom_kubeconfig(text, &options).await
            }
            None => Config::from_kubeconfig(&options).await,
        }
        .map_err(|e| failed(&e))?;
        config.connect_timeout = Some(CONNECT);
        let name = config.cluster_url.to_string().trim_end_matches('/').to_owned();
        let client = Client::try_from(config).map_err(|e| failed(&e))?;
        Ok(Self { client, name, namespace: reach.weft_namespace.clone() })
    }

    fn failed(&self, what: &str, e: &kube::Error) -> RemoteError {
        let (code, cause) = match e {
            kube::Error::Api(status) => (StatusCode::from_u16(status.code).ok(), status.message.clone()),
            other => (None, error_chain(other)),
        };
        RemoteError::Api { server: self.name.clone(), what: what.to_owned(), code, cause }
    }

    async fn ask(&self, method: Method, path: &str, kind: &str, body: Vec<u8>) -> Result<String, RemoteError> {
        let request = Request::builder().method(method).uri(path).header("Content-Type", kind).body(body);
        let request = request.map_err(|e| self.failed(path, &kube::Error::HttpError(e)))?;
        match timeout(ANSWER, self.client.request_text(request)).await {
            Ok(answer) => answer.map_err(|e| self.failed(path, &e)),
            Err(_) => {
                let cause = format!("no answer for {} s", ANSWER.as_secs());
                Err(RemoteError::Api { server: self.name.clone(), what: path.to_owned(), code: None, cause })
            }
        }
    }

    /// An object, a list, or a text, by its path in the API.
    pub(in crate::cli) async fn text(&self, path: &str) -> Result<String, RemoteError> {
        self.ask(Method::GET, path, "application/json", Vec::new()).await
    }

    /// An object or a list, by its path in the API.
    pub(in crate::cli) async fn get(&self, path: &str) -> Result<Value, RemoteError> {
        let text = self.text(path).await?;
        serde_json::from_str(&text).map_err(|e| self.failed(path, &kube::Error::SerdeError(e)))
    }

    /// Makes an object in this collection.
    pub(in crate::cli) async fn create(&self, path: &str, object: &Value) -> Result<(), RemoteError> {
        self.ask(Method::POST, path, "application/json", object.to_string().into_bytes()).await.map(drop)
    }

    /// Deletes an object; one that is not there is deleted.
    pub(in crate::cli) async fn delete(&self, path: &str) -> Result<(), RemoteError> {
        match self.ask(Method::DELETE, path, "application/json", Vec::new()).await {
            Err(e) if !e.not_found() => Err(e),
            _ => Ok(()),
        }
    }

    /// The agents on these nodes, or all, by the names of their nodes. A node that is named and has none is an error.
    pub(in crate::cli) async fn agents(&self, nodes: &[String]) -> Result<Vec<Agent>, RemoteError> {
        let list = self.get(&format!("/api/v1/namespaces/{}/pods?labelSelector={LABEL}", self.namespace)).await?;
        let mut all: Vec<Agent> = list["items"].as_array().into_iter().flatten().map(Agent::of).collect();
        // One that goes and one that comes may be on a node at the same time.
        all.sort_by(|a, b| (&a.node, a.down.is_some(), &a.pod).cmp(&(&b.node, b.down.is_some(), &b.pod)));
        all.dedup_by(|a, b| a.node == b.node);
        all.retain(|a| !a.node.is_empty() && (nodes.is_empty() || nodes.contains(&a.node)));
        let missing: Vec<&str> =
            nodes.iter().filter(|n| !all.iter().any(|a| a.node == **n)).map(String::as_str).collect();
        if all.is_empty() || !missing.is_empty() {
            let nodes = if missing.is_empty() { String::new() } else { format!(" on node {}", missing.join(", ")) };
            return Err(RemoteError::NoAgent { namespace: self.namespace.clone(), nodes });
        }
        Ok(all)
    }

    /// Runs `weft` with these words in an agent's pod, to its end.
    pub(in crate::cli) async fn weft(&self, agent: &Agent, words: &[&str]) -> Result<Said, RemoteError> {
        if let Some(why) = &agent.down {
            return Err(RemoteError::Exec { pod: agent.pod.clone(), cause: why.clone() });
        }
        self.run(&self.namespace, &agent.pod, CONTAINER, words, ANSWER).await
    }

    /// Runs `weft` with these words in a pod, to its end.
    pub(in crate::cli) async fn run(
        &self,
        namespace: &str,
        pod: &str,
        container: &str,
        words: &[&str],
        limit: Duration,
    ) -> Result<Said, RemoteError> {
        let failed = |cause: String| RemoteError::Exec { pod: pod.to_owned(), cause };
        let run = async {
            let mut process = self.exec(namespace, pod, container, words, false).await?;
            let (Some(mut stdout), Some(mut stderr)) = (process.stdout(), process.stderr()) else {
                return Err(failed("its output is not there".into()));
            };
            let (mut said, mut complaint) = (Vec::new(), Vec::new());
            let (a, b) = tokio::join!(stdout.read_to_end(&mut said), stderr.read_to_end(&mut complaint));
            a.and(b).map_err(|e| failed(e.to_string()))?;
            let Some(status) = process.take_status() else { return Err(failed("it has no status".into())) };
            let status = status.await;
            let code = exit_code(status.as_ref()).ok_or_else(|| {
                failed(status.and_then(|s| s.message).unwrap_or_else(|| "the connection broke".into()))
            })?;
            let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
            Ok(Said { stdout: text(said), stderr: text(complaint), code })
        };
        let late = || failed(format!("it has not ended after {} s: the agent may hang", limit.as_secs()));
        timeout(limit, run).await.map_err(|_| late())?
    }

    /// Runs `weft` with these words in an agent's pod, and gives its lines as they come. It ends with the value.
    pub(in crate::cli) async fn lines(&self, agent: &Agent, words: &[&str]) -> Result<Lines, RemoteError> {
        let failed = |cause: String| RemoteError::Exec { pod: agent.pod.clone(), cause };
        if let Some(why) = &agent.down {
            return Err(failed(why.clone()));
        }
        let start = self.exec(&self.namespace, &agent.pod, CONTAINER, words, true);
        let mut process = timeout(ANSWER, start).await.map_err(|_| failed("it does not begin".into()))??;
        let (Some(stdout), Some(stderr), Some(stdin)) = (process.stdout(), process.stderr(), process.stdin()) else {
            return Err(failed("its output is not there".into()));
        };
        Ok(Lines { stdout: BufReader::new(stdout), stderr, _process: process, _stdin: stdin })
    }

    async fn exec(
        &self,
        namespace: &str,
        pod: &str,
        container: &str,
        words: &[&str],
        stdin: bool,
    ) -> Result<AttachedProcess, RemoteError> {
        let mut parameters = AttachParams::default().container(container).stdin(stdin);
        parameters.max_stdout_buf_size = Some(PIPE);
        let command: Vec<&str> = [WEFT].iter().chain(words).copied().collect();
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), namespace);
        pods.exec(pod, command, &parameters).await.map_err(|e| {
            let cause = match &e {
                kube::Error::Api(status) => status.message.clone(),
                other => error_chain(other),
            };
            let cure = if cause.contains("403") || cause.contains("forbidden") {
                " (it takes the right to create pods/exec in Weft's namespace)"
            } else {
                ""
            };
            RemoteError::Exec { pod: pod.to_owned(), cause: cause + cure }
        })
    }

    /// The end of a container's log; of the one before when `previous`.
    pub(in crate::cli) async fn log(&self, agent: &Agent, previous: bool, lines: u32) -> Result<String, RemoteError> {
        let (namespace, pod) = (&self.namespace, &agent.pod);
        self.text(&format!(
            "/api/v1/namespaces/{namespace}/pods/{pod}/log?container={CONTAINER}&previous={previous}&tailLines={lines}"
        ))
        .await
    }
}

/// The exit status of a command in a pod; `None` when it was not run to its end.
fn exit_code(status: Option<&ExecStatus>) -> Option<i32> {
    let status = status?;
    if status.status.as_deref() == Some("Success") {
        return Some(0);
    }
    let causes = status.details.as_ref().and_then(|d| d.causes.as_deref()).unwrap_or_default();
    let code = causes.iter().find(|c| c.reason.as_deref() == Some("ExitCode"));
    code.and_then(|c| c.message.as_deref()?.parse().ok())
}

/// What a command in a pod says, line by line.
pub(in crate::cli) struct Lines {
    stdout: BufReader<ReadHalf<SimplexStream>>,
    stderr: ReadHalf<SimplexStream>,
    _process: AttachedProcess,
    /// The command ends when this does.
    _stdin: WriteHalf<SimplexStream>,
}

impl Lines {
    /// The next line; when there is none any more, why.
    pub(in crate::cli) async fn next(&mut self) -> Result<String, String> {
        let mut line = String::new();
        let mut complaint = String::new();
        let read = pin!(self.stdout.read_line(&mut line));
        let complains = pin!(self.stderr.read_to_string(&mut complaint));
        // What it complains of is known when it has ended; what it says before that comes first.
        let read = match select(read, complains).await {
            Either::Left((read, _)) => read,
            Either::Right((_, read)) => read.await,
        };
        match read {
            Ok(0) => Err(if complaint.is_empty() { "it has ended".into() } else { complaint.trim().to_owned() }),
            Ok(_) => Ok(line.trim_end_matches('\n').to_owned()),
            Err(e) => Err(e.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_agent_that_does_not_run_says_why() {
        let pod = |state: Value, last: Value| {
            json!({
                "metadata": {"name": "weft-x"}, "spec": {"nodeName": "node-1", "containers": [{"name": "agent", "image": "i"}]},
                "status": {"phase": "Running", "containerStatuses": [
                    {"name": "agent", "restartCount": 3, "state": state, "lastState": last}]},
            })
        };
        let runs = Agent::of(&pod(json!({"running": {}}), json!({})));
        assert_eq!((runs.down, runs.restarts, runs.image.as_str()), (None, 3, "i"));
        let loops = pod(
            json!({"waiting": {"reason": "CrashLoopBackOff"}}),
            json!({"terminated": {"reason": "Error", "exitCode": 1}}),
        );
        let why = Agent::of(&loops).down.unwrap();
        assert!(why.contains("CrashLoopBackOff") && why.contains("exit status 1"), "{why}");
        let pending = Agent::of(
            &json!({"metadata": {"name": "weft-x"}, "spec": {"nodeName": "n"}, "status": {"phase": "Pending"}}),
        );
        assert!(pending.down.unwrap().contains("Pending"));
    }

    #[test]
    fn the_exit_status_is_among_the_causes() {
        let status = |text: Value| serde_json::from_value::<ExecStatus>(text).unwrap();
        assert_eq!(exit_code(Some(&status(json!({"status": "Success"})))), Some(0));
        let failed = json!({"status": "Failure", "reason": "NonZeroExitCode",
            "details": {"causes": [{"reason": "ExitCode", "message": "2"}]}});
        assert_eq!(exit_code(Some(&status(failed))), Some(2));
        assert_eq!(exit_code(Some(&status(json!({"status": "Failure", "message": "no such container"})))), None);
        assert_eq!(exit_code(None), None);
    }
}
