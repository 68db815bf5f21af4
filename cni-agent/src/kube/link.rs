//! The connection to an API server: which one is asked, and which one next when it does not answer.
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Mutex, MutexGuard, PoisonError},
};

use kube::Client;

use super::access::{Access, AccessError, Server};

/// A server that is asked.
#[derive(Clone)]
pub struct Connection {
    /// Asks it.
    pub client: Client,
    /// Counts connections: see [`Link::failed`].
    pub number: u64,
    /// Its URL.
    pub server: String,
}

/// Shared by the followers of all kinds, so that one finding the server gone is enough.
#[derive(Debug)]
pub struct Link {
    access: Access,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Counts connections: who reports one that is not the present one has come too late.
    number: u64,
    client: Option<Client>,
    /// The server that is asked.
    server: Option<Server>,
    /// By slice.
    learned: BTreeMap<String, Vec<String>>,
}
impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("State").field("number", &self.number).field("server", &self.server).finish_non_exhaustive()
    }
}

impl Link {
    /// Over this access.
    pub fn new(access: Access) -> Self {
        Self { access, state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The server that is asked, or will be.
    pub fn server(&self) -> String {
        let server = self.state().server.as_ref().map(|s| s.url.clone());
        server.unwrap_or_else(|| self.access.to_string())
    }

    /// A connection to the present server. One that cannot even be prepared leaves the turn to the next.
    pub async fn connection(&self) -> Result<Connection, AccessError> {
        let (number, server) = {
            let state = self.state();
            if let (Some(client), Some(server)) = (&state.client, &state.server) {
                return Ok(Connection { client: client.clone(), number: state.number, server: server.url.clone() });
            }
            (state.number, state.server.clone())
        };
        let server = match server {
            Some(server) => server,
            None => self.access.servers().into_iter().next().ok_or(AccessError::NoServer)?,
        };
        // Without the lock: it reads files.
        let made = self.access.config(&server).await.and_then(|config| {
            let failed = |source| AccessError::Client { url: server.url.clone(), source: Box::new(source) };
            Client::try_from(config).map_err(failed)
        });
        let url = server.url.clone();
        {
            let mut state = self.state();
            if state.number == number {
                state.server = Some(server);
                state.client = made.as_ref().ok().cloned();
            }
        }
        if made.is_err() {
            self.failed(number);
        }
        Ok(Connection { client: made?, number, server: url })
    }

    /// The server with this number does not answer: the next one is asked from now on.
    pub fn failed(&self, number: u64) {
        let servers = self.access.servers();
        let mut state = self.state();
        if state.number != number {
            return;
        }
        state.number += 1;
        state.client = None;
        let at = servers.iter().position(|s| Some(s) == state.server.as_ref());
        let next = at.map_or(0, |at| at + 1);
        state.server = servers.get(next).or(servers.first()).cloned();
    }

    /// The server with this number does not take the credentials any more: they are read anew.
    pub fn renew(&self, number: u64) {
        let mut state = self.state();
        if state.number == number {
            state.number += 1;
            state.client = None;
        }
    }

    /// Whatever connection there is leads nowhere any more: another one is made, to the same server.
    pub fn drop_connection(&self) {
        let mut state = self.state();
        state.number += 1;
        state.client = None;
    }

    /// Where API servers are, as one slice says; kept for the next start. A slice that is empty or gone says nothing: it is while there are
    /// no servers that the last ones are worth knowing.
    pub fn learned(&self, slice: &str, servers: Vec<String>) {
        let all: Vec<String> = {
            let mut state = self.state();
            if servers.is_empty() {
                state.learned.remove(slice);
            } else {
                state.learned.insert(slice.to_owned(), servers);
            }
            let all: BTreeSet<&String> = state.learned.values().flatten().collect();
            all.into_iter().cloned().collect()
        };
        if !all.is_empty() && all != self.access.known() {
            tracing::info!(servers = all.join(", "), "these API servers are there");
            self.access.keep(&all);
        }
    }
}
