use std::{path::PathBuf, sync::Mutex};

use hyper::StatusCode;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{sync::broadcast, task::JoinHandle};

use super::{
    types::{FlowStatus, FlowTable, Flushed},
    *,
};
use crate::cli::client::{Client, ClientError};

/// An agent for tests: answers that can be told apart, and events by hand.
#[derive(Clone)]
pub(crate) struct Fake {
    pub not_ready: Option<String>,
    pub drops: Drops,
    pub verified: Verified,
    pub flows: Vec<FlowStatus>,
    pub explanation: Explanation,
    /// What was to be removed last.
    pub flushed: Arc<Mutex<Option<Filter>>>,
    pub events: broadcast::Sender<Arc<DropEvent>>,
}
impl Default for Fake {
    fn default() -> Self {
        Self {
            not_ready: None,
            drops: Drops::default(),
            verified: Verified::default(),
            flows: Vec::new(),
            explanation: Explanation::default(),
            flushed: Arc::default(),
            events: broadcast::channel(2).0,
        }
    }
}
impl Inspect for Fake {
    fn health(&self) -> Result<(), String> {
        self.not_ready.clone().map_or(Ok(()), Err)
    }
    fn status(&self) -> Status {
        Status { node: "node-1".into(), not_ready: self.not_ready.clone(), ..Status::default() }
    }
    fn endpoints(&self) -> Vec<EndpointStatus> {
        vec![]
    }
    fn policies(&self) -> PolicyList {
        PolicyList::default()
    }
    fn explain(&self, from: &str, to: &str, probe: Probe) -> Result<Explanation, ExplainError> {
        match [from, to].into_iter().find(|end| end.ends_with("/nobody")) {
            Some(end) => Err(ExplainError::NoSuchPod(end.to_owned())),
            None => Ok(Explanation { probe: probe.to_string(), ..self.explanation.clone() }),
        }
    }
    fn nodes(&self) -> Vec<NodeStatus> {
        vec![NodeStatus {
            name: "node-1".into(),
            own: true,
            pod_cidrs: vec!["10.1.0.0/24".parse().unwrap()],
            internal_ips: vec!["fd00::1".parse().unwrap()],
            tunnel_address: None,
            next_hop: None,
            kernel: "applied".into(),
        }]
    }
    fn pods(&self) -> Vec<PodStatus> {
        vec![]
    }
    fn ipam(&self) -> Vec<IpamAddress> {
        vec![]
    }
    fn audit(&self) -> Audit {
        Audit::default()
    }
    fn verify(&self) -> Option<Verified> {
        Some(self.verified.clone())
    }
    fn maps(&self) -> Result<Vec<MapInfo>, MapError> {
        Ok(vec![MapInfo { name: "local_v1".into(), ..MapInfo::default() }])
    }
    fn map_dump(&self, name: &str) -> Result<Vec<MapEntry>, MapError> {
        match name {
            "local_v1" => Ok(vec![MapEntry { key: json!("10.1.0.1"), value: json!({"ifindex": 7}) }]),
            "events" => Err(MapError::NotListable { name: name.into(), kind: "ring buffer".into() }),
            "gone" => Err(MapError::Read { name: name.into(), cause: "EPERM".into() }),
            "bug" => panic!("as a bug would"),
            _ => Err(MapError::NoSuchMap { name: name.into() }),
        }
    }
    fn drops(&self) -> Result<Drops, MapError> {
        Ok(self.drops.clone())
    }
    fn flows(&self, filter: &Filter, limit: usize) -> Result<FlowList, FlowError> {
        match filter.pods.first() {
            Some(pod) if pod.ends_with("/nobody") => Err(FlowError::NoSuchPod(pod.clone())),
            _ => Ok(FlowList {
                flows: self.flows.iter().take(limit).cloned().collect(),
                matched: self.flows.len() as u64,
            }),
        }
    }
    fn flow_counts(&self) -> Result<FlowCounts, FlowError> {
        let states = [("established".to_owned(), self.flows.len() as u64)].into();
        let (family, table, flows, size) = ("IPv4".into(), "settled".into(), self.flows.len() as u64, 131_072);
        Ok(FlowCounts { tables: vec![FlowTable { family, table, flows, size, states }] })
    }
    fn flush_flows(&self, filter: &Filter) -> Result<u64, FlowError> {
        self.flows(filter, 0)?;
        *self.flushed.lock().unwrap() = Some(filter.clone());
        Ok(self.flows.len() as u64)
    }
    fn observe(&self) -> Receiver<Arc<DropEvent>> {
        self.events.subscribe()
    }
}

