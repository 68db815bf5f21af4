//! An API server that does what a test asks of it: lists, streamed or by page, watches, and everything that goes wrong with them.
use std::{
    collections::BTreeMap,
    convert::Infallible,
    net::SocketAddr,
    sync::{Arc, Condvar, Mutex, MutexGuard},
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    extract::{Request, State},
    http::{Method, StatusCode, header},
    response::{IntoResponse, Response},
};
use futures_util::stream;
use serde_json::{Value, json};
use tokio::{net::TcpListener, runtime::Runtime, sync::watch};

/// The collections that there are; everything else is answered with 404.
pub const NODES: &str = "/api/v1/nodes";
pub const PODS: &str = "/api/v1/pods";
pub const NAMESPACES: &str = "/api/v1/namespaces";
pub const NETWORK_POLICIES: &str = "/apis/networking.k8s.io/v1/networkpolicies";
pub const SERVICE_CIDRS: &str = "/apis/networking.k8s.io/v1/servicecidrs";
pub const CLUSTER_POLICIES: &str = "/apis/policy.networking.k8s.io/v1alpha2/clusternetworkpolicies";
pub const SLICES: &str = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices";

/// The objects, behind any number of servers.
#[derive(Clone)]
pub struct Fake {
    state: Arc<Mutex<Cluster>>,
    changed: watch::Sender<u64>,
    written: Arc<Condvar>,
}

struct Cluster {
    version: u64,
    /// Versions before this one are forgotten.
    oldest: u64,
    objects: BTreeMap<(String, String), Value>,
    log: Vec<(u64, &'static str, String, Value)>,
    streams: bool,
    page: usize,
    token: Option<String>,
    /// Collections whose lists are kept back.
    held: Vec<String>,
    absent: Vec<String>,
    read_only: bool,
    requests: Vec<String>,
}

/// A server; dropped, it is gone, and all connections with it.
pub struct Server {
    pub url: String,
    pub address: SocketAddr,
    runtime: Option<Runtime>,
}
impl Drop for Server {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // Waits, so that the address is free again.
            runtime.shutdown_timeout(Duration::from_secs(20));
        }
    }
}

impl Fake {
    pub fn new() -> Self {
        let cluster = Cluster {
            version: 1,
            oldest: 0,
            objects: BTreeMap::new(),
            log: Vec::new(),
            streams: true,
            page: usize::MAX,
            token: None,
            held: Vec::new(),
            absent: Vec::new(),
            read_only: false,
            requests: Vec::new(),
        };
        Self { state: Arc::new(Mutex::new(cluster)), changed: watch::Sender::new(0), written: Arc::default() }
    }

