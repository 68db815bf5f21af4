//! What every verb needs: the configuration, the agent, the IPAM plugin.
use std::{
    ffi::OsString,
    path::{Path, PathBuf},
};

use serde_json::Value;

use crate::{
    client::{CallError, Transport, Unanswered},
    delegate::{Ipam, Plugins},
    device::Devices,
    protocol::{OLDEST_PROTOCOL, Request, Response, Verb},
    spec::{AddResult, CniError, ErrorCode, NetConf, Version, plugin_path},
    tombstone::Tombstones,
};

/// What the plugin reaches beyond its own process.
pub struct Edges<'a> {
    /// The agent.
    pub agent: &'a dyn Transport,
    /// Other plugins.
    pub plugins: &'a dyn Plugins,
    /// The devices of containers, for when the agent is down.
    pub devices: &'a dyn Devices,
    /// Where what the agent misses is left for it.
    pub tombstones: &'a dyn Tombstones,
}

/// The network configuration that came in.
pub struct Input {
    /// As it came, for the plugins that get the same.
    pub bytes: Vec<u8>,
    /// As it is read.
    pub config: Value,
}

/// One call of the runtime.
pub struct Call<'a> {
    pub edges: &'a Edges<'a>,
    pub input: Input,
    pub conf: NetConf,
    path: Vec<PathBuf>,
}

/// Why the agent did not do what it was asked for.
pub struct NotDone {
    /// What the runtime gets to read.
    pub error: CniError,
    /// How far the call came; `None` when the agent has refused.
    pub unanswered: Option<Unanswered>,
}

impl NotDone {
    /// Whether the agent may have acted, or may still act, upon the request all the same, or could not undo it.
    pub fn may_be_done(&self) -> bool {
        self.unanswered.map_or(self.error.code == ErrorCode::NOT_UNDONE, Unanswered::may_be_done)
    }

    /// Whether the agent speaks other protocols than the request's.
    pub fn is_skew(&self) -> bool {
        self.unanswered.is_none() && self.error.code == ErrorCode::VERSION_SKEW
    }

    /// Whether there is no agent that does its work.
    pub fn agent_is_down(&self) -> bool {
        self.unanswered.is_some_and(Unanswered::agent_is_down)
    }
}

impl From<CniError> for NotDone {
    fn from(error: CniError) -> Self {
        Self { error, unanswered: None }
    }
}

impl<'a> Call<'a> {
    pub fn new(env: &dyn Fn(&str) -> Option<OsString>, input: Input, edges: &'a Edges<'a>) -> Result<Self, CniError> {
        let conf = NetConf::from_json(&input.config)?;
        Ok(Self { edges, input, conf, path: plugin_path(env) })
    }

    /// Refuses a verb that the configuration's version does not have yet.
    pub fn needs(&self, verb: Verb, since: Version) -> Result<(), CniError> {
        let (verb, version) = (verb.as_str(), self.conf.cni_version);
        if version >= since {
            return Ok(());
        }
        Err(CniError::new(
            ErrorCode::INCOMPATIBLE_VERSION,
            format!("{verb} came with CNI version {since}, the configuration is of {version}"),
        )
        .with_details(format!("raise \"cniVersion\" in the configuration, or do not call {verb}")))
    }

    /// The IPAM plugin, if the configuration names one.
    pub fn ipam(&self) -> Result<Option<Ipam<'_>>, CniError> {
        let Some(name) = self.conf.ipam_type() else { return Ok(None) };
        Ipam::find(name, &self.path, &self.input.bytes, self.conf.cni_version, self.edges.plugins).map(Some)
    }

    /// Asks the agent, one of the former release in the former protocol if that says all of the request.
    pub fn ask(&self, request: &Request) -> Result<Option<AddResult>, NotDone> {
        match self.ask_once(request) {
            Err(not_done) if not_done.is_skew() && self.fits_the_former_protocol(request) => {
                self.ask_in_the_former_protocol(request)
            }
            other => other,
        }
    }

    /// Asks in protocol 1.
    pub fn ask_in_the_former_protocol(&self, request: &Request) -> Result<Option<AddResult>, NotDone> {
        self.ask_once(&Request { protocol: OLDEST_PROTOCOL, ..request.clone() })
    }

    /// Asks in the request's own protocol.
    pub fn ask_once(&self, request: &Request) -> Result<Option<AddResult>, NotDone> {
        match self.edges.agent.call(Path::new(&self.conf.agent_socket), request) {
            Ok(Response::Done(result)) => Ok(result),
            Ok(Response::Failed(error)) => Err(error.into()),
            Err(CallError { error, unanswered }) => Err(NotDone { error, unanswered: Some(unanswered) }),
        }
    }

    /// Whether an agent of the former release would connect a container in the same way: it neither knows delegated
    /// addresses nor the capabilities, and thinks itself alone in the container.
    pub fn add_fits_the_former_protocol(&self) -> bool {
        let conf = &self.conf;
        conf.ipam_type().is_none() && !conf.asks_for_capabilities() && matches!(conf.previous(), Ok(None))
    }

    /// Whether an agent of the former release would do the same.
    fn fits_the_former_protocol(&self, request: &Request) -> bool {
        match request.command {
            Verb::Add => self.add_fits_the_former_protocol(),
            Verb::Del => true,
            Verb::Check | Verb::Gc | Verb::Status => false,
        }
    }
}
