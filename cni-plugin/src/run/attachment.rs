//! ADD, DEL and CHECK: the calls that are about one interface of one container.
use super::{
    call::{Call, NotDone},
    chain, without_agent,
};
use crate::{
    delegate::Ipam,
    protocol::{Request, Verb},
    spec::{AddResult, CniError, ErrorCode, IpConfig, NetConf, Parameters, Version},
};

/// Connects: addresses from the IPAM plugin if there is one, the rest from the agent.
pub fn add(call: &Call<'_>, parameters: Parameters) -> Result<AddResult, CniError> {
    let conf = &call.conf;
    conf.refuse_unserved()?;
    let previous = conf.previous()?;
    if let Some(previous) = &previous {
        chain::refuse_taken(previous, &parameters.ifname, &parameters.netns)?;
    }
    // Found before anything is changed.
    let ipam = call.ipam()?;
    let mut request = Request::new(Verb::Add, parameters, call.input.config.clone());
    let mut ours = match ipam.as_ref().map(|ipam| (ipam, ipam.add())) {
        None => wire(call, None, &request)?,
        Some((ipam, Ok(given))) => {
            request.ipam = Some(given);
            wire(call, Some(ipam), &request)?
        }
        Some((ipam, Err(error))) => as_it_is(call, ipam, &request, error)?,
    };
    let given = request.ipam.take().map(|ipam| ipam.dns).unwrap_or_default();
    let own = chain::first_that_says_something(ours.dns, given);
    ours.dns = chain::first_that_says_something(conf.dns.clone().unwrap_or_default(), own);
    let result = match previous {
        Some(previous) => chain::merge(previous, ours),
        None => ours,
    };
    Ok(result.in_version(conf.cni_version))
}

/// Has the agent connect.
fn wire(call: &Call<'_>, ipam: Option<&Ipam<'_>>, request: &Request) -> Result<AddResult, CniError> {
    let asked = gave_what_was_asked(&call.conf, request.ipam.as_ref()).map_err(NotDone::from);
    match asked.and_then(|()| call.ask(request)) {
        Ok(Some(result)) => Ok(result),
        Ok(None) => Err(CniError::new(ErrorCode::AGENT_FAULT, "weft-agent answered ADD without a result")
            .with_details("this is a bug: please report it with the agent's log")),
        Err(not_done) => Err(undo(call, ipam, request, not_done)),
    }
}

/// A plugin that passes over the addresses that the runtime asks for must not do so unnoticed.
fn gave_what_was_asked(conf: &NetConf, given: Option<&AddResult>) -> Result<(), CniError> {
    let Some(given) = given else { return Ok(()) };
    let missing =
        conf.requested_ips()?.into_iter().find(|asked| !given.ips.iter().any(|ip| ip.address.addr() == *asked));
    missing.map_or(Ok(()), |asked| {
        let name = conf.ipam_type().unwrap_or_default();
        Err(CniError::new(
            ErrorCode::UNSUPPORTED_FIELD,
            format!("runtimeConfig.ips asks for {asked}, but the IPAM plugin {name} gave another address"),
        )
        .with_details("use an IPAM plugin that serves the capability `ips`, such as host-local or static"))
    })
}

/// Answers in the stead of an IPAM plugin that failed: an ADD that came twice, which many such plugins refuse, has what the
/// first one made. Asked without addresses the agent tells that, and connects nothing. Where there is no former ADD, what the
/// plugin may have taken is given back.
fn as_it_is(call: &Call<'_>, ipam: &Ipam<'_>, request: &Request, error: CniError) -> Result<AddResult, CniError> {
    match call.edges.devices.has_ours(&request.netns, &request.ifname) {
        Ok(false) => Err(give_back(ipam, error)),
        Ok(true) => call.ask_once(request).ok().flatten().ok_or(error),
        // What cannot be looked at may be in use; DEL, which the runtime owes to every failed ADD, sees to it.
        Err(_) => Err(error),
    }
}