    fn state(&self) -> MutexGuard<'_, Cluster> {
        self.state.lock().unwrap()
    }
    fn change(&self, how: impl FnOnce(&mut Cluster)) {
        how(&mut self.state());
        self.written.notify_all();
        self.changed.send_modify(|n| *n += 1);
    }

    /// A server on a port of its own.
    pub fn serve(&self) -> Server {
        self.serve_at(SocketAddr::from(([127, 0, 0, 1], 0)))
    }
    /// A server that comes back where it was.
    pub fn serve_at(&self, address: SocketAddr) -> Server {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = runtime.block_on(TcpListener::bind(address)).unwrap();
        let address = listener.local_addr().unwrap();
        let router = Router::new().fallback(answer).with_state(self.clone());
        runtime.spawn(async move { axum::serve(listener, router).await });
        Server { url: format!("http://{address}"), address, runtime: Some(runtime) }
    }

    /// Writes an object.
    pub fn put(&self, collection: &str, mut object: Value) {
        self.change(|c| {
            c.version += 1;
            object["metadata"]["resourceVersion"] = c.version.to_string().into();
            let key = (collection.to_owned(), name(&object));
            let there = c.objects.insert(key, object.clone()).is_some();
            c.log.push((c.version, if there { "MODIFIED" } else { "ADDED" }, collection.to_owned(), object));
        });
    }
    /// Removes an object, by `NAMESPACE/NAME` or name.
    pub fn delete(&self, collection: &str, key: &str) {
        self.change(|c| {
            c.version += 1;
            let mut object = c.objects.remove(&(collection.to_owned(), key.to_owned())).unwrap();
            object["metadata"]["resourceVersion"] = c.version.to_string().into();
            c.log.push((c.version, "DELETED", collection.to_owned(), object));
        });
    }
    /// Forgets what was, as a server does that was compacted.
    pub fn compact(&self) {
        self.change(|c| {
            c.log.clear();
            c.oldest = c.version;
        });
    }
    /// Goes back to an earlier state, as a server does that was restored from a backup.
    pub fn restore(&self, version: u64) {
        self.change(|c| {
            c.log.clear();
            (c.version, c.oldest) = (version, 0);
        });
    }
    pub fn streams(&self, streams: bool, page: usize) {
        self.change(|c| (c.streams, c.page) = (streams, page));
    }
    pub fn demand(&self, token: &str) {
        self.change(|c| c.token = Some(token.to_owned()));
    }
    pub fn hold(&self, collection: &str) {
        self.change(|c| c.held.push(collection.to_owned()));
    }
    pub fn release(&self) {
        self.change(|c| c.held.clear());
    }
    pub fn remove_kind(&self, collection: &str) {
        self.change(|c| c.absent.push(collection.to_owned()));
    }
    pub fn forbid_writes(&self) {
        self.change(|c| c.read_only = true);
    }
    /// An object as it is.
    pub fn object(&self, collection: &str, key: &str) -> Option<Value> {
        self.state().objects.get(&(collection.to_owned(), key.to_owned())).cloned()
    }
    /// Waits until an object is as it should be.
    pub fn await_object(&self, timeout: Duration, collection: &str, key: &str, right: impl Fn(&Value) -> bool) {
        let there = |c: &Cluster| c.objects.get(&(collection.to_owned(), key.to_owned())).is_some_and(&right);
        let (state, _) = self.written.wait_timeout_while(self.state(), timeout, |c| !there(c)).unwrap();
        assert!(there(&state), "{key}: {:#?}", state.objects.get(&(collection.to_owned(), key.to_owned())));
    }
    /// A patch of a node, of either kind.
    fn patch(&self, name: &str, patch: &Value) -> Response {
        let Some(mut object) = self.object(NODES, name) else { return refuse(404, "NotFound", "no such node") };
        if let Some(operations) = patch.as_array() {
            for operation in operations {
                let at = operation["path"].as_str().unwrap();
                match operation["op"].as_str() {
                    Some("test") if object.pointer(at) == Some(&operation["value"]) => {}
                    Some("replace") => *object.pointer_mut(at).unwrap() = operation["value"].clone(),
                    _ => return refuse(422, "Invalid", "the test failed"),
                }
            }
        } else {
            for new in patch["status"]["conditions"].as_array().unwrap() {
                let conditions = object["status"]["conditions"].as_array_mut().unwrap();
                conditions.retain(|c| c["type"] != new["type"]);
                conditions.push(new.clone());
            }
        }
        self.put(NODES, object.clone());
        object.to_string().into_response()
    }
    /// Waits until so many requests had this in them.
    pub fn await_requests(&self, timeout: Duration, part: &str, count: usize) {
        let there = |c: &Cluster| c.requests.iter().filter(|r| r.contains(part)).count() >= count;
        let (state, _) = self.written.wait_timeout_while(self.state(), timeout, |c| !there(c)).unwrap();
        assert!(there(&state), "{part}: {:#?}", state.requests);
    }
    /// All requests, as method and URL.
    pub fn requests(&self) -> Vec<String> {
        self.state().requests.clone()
    }
}

fn name(object: &Value) -> String {
    let part = |field: &str| object["metadata"][field].as_str().unwrap_or_default().to_owned();
    let (namespace, name) = (part("namespace"), part("name"));
    if namespace.is_empty() { name } else { format!("{namespace}/{name}") }
}

fn refusal(code: u16, reason: &str, message: &str) -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "code": code, "reason": reason, "message": message})
}
fn refuse(code: u16, reason: &str, message: &str) -> Response {
    (StatusCode::from_u16(code).unwrap(), refusal(code, reason, message).to_string()).into_response()
}

