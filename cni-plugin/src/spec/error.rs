//! Errors as the specification writes them: a code, a short message, details.
use std::fmt;

use serde::{Deserialize, Serialize};

/// The number of an error. 0 to 99 have a meaning in the specification, 100 and above are Weft's own; a number is never
/// used again for another meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ErrorCode(
    /// The number as it stands in `code`.
    pub u32,
);

impl ErrorCode {
    /// The `cniVersion` is none of ours, or is too old for the command.
    pub const INCOMPATIBLE_VERSION: Self = Self(1);
    /// The configuration asks for something that Weft does not do; the message names key and value.
    pub const UNSUPPORTED_FIELD: Self = Self(2);
    /// The container is not known, so the runtime has nothing to clean up.
    pub const UNKNOWN_CONTAINER: Self = Self(3);
    /// An environment variable is missing or wrong; the message names it.
    pub const INVALID_ENVIRONMENT: Self = Self(4);
    /// Reading or writing failed.
    pub const IO_FAILURE: Self = Self(5);
    /// Something is not the JSON that it should be.
    pub const DECODING_FAILURE: Self = Self(6);
    /// The configuration is JSON, but not a valid network configuration.
    pub const INVALID_CONFIG: Self = Self(7);
    /// A passing condition: the runtime should call again later.
    pub const TRY_AGAIN_LATER: Self = Self(11);
    /// STATUS: the plugin cannot serve ADD.
    pub const NOT_AVAILABLE: Self = Self(50);
    /// STATUS: the plugin cannot serve ADD, and existing containers may be cut off.
    pub const LIMITED_CONNECTIVITY: Self = Self(51);
    /// A fault in the agent: a bug of ours.
    pub const AGENT_FAULT: Self = Self(100);
    /// Plugin and agent are of different releases and cannot talk to each other.
    pub const VERSION_SKEW: Self = Self(101);
    /// The caller may not use the agent's socket.
    pub const NOT_PERMITTED: Self = Self(102);
    /// All addresses of the node are in use.
    pub const ADDRESSES_EXHAUSTED: Self = Self(103);
    /// The kernel refused a step of the wiring.
    pub const WIRING_FAILED: Self = Self(104);
    /// CHECK: the attachment is not, or no longer, as ADD made it; the message lists every difference.
    pub const CHECK_FAILED: Self = Self(105);
    /// ADD failed, and what it made is not gone yet: addresses of another IPAM plugin are not free before DEL.
    pub const NOT_UNDONE: Self = Self(106);
}

/// An error as the runtime gets it.
///
/// ```
/// use cni_plugin::spec::{CniError, ErrorCode};
/// let e = CniError::new(ErrorCode::INVALID_CONFIG, "the network has no name").with_details("add \"name\": \"weft\"");
/// assert_eq!(e.to_string(), "the network has no name: add \"name\": \"weft\"");
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CniError {
    /// What kind of error it is.
    pub code: ErrorCode,
    /// What is wrong, in a short sentence: the cause.
    pub msg: String,
    /// More about it, and what to do: the cure. May be empty.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub details: String,
}

impl CniError {
    /// An error without details.
    pub fn new(code: ErrorCode, msg: impl Into<String>) -> Self {
        Self { code, msg: msg.into(), details: String::new() }
    }

    /// The same with details.
    #[must_use]
    pub fn with_details(mut self, details: impl Into<String>) -> Self {
        self.details = details.into();
        self
    }
}

/// What stands in a message of something that came in and may be of any length: its beginning and its end, 200 bytes at
/// most.
pub fn short(text: impl fmt::Display) -> String {
    const LONGEST: usize = 200;
    const HEAD: usize = 130;
    const TAIL: usize = 60;
    let text = text.to_string();
    if text.len() <= LONGEST {
        return text;
    }
    let head = text.get(..text.floor_char_boundary(HEAD)).unwrap_or_default();
    let tail = text.get(text.ceil_char_boundary(text.len() - TAIL)..).unwrap_or_default();
    format!("{head}…{tail}")
}

impl fmt::Display for CniError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.msg)?;
        if !self.details.is_empty() {
            write!(f, ": {}", self.details)?;
        }
        Ok(())
    }
}
impl std::error::Error for CniError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_long_is_cut_in_its_middle_and_between_characters() {
        assert_eq!(short("ä".repeat(100)), "ä".repeat(100));
        let cut = short(format!("begin {} end", "ä".repeat(5000)));
        assert!(cut.len() <= 200 && cut.starts_with("begin ä") && cut.ends_with("ä end"), "{cut}");
    }
}