/// Gives the addresses back. Where the agent may still be at work, or a former ADD has made the interface, they stay with the
/// plugin: they are free only when nothing has them, and DEL, which the runtime owes to every failed ADD, sees to that.
fn undo(call: &Call<'_>, ipam: Option<&Ipam<'_>>, request: &Request, not_done: NotDone) -> CniError {
    let Some(ipam) = ipam else { return not_done.error };
    let why = if not_done.may_be_done() {
        "the agent may still use them"
    } else if call.edges.devices.has_ours(&request.netns, &request.ifname) == Ok(false) {
        return give_back(ipam, not_done.error);
    } else {
        "the container may have them on an interface of a former ADD"
    };
    beside(not_done.error, &format!("the addresses stay with the IPAM plugin until DEL, as {why}"))
}

fn give_back(ipam: &Ipam<'_>, error: CniError) -> CniError {
    match ipam.del() {
        Ok(()) => error,
        // A plugin that fails at everything says everything at once.
        Err(second) if second == error => error,
        Err(second) => beside(error, &format!("and giving the addresses back failed: {second}")),
    }
}

/// Disconnects: first the agent, so that the addresses are free only when nothing has them.
pub fn del(call: &Call<'_>, parameters: Parameters) -> Result<(), CniError> {
    let request = Request::new(Verb::Del, parameters, call.input.config.clone());
    match call.ask_once(&request) {
        Ok(_) => {}
        Err(not_done) if not_done.is_skew() => {
            // Such an agent answers before the device is gone.
            if call.conf.ipam_type().is_some() {
                call.edges.devices.remove(&request.netns, &request.ifname)?;
            }
            call.ask_in_the_former_protocol(&request).map_err(|not_done| not_done.error)?;
        }
        Err(not_done) if not_done.agent_is_down() => without_agent::del(call, &request, not_done)?,
        Err(not_done) => return Err(not_done.error),
    }
    match call.ipam()? {
        Some(ipam) => ipam.del(),
        None => Ok(()),
    }
}

/// Compares: the agent what it made, the IPAM plugin what it gave.
pub fn check(call: &Call<'_>, parameters: Parameters) -> Result<(), CniError> {
    call.needs(Verb::Check, Version::V0_4_0)?;
    let previous = call.conf.previous()?.ok_or_else(|| {
        CniError::new(
            ErrorCode::INVALID_CONFIG,
            "CHECK needs the result of ADD: the configuration has no \"prevResult\"",
        )
        .with_details("the runtime must hand over the result of ADD as \"prevResult\"")
    })?;
    let delegated = call.conf.ipam_type().is_some();
    let given = delegated.then(|| given_to(&previous, &parameters.ifname, &parameters.netns));
    let mut request = Request::new(Verb::Check, parameters, call.input.config.clone());
    request.ipam = given;
    let agent = call.ask(&request).map(drop).map_err(|not_done| not_done.error);
    both(agent, call.ipam().and_then(|ipam| ipam.map_or(Ok(()), |ipam| ipam.check())))
}

/// What the IPAM plugin gave to this interface, found again in the whole result.
fn given_to(result: &AddResult, ifname: &str, netns: &str) -> AddResult {
    let ours = |index: u32| {
        let index = usize::try_from(index).unwrap_or(usize::MAX);
        result.interfaces.get(index).is_some_and(|i| i.name == ifname && i.sandbox == netns)
    };
    let ips = result.ips.iter().filter(|ip| ip.interface.is_none_or(ours));
    AddResult {
        cni_version: Version::LATEST,
        interfaces: Vec::new(),
        ips: ips.map(|ip| IpConfig { interface: None, ..ip.clone() }).collect(),
        routes: result.routes.clone(),
        dns: result.dns.clone(),
    }
    .in_version(Version::LATEST)
}

/// Both have their say: where both fail, the runtime reads of both.
pub fn both(agent: Result<(), CniError>, ipam: Result<(), CniError>) -> Result<(), CniError> {
    match (agent, ipam) {
        (Err(first), Err(second)) => Err(beside(first, &format!("and {second}"))),
        (first, second) => first.and(second),
    }
}

/// The error, with more at the end of its details.
pub fn beside(mut error: CniError, more: &str) -> CniError {
    if !error.details.is_empty() {
        error.details.push_str("; ");
    }
    error.details.push_str(more);
    error
}
