//! GC and STATUS: the calls that are about a whole network.
use super::{
    attachment::{beside, both},
    call::{Call, NotDone},
};
use crate::{
    delegate::Ipam,
    protocol::{Request, Verb},
    spec::{CniError, ErrorCode, Version},
};

/// Has everybody forget what the runtime no longer lists: first the agent, so that the IPAM plugin frees no address that a
/// device still has.
pub fn gc(call: &Call<'_>) -> Result<(), CniError> {
    call.needs(Verb::Gc, Version::V1_1_0)?;
    if call.conf.valid_attachments()?.is_none() {
        return Err(CniError::new(
            ErrorCode::INVALID_CONFIG,
            "GC needs the list of what is still valid: the configuration has no \"cni.dev/valid-attachments\"",
        )
        .with_details("the runtime must list its attachments; without a list Weft would cut off every container"));
    }
    let request = Request::about_network(Verb::Gc, call.input.config.clone());
    call.ask(&request).map_err(|not_done| match call.conf.ipam_type() {
        None => not_done.error,
        Some(name) => beside(
            not_done.error,
            &format!(
                "the IPAM plugin {name} was not asked: containers that are not listed may still have their addresses"
            ),
        ),
    })?;
    with_ipam(call, |ipam| ipam.gc())
}

/// Says whether ADD would be served.
pub fn status(call: &Call<'_>) -> Result<(), CniError> {
    call.needs(Verb::Status, Version::V1_1_0)?;
    let request = Request::about_network(Verb::Status, call.input.config.clone());
    let agent = call.ask(&request).map(drop).or_else(|not_done| ask_the_former(call, &request, not_done));
    let agent = agent.map_err(|not_done| {
        let mut error = not_done.error;
        // Codes that say "not now" have a number of their own at STATUS.
        if error.code == ErrorCode::TRY_AGAIN_LATER {
            error.code = ErrorCode::NOT_AVAILABLE;
        }
        error
    });
    both(agent, with_ipam(call, |ipam| ipam.status()))
}

/// An agent of the former release does not know STATUS, and serves ADD while an upgrade is under way. That it refuses the verb
/// in its own protocol, and not the protocol, tells it from a newer one.
fn ask_the_former(call: &Call<'_>, request: &Request, not_done: NotDone) -> Result<(), NotDone> {
    if !not_done.is_skew() || !call.add_fits_the_former_protocol() {
        return Err(not_done);
    }
    match call.ask_in_the_former_protocol(request) {
        Err(refused) if refused.unanswered.is_none() && refused.error.code == ErrorCode::DECODING_FAILURE => Ok(()),
        Err(refused) if refused.is_skew() => Err(not_done),
        other => other.map(drop),
    }
}

fn with_ipam(call: &Call<'_>, ask: fn(&Ipam<'_>) -> Result<(), CniError>) -> Result<(), CniError> {
    call.ipam()?.map_or(Ok(()), |ipam| ask(&ipam))
}
