//! The API's client: HTTP/1 over the agent's unix socket.
use std::{
    io,
    path::{Path, PathBuf},
};

use axum::body::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::{Method, Request, StatusCode, body::Incoming, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use crate::api::types::ErrorBody;

/// Why there is no answer. Each text says what to do.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens on the socket.
    #[error(
        "weft-agent does not run here: nobody listens on {} ({cause}). Start the agent, look into its log for why it \
         ended, or name its socket with --socket or WEFT_API_SOCKET",
        path.display()
    )]
    NotRunning {
        /// The socket.
        path: PathBuf,
        /// What the kernel says.
        cause: io::Error,
    },
    /// The socket is another user's.
    #[error("not allowed to open {}: only the agent's own user may. Run weft as root", path.display())]
    NotAllowed {
        /// The socket.
        path: PathBuf,
    },
    /// The socket cannot be used for another reason.
    #[error("open {}: {cause}. Name the agent's socket with --socket or WEFT_API_SOCKET", path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// What the kernel says.
        cause: io::Error,
    },
    /// The connection broke, or the other end speaks something else.
    #[error("talk to the agent on {}: {cause}. It may have been stopped just now; try again", path.display())]
    Broken {
        /// The socket.
        path: PathBuf,
        /// The cause.
        cause: String,
    },
    /// The answer is not of the form that we know.
    #[error("understand the agent's answer to {request}: {cause}. weft and weft-agent should be of one version")]
    Answer {
        /// The path asked for.
        request: String,
        /// The cause.
        cause: String,
    },
    /// The agent says no.
    #[error("{error}: {cure}")]
    Refused {
        /// The HTTP status.
        status: StatusCode,
        /// What is wrong.
        error: String,
        /// What to do about it.
        cure: String,
    },
}

/// Asks one agent.
#[derive(Clone, Debug)]
pub struct Client {
    socket: PathBuf,
}
impl Client {
    /// For the agent whose API socket this is.
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self { socket: socket.into() }
    }
    /// The socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// The decoded answer to `GET path`.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        let bytes = self.open(path).await?.all().await?;
        decoded(path, &bytes)
    }

    /// The decoded answer to `DELETE path`.
    pub async fn delete<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        let bytes = self.opened(Method::DELETE, path).await?.all().await?;
        decoded(path, &bytes)
    }

    /// The answer to `GET path` as it comes in; the head is there already, and good.
    pub async fn open(&self, path: &str) -> Result<Stream, ClientError> {
        self.opened(Method::GET, path).await
    }

    async fn opened(&self, method: Method, path: &str) -> Result<Stream, ClientError> {
        let (status, stream) = self.ask(method, path).await?;
        if status == StatusCode::OK {
            return Ok(stream);
        }
        let body = stream.all().await?;
        let ErrorBody { error, cure } = serde_json::from_slice(&body).unwrap_or_else(|_| ErrorBody {
            error: format!("the agent answers {path} with {status}"),
            cure: String::from_utf8_lossy(&body).trim().to_owned(),
        });
        Err(ClientError::Refused { status, error, cure })
    }

    /// Whether the agent is ready; if not, its reason.
    pub async fn health(&self) -> Result<Result<(), String>, ClientError> {
        let (status, stream) = self.ask(Method::GET, "/v1/healthz").await?;
        let text = String::from_utf8_lossy(&stream.all().await?).trim().to_owned();
        Ok(if status == StatusCode::OK { Ok(()) } else { Err(text) })
    }

    async fn ask(&self, method: Method, path: &str) -> Result<(StatusCode, Stream), ClientError> {
        let stream = UnixStream::connect(&self.socket).await.map_err(|cause| {
            let path = self.socket.clone();
            match cause.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => ClientError::NotRunning { path, cause },
                io::ErrorKind::PermissionDenied => ClientError::NotAllowed { path },
                _ => ClientError::Connect { path, cause },
            }
        })?;
        let broken = |cause: String| ClientError::Broken { path: self.socket.clone(), cause };
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(|e| broken(e.to_string()))?;
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "connection to the agent ended");
            }
        });
        let request = Request::builder()
            .method(method)
            .uri(path)
            // HTTP/1.1 demands a host; a socket has none.
            .header(header::HOST, "localhost")
            .body(Empty::<Bytes>::new())
            .map_err(|e| ClientError::Answer { request: path.to_owned(), cause: e.to_string() })?;
        let response = sender.send_request(request).await.map_err(|e| broken(e.to_string()))?;
        let (head, body) = response.into_parts();
        Ok((head.status, Stream { socket: self.socket.clone(), body, rest: Vec::new() }))
    }
}

fn decoded<T: DeserializeOwned>(path: &str, bytes: &[u8]) -> Result<T, ClientError> {
    serde_json::from_slice(bytes).map_err(|e| ClientError::Answer { request: path.to_owned(), cause: e.to_string() })
}

/// An answer that comes in.
#[derive(Debug)]
pub struct Stream {
    socket: PathBuf,
    body: Incoming,
    rest: Vec<u8>,
}
impl Stream {
    async fn frame(&mut self) -> Result<Option<Bytes>, ClientError> {
        loop {
            let Some(frame) = self.body.frame().await else { return Ok(None) };
            let frame = frame.map_err(|e| ClientError::Broken { path: self.socket.clone(), cause: e.to_string() })?;
            if let Ok(data) = frame.into_data() {
                return Ok(Some(data));
            }
        }
    }

    /// The next line without its end; `None` when there are no more. Nothing is lost when the future is dropped.
    pub async fn line(&mut self) -> Result<Option<String>, ClientError> {
        loop {
            if let Some(end) = self.rest.iter().position(|b| *b == b'\n') {
                let line: Vec<u8> = self.rest.drain(..=end).take(end).collect();
                return Ok(Some(String::from_utf8_lossy(&line).into_owned()));
            }
            match self.frame().await? {
                Some(data) => self.rest.extend_from_slice(&data),
                None if self.rest.is_empty() => return Ok(None),
                None => return Ok(Some(String::from_utf8_lossy(&std::mem::take(&mut self.rest)).into_owned())),
            }
        }
    }

    async fn all(mut self) -> Result<Vec<u8>, ClientError> {
        let mut all = Vec::new();
        while let Some(data) = self.frame().await? {
            all.extend_from_slice(&data);
        }
        Ok(all)
    }
}
