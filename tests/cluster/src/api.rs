//! The API, asked tens of thousands of times: by a connection that stays, not by a program for each request.
use std::{
    fs,
    io::{BufReader, Read as _, Write as _},
    os::unix::net::UnixStream,
    path::PathBuf,
    process::{Child, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::{
    cluster::{kubectl_command, spawn_in_control_plane},
    layout::directory,
    wait::until,
};

/// The proxy that speaks to the API server as the administrator. It ends with this value.
#[derive(Debug)]
pub struct Api {
    proxy: Child,
    socket: PathBuf,
}

impl Drop for Api {
    fn drop(&mut self) {
        // It may have ended with the cluster.
        let _ended = self.proxy.kill().and_then(|()| self.proxy.wait());
    }
}

impl Api {
    pub(crate) fn start() -> Result<Self> {
        let socket = directory("control-plane").join("api.sock");
        if socket.exists() {
            fs::remove_file(&socket).context("remove a former proxy's socket")?;
        }
        let mut command = kubectl_command()?;
        command.args(["proxy", "--unix-socket"]).arg(&socket).stdin(Stdio::null()).stdout(Stdio::null());
        let api = Self { proxy: spawn_in_control_plane(&mut command)?, socket };
        until("the proxy's socket", Duration::from_secs(20), || Ok(api.connect().ok()))?;
        Ok(api)
    }

    /// A connection of one's own.
    ///
    /// # Errors
    /// When the proxy is gone.
    pub fn connect(&self) -> Result<Session> {
        let stream = UnixStream::connect(&self.socket).context("connect to the proxy of the API")?;
        Ok(Session(BufReader::new(stream)))
    }
}

/// A connection to the API.
#[derive(Debug)]
pub struct Session(BufReader<UnixStream>);

impl Session {
    /// Makes an object; gives it as it is then.
    ///
    /// # Errors
    /// When the server refuses it.
    pub fn create(&mut self, collection: &str, object: &Value) -> Result<Value> {
        self.ask("POST", collection, "application/json", object)
    }
    /// Changes what the patch names.
    ///
    /// # Errors
    /// When the server refuses it.
    pub fn merge(&mut self, object: &str, patch: &Value) -> Result<Value> {
        self.ask("PATCH", object, "application/merge-patch+json", patch)
    }

    fn ask(&mut self, method: &str, path: &str, kind: &str, body: &Value) -> Result<Value> {
        let what = || format!("{method} {path}");
        let body = body.to_string();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        self.0.get_mut().write_all((head + &body).as_bytes()).with_context(what)?;
        let (code, answer) = answer(&mut self.0).with_context(what)?;
        let answer: Value = serde_json::from_slice(&answer).with_context(what)?;
        if !(200..300).contains(&code) {
            bail!("{} is refused ({code}): {}", what(), answer["message"].as_str().unwrap_or_default());
        }
        Ok(answer)
    }
}

/// Status and body of an HTTP answer.
fn answer(from: &mut impl std::io::BufRead) -> Result<(u16, Vec<u8>)> {
    let first = line(from)?;
    let code = first.split(' ').nth(1).and_then(|c| c.parse().ok()).with_context(|| format!("no status: {first:?}"))?;
    let (mut length, mut chunked) = (0, false);
    loop {
        let header = line(from)?.to_ascii_lowercase();
        match header.split_once(':') {
            None => break,
            Some(("content-length", value)) => length = value.trim().parse().context("a length is a number")?,
            Some(("transfer-encoding", value)) => chunked = value.trim() == "chunked",
            Some(_) => {}
        }
    }
    let mut body = Vec::new();
    if !chunked {
        from.take(length).read_to_end(&mut body)?;
        return Ok((code, body));
    }
    loop {
        let size = u64::from_str_radix(line(from)?.trim(), 16).context("a chunk's size")?;
        from.by_ref().take(size).read_to_end(&mut body)?;
        line(from)?;
        if size == 0 {
            return Ok((code, body));
        }
    }
}

fn line(from: &mut impl std::io::BufRead) -> Result<String> {
    let mut line = String::new();
    if from.read_line(&mut line)? == 0 {
        bail!("the connection has ended");
    }
    Ok(line.trim_end().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_read_to_its_end_and_no_further() {
        let two = "HTTP/1.1 201 Created\r\nContent-Length: 2\r\nA: b\r\n\r\n{}HTTP/1.1 404 Not Found\r\nTransfer-Encoding: chunked\r\n\r\n\
                   3\r\n[1,\r\n2\r\n2]\r\n0\r\n\r\n";
        let mut from = BufReader::new(two.as_bytes());
        assert_eq!(answer(&mut from).unwrap(), (201, b"{}".to_vec()));
        assert_eq!(answer(&mut from).unwrap(), (404, b"[1,2]".to_vec()));
        assert!(answer(&mut from).is_err());
    }
}
