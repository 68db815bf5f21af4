//! What the API server writes, as far as every kind has it in common. Pure.
use std::{
    collections::BTreeMap,
    fmt::{self, Display, Formatter},
    time::{SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, de::DeserializeOwned};
use serde_json::value::RawValue;

/// What names an object of a kind. The namespace is empty for what has none.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub struct ObjectKey {
    /// `metadata.namespace`.
    #[serde(default)]
    pub namespace: String,
    /// `metadata.name`.
    #[serde(default)]
    pub name: String,
}
impl Display for ObjectKey {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self.namespace.as_str() {
            "" => f.write_str(&self.name),
            namespace => write!(f, "{namespace}/{}", self.name),
        }
    }
}

/// The metadata that following needs. All else of an object is the kind's.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Meta {
    /// Its name.
    #[serde(flatten)]
    pub key: ObjectKey,
    /// The version of the collection with which the object was written.
    #[serde(default)]
    pub resource_version: String,
    /// Says of a bookmark that it ends the initial events.
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct Named {
    #[serde(default)]
    metadata: Meta,
}

/// An object's metadata.
pub fn meta(object: &str) -> Result<Meta, serde_json::Error> {
    serde_json::from_str::<Named>(object).map(|named| named.metadata)
}

/// A page of a list.
#[derive(Debug, Deserialize)]
pub struct Page<'a> {
    /// Of the list.
    #[serde(default)]
    pub metadata: PageMeta,
    /// The objects' texts; a collection without any may write null.
    #[serde(borrow, default)]
    pub items: Option<Vec<&'a RawValue>>,
}

/// A list's own metadata.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PageMeta {
    /// From where a watch goes on.
    #[serde(default)]
    pub resource_version: String,
    /// What the next page is asked with; empty behind the last.
    #[serde(default, rename = "continue")]
    pub next: String,
}

/// A line of a watch.
#[derive(Debug, Deserialize)]
pub struct Line<'a> {
    /// `ADDED`, `MODIFIED`, `DELETED`, `BOOKMARK` or `ERROR`.
    #[serde(rename = "type")]
    pub kind: &'a str,
    /// The object, or a [`Refusal`].
    #[serde(borrow)]
    pub object: &'a RawValue,
}

/// Whether a bookmark says that all that was there has been sent.
/// Kubernetes 1.27, KEP-3157.
pub fn ends_initial_events(meta: &Meta) -> bool {
    meta.annotations.get("k8s.io/initial-events-end").is_some_and(|v| v == "true")
}

/// What the server answers instead of what it was asked for: `meta/v1.Status`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Refusal {
    /// As of HTTP.
    pub code: u16,
    /// A word for programs.
    pub reason: String,
    /// A sentence for people.
    pub message: String,
}
impl Refusal {
    /// Of an answer's body, which a proxy may have written.
    pub fn read(code: u16, body: &[u8]) -> Self {
        let mut read: Self = serde_json::from_slice(body).unwrap_or_default();
        if read.code == 0 {
            read.code = code;
        }
        if read.message.is_empty() {
            read.message = String::from_utf8_lossy(body).chars().take(200).collect();
        }
        read
    }
    /// Whether the version asked for is one that the server does not have any more, or, restored from a backup or behind another, not yet:
    /// only a new list helps.
    pub fn wants_a_list(&self) -> bool {
        let ahead = self.code == 504 && self.message.contains("resource version");
        self.code == 410 || matches!(self.reason.as_str(), "Expired" | "Gone") || ahead
    }
}
impl Display for Refusal {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.code)?;
        if !self.reason.is_empty() {
            write!(f, " {}", self.reason)?;
        }
        if self.message.is_empty() { Ok(()) } else { write!(f, ": {}", self.message.trim()) }
    }
}

/// Reads an object; the error names the field.
pub fn object<T: DeserializeOwned>(text: &str) -> Result<T, String> {
    let read = serde_path_to_error::deserialize(&mut serde_json::Deserializer::from_str(text));
    read.map_err(|e| format!("field {}: {}", e.path(), e.inner()))
}

/// Puts frames together to lines, and keeps no more than `most` bytes for it.
#[derive(Debug)]
pub struct Lines {
    most: usize,
    rest: Vec<u8>,
}
impl Lines {
    /// Of lines of so many bytes at most.
    pub fn new(most: usize) -> Self {
        Self { most, rest: Vec::new() }
    }
    /// Takes a frame, and gives the lines that it ends to `each`. `None`: a line is too long.
    pub fn take<E>(&mut self, frame: &[u8], mut each: impl FnMut(&[u8]) -> Result<(), E>) -> Result<Option<()>, E> {
        let mut parts = frame.split(|b| *b == b'\n');
        let last = parts.next_back().unwrap_or_default();
        for part in parts {
            if self.rest.is_empty() {
                each(part)?;
            } else {
                self.rest.extend_from_slice(part);
                let line = std::mem::take(&mut self.rest);
                each(&line)?;
            }
        }
        self.rest.extend_from_slice(last);
        Ok((self.rest.len() <= self.most).then_some(()))
    }
}

/// The time as objects have it: RFC 3339, in seconds.
pub fn timestamp() -> String {
    let seconds = i64::try_from(now()).unwrap_or_default();
    jiff::Timestamp::from_second(seconds).map(|t| t.to_string()).unwrap_or_default()
}

/// Seconds since 1970.
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_put_together_from_frames_of_any_length() {
        let text = b"one\ntwo and more\n\nfour";
        for size in 1..text.len() {
            let (mut lines, mut all) = (Lines::new(100), Vec::new());
            for frame in text.chunks(size) {
                let taken = lines.take(frame, |line| {
                    all.push(String::from_utf8_lossy(line).into_owned());
                    Ok::<(), ()>(())
                });
                assert_eq!(taken, Ok(Some(())));
            }
            assert_eq!(all, ["one", "two and more", ""], "frames of {size}");
        }
    }

    #[test]
    fn a_line_without_end_is_given_up() {
        let mut lines = Lines::new(10);
        let none = |_: &[u8]| Err::<(), ()>(());
        assert_eq!(lines.take(b"01234567", none), Ok(Some(())));
        assert_eq!(lines.take(b"01234567", none), Ok(None));
    }

    #[test]
    fn what_asks_for_a_new_list_is_told_from_other_refusals() {
        let refusal =
            |code, reason: &str, message: &str| Refusal { code, reason: reason.into(), message: message.into() };
        assert!(refusal(410, "Expired", "too old resource version: 1 (9)").wants_a_list());
        assert!(refusal(504, "Timeout", "Too large resource version: 9, current: 1").wants_a_list());
        assert!(!refusal(504, "Timeout", "request did not complete within 10s").wants_a_list());
        assert!(!refusal(403, "Forbidden", "no").wants_a_list());
    }

    #[test]
    fn a_refusal_of_a_proxy_is_read_too() {
        let read = Refusal::read(502, b"<html>bad gateway</html>");
        assert_eq!(read.to_string(), "502: <html>bad gateway</html>");
    }
}
