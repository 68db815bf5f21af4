//! Asking an agent over its unix socket.
use std::{
    io::{Read as _, Write as _},
    os::unix::net::UnixStream,
    path::Path,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

/// An agent answers from memory; one that does not within this time hangs.
const LIMIT: Duration = Duration::from_secs(5);

/// An answer.
#[derive(Debug)]
pub struct Response {
    /// HTTP status code.
    pub status: u16,
    /// Body.
    pub body: String,
}

/// `GET path` on the unix socket `socket`.
///
/// # Errors
/// When nobody listens there, or what comes is no HTTP.
pub fn get(socket: &Path, path: &str) -> Result<Response> {
    let what = || format!("ask the agent for {path} on {}", socket.display());
    let mut stream = UnixStream::connect(socket).with_context(what)?;
    stream.set_read_timeout(Some(LIMIT)).with_context(what)?;
    // HTTP 1.0: the answer ends with the connection, in one piece.
    write!(stream, "GET {path} HTTP/1.0\r\nHost: weft\r\n\r\n").with_context(what)?;
    let mut text = String::new();
    stream.read_to_string(&mut text).with_context(what)?;
    parse(&text).with_context(what)
}

/// The JSON document at `path`.
///
/// # Errors
/// As [`get`], and when the status is not 200 or the body is no JSON.
pub fn get_json(socket: &Path, path: &str) -> Result<Value> {
    let response = get(socket, path)?;
    if response.status != 200 {
        bail!("the agent answers {} to {path}: {}", response.status, response.body.trim());
    }
    serde_json::from_str(&response.body).with_context(|| format!("read what the agent answers to {path}"))
}

fn parse(text: &str) -> Result<Response> {
    let (head, body) = text.split_once("\r\n\r\n").context("the answer has no end of its head")?;
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).context("the answer has no status")?;
    Ok(Response { status, body: body.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_status_and_body() {
        let answer =
            parse("HTTP/1.0 503 Service Unavailable\r\ncontent-type: text/plain\r\n\r\nno Node object\n").unwrap();
        assert_eq!((answer.status, answer.body.as_str()), (503, "no Node object\n"));
        parse("HTTP/1.0 200 OK\r\n").unwrap_err();
    }
}
