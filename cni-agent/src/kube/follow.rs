//! One kind of object, followed: a list, then the changes since, over and over, whatever the server and the way there do.
use std::{collections::BTreeSet, time::Duration};

use http_body_util::BodyExt as _;
use hyper::{Request, StatusCode};
use kube::client::{Body, Client};
use tokio::time::timeout;

use super::{
    Shared,
    backoff::Backoff,
    kinds::{Flaws, Kind, Need},
    link::Connection,
    wire::{self, Line, Lines, Meta, ObjectKey, Page, Refusal},
};
use crate::error_chain;

/// Objects in a page of a list, where the server cannot stream one.
const PAGE: usize = 500;
/// Bytes of a page at most, and of a line of a watch: an object is 3 MiB at most in etcd as it is built.
const MAX_PAGE: usize = 64 << 20;
const MAX_LINE: usize = 8 << 20;
/// How long an answer may begin to come.
const ANSWER: Duration = Duration::from_secs(30);
/// How long a server may say nothing in a watch. It sends a bookmark about once a minute; one whose machine has stopped sends nothing, and no
/// connection is reset. To ask again costs little: it goes on where it was.
const SILENT: Duration = Duration::from_secs(150);
/// How long the server keeps a watch open, in seconds: as other clients do, spread, so that they do not all come back at once.
const WATCH: u64 = 300;
/// How often a kind is asked for that the server does not have, or does not give us, when the source does without: half of this at least, in seconds.
const SELDOM: u64 = 40;

/// Why a kind is not followed any further.
#[derive(Debug, thiserror::Error)]
pub enum FollowError {
    #[error("ask {server}")]
    Transport {
        server: String,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error("{server} has not answered for {} s", after.as_secs())]
    Silent { server: String, after: Duration },
    #[error("{server} refuses {what}: {refusal}")]
    Refused { server: String, what: &'static str, refusal: Refusal },
    #[error("{server} does not answer as an API server does: {cause}")]
    Form { server: String, cause: String },
}

/// How far a kind is.
#[derive(Debug)]
struct Progress {
    /// The version of the last change that is in the tables; `None` before a whole list is.
    version: Option<String>,
    /// Whether the server streams lists; until it says that it does not, it does.
    streams: bool,
}

/// Follows a kind as long as it is polled.
pub async fn follow(kind: &dyn Kind, shared: &Shared) {
    let mut progress = Progress { version: None, streams: true };
    let mut backoff = Backoff::default();
    loop {
        let Connection { client, number, server } = match shared.link.connection().await {
            Ok(connection) => connection,
            Err(error) => {
                shared.trouble(kind, Some(error_chain(&error)));
                tokio::time::sleep(backoff.next()).await;
                continue;
            }
        };
        let mut round = Round { kind, shared, client, server, well: false };
        let ended = round.run(&mut progress).await;
        if round.well {
            backoff.reset();
        }
        let Err(error) = ended else {
            // The server ended the watch, as it does after some minutes. One that ends each at once is not asked without end.
            if !round.well {
                tokio::time::sleep(backoff.next()).await;
            }
            continue;
        };
        let wait = match &error {
            FollowError::Refused { refusal, .. } if refusal.wants_a_list() && progress.version.is_some() => {
                tracing::info!(kind = kind.name(), %refusal, "the server has forgotten what was last seen: all is listed anew");
                progress.version = None;
                Duration::ZERO
            }
            FollowError::Refused { refusal, .. }
                if progress.streams && progress.version.is_none() && cannot_stream(refusal) =>
            {
                tracing::info!(kind = kind.name(), "the server does not stream lists: they are read page by page");
                progress.streams = false;
                Duration::ZERO
            }
            FollowError::Refused { refusal, .. } => {
                match refusal.code {
                    401 => shared.link.renew(number),
                    500.. => {
                        shared.link.failed(number);
                        progress.streams = true;
                    }
                    _ => {}
                }
                if refusal.code == 404 && shared.absent(kind) {
                    shared.trouble(kind, None);
                    progress.version = None;
                    tokio::time::sleep(seldom()).await;
                    continue;
                }
                let needed = kind.need() != Need::Never;
                if needed || !matches!(refusal.code, 403 | 404) { backoff.next() } else { seldom() }
            }
            FollowError::Form { .. } => {
                progress.version = None;
                backoff.next()
            }
            FollowError::Transport { .. } | FollowError::Silent { .. } => {
                shared.link.failed(number);
                progress.streams = true;
                backoff.next()
            }
        };
        if !wait.is_zero() {
            shared.trouble(kind, Some(told(kind, &error)));
            tokio::time::sleep(wait).await;
        }
    }
}

/// The error with its cure, where there is one.
fn told(kind: &dyn Kind, error: &FollowError) -> String {
    let text = error_chain(error);
    match error {
        FollowError::Refused { refusal, .. } if refusal.code == 403 => {
            format!("{text}: let the agent's service account list and watch {} (deploy/weft.yaml does)", kind.name())
        }
        FollowError::Refused { refusal, .. } if refusal.code == 401 => {
            format!("{text}: the token or certificate is not taken; it is read anew with each attempt")
        }
        _ => text,
    }
}

/// Whether a refusal of a list that streams is one because it streams: the server may not have the feature (before 1.27, or switched off).
fn cannot_stream(refusal: &Refusal) -> bool {
    matches!(refusal.code, 400 | 422)
}

/// One connection's worth of following.
struct Round<'a> {
    kind: &'a dyn Kind,
    shared: &'a Shared,
    client: Client,
    server: String,
    /// Something came of it.
    well: bool,
}