/// A served fake; it ends with this.
pub(crate) struct Served {
    pub path: PathBuf,
    pub task: JoinHandle<anyhow::Result<()>>,
    _dir: TempDir,
}
impl Served {
    pub fn new(fake: Fake) -> Self {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("api.sock");
        let listener = bind(&path).unwrap();
        Self { path, task: tokio::spawn(serve_on(listener, Arc::new(fake))), _dir: dir }
    }
    pub fn client(&self) -> Client {
        Client::new(&self.path)
    }
}
impl Drop for Served {
    fn drop(&mut self) {
        self.task.abort();
    }
}

pub(crate) fn event(reason: &str) -> DropEvent {
    DropEvent {
        time: 1_700_000_000_123_000_000,
        pod: Some("default/web".into()),
        endpoint: 3,
        ifindex: 7,
        src: Some("10.1.0.1".parse().unwrap()),
        dst: Some("fd00::1".parse().unwrap()),
        protocol: Some(6),
        src_port: Some(4000),
        dst_port: Some(80),
        length: 74,
        reason: reason.into(),
        point: "from_pod".into(),
        description: "it is so".into(),
        audit: false,
        policies: vec![],
        rule: None,
        ends: None,
    }
}

#[tokio::test]
async fn each_path_answers_with_its_type() {
    let served = Served::new(Fake::default());
    let client = served.client();
    assert_eq!(client.get::<Status>("/v1/status").await.unwrap().node, "node-1");
    assert_eq!(client.get::<Vec<NodeStatus>>("/v1/nodes").await.unwrap(), Fake::default().nodes());
    assert_eq!(client.get::<Vec<EndpointStatus>>("/v1/endpoints").await.unwrap(), []);
    assert_eq!(client.get::<PolicyList>("/v1/policies").await.unwrap(), PolicyList::default());
    assert_eq!(client.get::<Vec<PodStatus>>("/v1/pods").await.unwrap(), []);
    assert_eq!(client.get::<Vec<MapInfo>>("/v1/maps").await.unwrap()[0].name, "local_v1");
    assert_eq!(
        client.get::<Value>("/v1/maps/local_v1").await.unwrap(),
        json!([{"key": "10.1.0.1", "value": {"ifindex": 7}}])
    );
    assert_eq!(client.get::<Drops>("/v1/drops").await.unwrap(), Drops::default());
}

#[tokio::test]
async fn healthz_says_why_the_agent_is_not_ready() {
    let reason = "no Node object named node-1 was seen";
    let ready = Served::new(Fake::default());
    assert_eq!(ready.client().health().await.unwrap(), Ok(()));
    let waiting = Served::new(Fake { not_ready: Some(reason.into()), ..Fake::default() });
    assert_eq!(waiting.client().health().await.unwrap(), Err(reason.to_owned()));
    let refused = waiting.client().open("/v1/healthz").await.unwrap_err();
    assert!(matches!(refused, ClientError::Refused { status: StatusCode::SERVICE_UNAVAILABLE, .. }), "{refused}");
}

#[tokio::test]
async fn errors_have_a_status_a_cause_and_a_cure() {
    let served = Served::new(Fake::default());
    let cases = [
        ("/v1/maps/none", StatusCode::NOT_FOUND, "there is no map `none`", "weft map list"),
        ("/v1/maps/events", StatusCode::BAD_REQUEST, "ring buffer", "weft observe"),
        ("/v1/maps/gone", StatusCode::INTERNAL_SERVER_ERROR, "EPERM", "restart it"),
        ("/v1/maps/bug", StatusCode::INTERNAL_SERVER_ERROR, "could not answer", "bug of the agent"),
        ("/v2/status", StatusCode::NOT_FOUND, "nothing at /v2/status", "known are healthz"),
    ];
    for (path, wanted, cause, remedy) in cases {
        let error = served.client().get::<Value>(path).await.unwrap_err();
        let ClientError::Refused { status, error, cure } = error else { panic!("{path}: {error}") };
        assert!(status == wanted && error.contains(cause) && cure.contains(remedy), "{path}: {status} {error}: {cure}");
    }
    assert_eq!(served.client().health().await.unwrap(), Ok(()), "the server lives on");
}