async fn answer(State(fake): State<Fake>, request: Request) -> Response {
    let (path, query) = (request.uri().path().to_owned(), request.uri().query().unwrap_or_default().to_owned());
    let parameter = |wanted: &str| {
        query.split('&').find_map(|p| p.strip_prefix(wanted)?.strip_prefix('=')).map(str::to_owned).unwrap_or_default()
    };
    let given = request.headers().get(header::AUTHORIZATION).map(|v| v.to_str().unwrap().to_owned());
    {
        let mut c = fake.state();
        c.requests.push(format!("{} {}", request.method(), request.uri()));
        fake.written.notify_all();
        if let Some(token) = &c.token
            && given != Some(format!("Bearer {token}"))
        {
            return refuse(401, "Unauthorized", "Unauthorized");
        }
        if request.method() == Method::PATCH && c.read_only {
            return refuse(403, "Forbidden", "cannot patch resource nodes");
        }
        if request.method() != Method::PATCH
            && ![NODES, NAMESPACES, PODS, NETWORK_POLICIES, CLUSTER_POLICIES, SERVICE_CIDRS, SLICES]
                .contains(&path.as_str())
            || c.absent.contains(&path)
        {
            return refuse(404, "NotFound", "the server could not find the requested resource");
        }
    }
    if request.method() == Method::PATCH {
        let name = path.strip_prefix("/api/v1/nodes/").unwrap().trim_end_matches("/status").to_owned();
        let body = axum::body::to_bytes(request.into_body(), 1 << 20).await.unwrap();
        return fake.patch(&name, &serde_json::from_slice(&body).unwrap());
    }
    let mut changes = fake.changed.subscribe();
    while fake.state().held.contains(&path) {
        changes.changed().await.unwrap();
    }
    // The collection as the selector leaves it.
    let hides = query.contains("status.phase");
    match parameter("watch").as_str() {
        "true" => watch_it(&fake, path, hides, parameter("resourceVersion"), parameter("sendInitialEvents") == "true"),
        _ => list_it(&fake.state(), &path, hides, parameter("continue")),
    }
}

fn hidden(object: &Value, hides: bool) -> bool {
    hides && matches!(object["status"]["phase"].as_str(), Some("Succeeded" | "Failed"))
}

fn list_it(c: &Cluster, path: &str, hides: bool, from: String) -> Response {
    let all = c.objects.iter().filter(|((p, _), o)| p == path && !hidden(o, hides)).map(|(_, o)| o);
    let skip: usize = from.parse().unwrap_or(0);
    let items: Vec<&Value> = all.clone().skip(skip).take(c.page).collect();
    let next = skip + items.len();
    let next = if next < all.count() { next.to_string() } else { String::new() };
    let list = json!({"kind": "List", "metadata": {"resourceVersion": c.version.to_string(), "continue": next}, "items": items});
    list.to_string().into_response()
}

fn watch_it(fake: &Fake, path: String, hides: bool, from: String, initial: bool) -> Response {
    let mut first = String::new();
    let at = {
        let c = fake.state();
        if initial && !c.streams {
            return refuse(
                422,
                "Invalid",
                "sendInitialEvents is forbidden for watch unless the WatchList feature gate is enabled",
            );
        }
        if initial {
            for object in c.objects.iter().filter(|((p, _), o)| *p == path && !hidden(o, hides)).map(|(_, o)| o) {
                first += &line("ADDED", object);
            }
            let end = json!({"metadata": {
                "resourceVersion": c.version.to_string(), "annotations": {"k8s.io/initial-events-end": "true"}}});
            first += &line("BOOKMARK", &end);
            c.version
        } else {
            let at: u64 = from.parse().unwrap();
            if at < c.oldest {
                // Where the watch has begun already, the error comes in it.
                let expired = refusal(410, "Expired", "too old resource version");
                return line("ERROR", &expired).into_response();
            }
            if at > c.version {
                return refuse(504, "Timeout", "Too large resource version");
            }
            at
        }
    };
    let changes = fake.changed.subscribe();
    let lines = stream::unfold((fake.clone(), at, first, changes), move |(fake, mut at, first, mut changes)| {
        let path = path.clone();
        async move {
            let mut text = first;
            loop {
                {
                    let c = fake.state();
                    if at < c.oldest {
                        return None;
                    }
                    let since = at;
                    for (version, kind, _, object) in c.log.iter().filter(|(v, _, p, _)| *v > since && *p == path) {
                        at = *version;
                        let kind = if hidden(object, hides) { "DELETED" } else { kind };
                        text += &line(kind, object);
                    }
                }
                if !text.is_empty() {
                    return Some((Ok::<_, Infallible>(text), (fake, at, String::new(), changes)));
                }
                changes.changed().await.ok()?;
            }
        }
    });
    Body::from_stream(lines).into_response()
}

fn line(kind: &str, object: &Value) -> String {
    format!("{}\n", json!({"type": kind, "object": object}))
}