impl Round<'_> {
    /// `Ok` when the server has ended a watch.
    async fn run(&mut self, progress: &mut Progress) -> Result<(), FollowError> {
        if progress.version.is_none() && progress.streams {
            return self.watch(progress, true).await;
        }
        if progress.version.is_none() {
            progress.version = Some(self.list().await?);
        }
        self.watch(progress, false).await
    }

    /// Reads all objects page by page; the version from which a watch goes on.
    async fn list(&mut self) -> Result<String, FollowError> {
        let mut seen = BTreeSet::new();
        let mut next = String::new();
        loop {
            let more = if next.is_empty() { String::new() } else { format!("&continue={}", escaped(&next)) };
            let answer = self.ask(&format!("limit={PAGE}{more}")).await?;
            let whole = timeout(ANSWER, self.whole(answer)).await.map_err(|_| self.silent(ANSWER))??;
            let page: Page<'_> = serde_json::from_slice(&whole).map_err(|e| self.form(&e.to_string()))?;
            self.heard();
            for item in page.items.iter().flatten() {
                let meta = wire::meta(item.get()).map_err(|e| self.form(&e.to_string()))?;
                self.take(&meta.key, item.get());
                seen.insert(meta.key);
            }
            if page.metadata.next.is_empty() {
                self.listed(&seen);
                return Ok(page.metadata.resource_version);
            }
            next = page.metadata.next;
        }
    }

    /// Follows the changes since `progress`; with `initial` all objects come first.
    async fn watch(&mut self, progress: &mut Progress, initial: bool) -> Result<(), FollowError> {
        let from = progress.version.as_deref().unwrap_or_default();
        let seconds = WATCH + spread(WATCH);
        let begin = match initial {
            true => "&sendInitialEvents=true&resourceVersionMatch=NotOlderThan".to_owned(),
            false => format!("&resourceVersion={}", escaped(from)),
        };
        let query = format!("watch=true&allowWatchBookmarks=true&timeoutSeconds={seconds}{begin}");
        let mut moved = self.shared.moved.subscribe();
        let mut body = self.ask(&query).await?;
        self.shared.trouble(self.kind, None);
        self.heard();
        let mut lines = Lines::new(MAX_LINE);
        let mut seen = initial.then(BTreeSet::new);
        loop {
            let frame = tokio::select! {
                frame = timeout(SILENT, body.frame()) => frame.map_err(|_| self.silent(SILENT))?,
                // What is in the tables stays; it is gone on from there.
                _ = moved.changed() => return Ok(()),
            };
            let Some(frame) = frame else { return Ok(()) };
            let frame = frame.map_err(|e| self.transport(e.into()))?;
            let Ok(data) = frame.into_data() else { continue };
            self.heard();
            let taken = lines.take(&data, |line| self.line(line, progress, &mut seen))?;
            taken.ok_or_else(|| self.form(&format!("a line of the watch is longer than {MAX_LINE} bytes")))?;
        }
    }

    /// One line of a watch.
    fn line(
        &mut self,
        line: &[u8],
        progress: &mut Progress,
        seen: &mut Option<BTreeSet<ObjectKey>>,
    ) -> Result<(), FollowError> {
        if line.iter().all(u8::is_ascii_whitespace) {
            return Ok(());
        }
        let Line { kind, object } = serde_json::from_slice(line).map_err(|e| self.form(&e.to_string()))?;
        let object = object.get();
        if kind == "ERROR" {
            let refusal = Refusal::read(0, object.as_bytes());
            return Err(FollowError::Refused { server: self.server.clone(), what: self.kind.name(), refusal });
        }
        let meta: Meta = wire::meta(object).map_err(|e| self.form(&e.to_string()))?;
        match kind {
            "ADDED" | "MODIFIED" => {
                self.take(&meta.key, object);
                if let Some(seen) = seen {
                    seen.insert(meta.key);
                }
            }
            "DELETED" => {
                self.kind.gone(self.shared, &meta.key);
                self.shared.wrong(self.kind, &meta.key, Ok(Flaws::new()));
                if let Some(seen) = seen {
                    seen.remove(&meta.key);
                }
            }
            "BOOKMARK" => {
                if wire::ends_initial_events(&meta)
                    && let Some(seen) = seen.take()
                {
                    self.listed(&seen);
                }
            }
            other => return Err(self.form(&format!("a line of the watch is of the kind {other}"))),
        }
        // Before all is there, nothing can be gone on from.
        if seen.is_none() && !meta.resource_version.is_empty() {
            progress.version = Some(meta.resource_version);
            self.well = true;
        }
        Ok(())
    }

    fn take(&self, key: &ObjectKey, object: &str) {
        let taken = self.kind.take(self.shared, key, object);
        self.shared.wrong(self.kind, key, taken);
    }

    fn listed(&mut self, seen: &BTreeSet<ObjectKey>) {
        self.kind.only(self.shared, seen);
        self.shared.still_there(self.kind, seen);
        self.shared.listed(self.kind);
        self.well = true;
    }

    fn heard(&self) {
        self.shared.heard(self.kind);
    }

    /// Asks for the collection; the body of an answer that is no refusal.
    async fn ask(&self, query: &str) -> Result<Body, FollowError> {
        let selector = self.kind.selector();
        let and = if selector.is_empty() { "" } else { "&" };
        let request = Request::get(format!("{}?{selector}{and}{query}", self.kind.path()))
            .header("accept", "application/json")
            .body(Body::empty())
            .map_err(|e| self.form(&e.to_string()))?;
        let answer = timeout(ANSWER, self.client.send(request)).await.map_err(|_| self.silent(ANSWER))?;
        let answer = answer.map_err(|e| self.transport(e.into()))?;
        let status = answer.status();
        if status == StatusCode::OK {
            return Ok(answer.into_body());
        }
        let whole = timeout(ANSWER, self.whole(answer.into_body())).await.map_err(|_| self.silent(ANSWER))??;
        let refusal = Refusal::read(status.as_u16(), &whole);
        Err(FollowError::Refused { server: self.server.clone(), what: self.kind.name(), refusal })
    }

    async fn whole(&self, mut body: Body) -> Result<Vec<u8>, FollowError> {
        let mut whole = Vec::new();
        while let Some(frame) = body.frame().await {
            if let Ok(data) = frame.map_err(|e| self.transport(e.into()))?.into_data() {
                whole.extend_from_slice(&data);
            }
            if whole.len() > MAX_PAGE {
                return Err(self.form(&format!("an answer is longer than {MAX_PAGE} bytes")));
            }
        }
        Ok(whole)
    }

    fn transport(&self, source: Box<dyn std::error::Error + Send + Sync>) -> FollowError {
        FollowError::Transport { server: self.server.clone(), source }
    }
    fn silent(&self, after: Duration) -> FollowError {
        FollowError::Silent { server: self.server.clone(), after }
    }
    fn form(&self, cause: &str) -> FollowError {
        FollowError::Form { server: self.server.clone(), cause: cause.to_owned() }
    }
}

fn seldom() -> Duration {
    Duration::from_secs(SELDOM / 2 + spread(SELDOM / 2))
}

/// A number below `most`, another one each time.
fn spread(most: u64) -> u64 {
    use std::hash::BuildHasher as _;
    std::collections::hash_map::RandomState::new().hash_one(most) % most
}

/// As a value of a URL's query.
fn escaped(value: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_' | b'~');
    value.bytes().map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}