pub(crate) fn flow(port: u16) -> FlowStatus {
    FlowStatus {
        family: "IPv4".into(),
        protocol: 6,
        source: "10.1.0.1".parse().unwrap(),
        source_port: Some(port),
        destination: "10.1.0.2".parse().unwrap(),
        destination_port: Some(80),
        echo_id: None,
        state: "established".into(),
        seconds_left: 7999,
        source_pod: Some("shop/client".into()),
        destination_pod: None,
        table: "settled".into(),
        epoch: 1,
        masqueraded_as: None,
    }
}

#[tokio::test]
async fn flows_are_listed_up_to_a_limit_and_removed_only_as_asked() {
    let fake = Fake { flows: vec![flow(4000), flow(4001)], ..Fake::default() };
    let served = Served::new(fake.clone());
    let client = served.client();
    let list = client.get::<FlowList>("/v1/flows?limit=1&state=established").await.unwrap();
    assert_eq!((list.flows.as_slice(), list.matched), ([flow(4000)].as_slice(), 2));
    assert_eq!(client.get::<FlowCounts>("/v1/flows/count").await.unwrap().tables[0].flows, 2);
    for (path, status, part) in [
        ("/v1/flows", StatusCode::BAD_REQUEST, "nothing says which flows"),
        ("/v1/flows?port=none", StatusCode::BAD_REQUEST, "`none` is no port"),
        ("/v1/flows?colour=red", StatusCode::BAD_REQUEST, "unknown field `colour`"),
        ("/v1/flows?pod=shop%2Fnobody", StatusCode::NOT_FOUND, "there is no pod `shop/nobody`"),
    ] {
        let refused = client.delete::<Flushed>(path).await;
        let ClientError::Refused { status: got, error, .. } = refused.unwrap_err() else { panic!("{path}") };
        assert!(got == status && error.contains(part), "{path}: {got} {error}");
    }
    assert_eq!(*fake.flushed.lock().unwrap(), None);
    assert_eq!(client.delete::<Flushed>("/v1/flows?protocol=udp").await.unwrap(), Flushed { flushed: 2 });
    let asked = fake.flushed.lock().unwrap().take().unwrap();
    assert_eq!(asked, Filter { protocols: vec![17], ..Filter::default() });
    client.delete::<Flushed>("/v1/flows?all=true").await.unwrap();
    assert!(fake.flushed.lock().unwrap().take().unwrap().takes_all());
}

#[tokio::test]
async fn a_method_that_writes_is_refused() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let served = Served::new(Fake::default());
    let mut stream = tokio::net::UnixStream::connect(&served.path).await.unwrap();
    stream.write_all(b"DELETE /v1/nodes HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 405 ") && answer.contains("use GET"), "{answer}");
}

#[tokio::test]
async fn observers_get_each_event_as_a_line() {
    let fake = Fake::default();
    let served = Served::new(fake.clone());
    let mut first = served.client().open("/v1/observe").await.unwrap();
    let mut second = served.client().open("/v1/observe").await.unwrap();
    for reason in ["Short", "Vlan"] {
        fake.events.send(Arc::new(event(reason))).unwrap();
    }
    for stream in [&mut first, &mut second] {
        for reason in ["Short", "Vlan"] {
            let line = stream.line().await.unwrap().unwrap();
            assert_eq!(serde_json::from_str::<Observed>(&line).unwrap(), Observed::Drop(Box::new(event(reason))));
        }
    }
}

#[tokio::test]
async fn an_observer_that_is_too_slow_is_told_what_it_missed() {
    let fake = Fake::default();
    let served = Served::new(fake.clone());
    let mut stream = served.client().open("/v1/observe").await.unwrap();
    // The channel holds two. One thread runs this test and the server, so the server sees nothing between these.
    for reason in ["a", "b", "c", "d", "e"] {
        fake.events.send(Arc::new(event(reason))).unwrap();
    }
    assert_eq!(stream.line().await.unwrap().unwrap(), r#"{"lost":3}"#);
    assert!(stream.line().await.unwrap().unwrap().contains(r#""reason":"d""#));
    assert!(stream.line().await.unwrap().unwrap().contains(r#""reason":"e""#));
}

#[tokio::test]
async fn the_socket_goes_when_the_server_ends() {
    let served = Served::new(Fake::default());
    assert_eq!(served.client().health().await.unwrap(), Ok(()));
    let path = served.path.clone();
    served.task.abort();
    while !served.task.is_finished() {
        tokio::task::yield_now().await;
    }
    assert!(!path.exists());
}
