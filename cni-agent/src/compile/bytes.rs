//! Keys and values of map entries, without an allocation for each: there is an entry for every address of the cluster, and what is wanted, what is written,
//! and who asks for it each have one.
use std::{
    fmt::{self, Debug, Formatter},
    ops::Deref,
};

/// Bytes of the longest key of a map that the agent fills: node, label class and IPv6 prefix of a sender.
pub const LONGEST_KEY: usize = 28;
/// Bytes of a value that are kept in place: a [`Remote`](cni_common::maps::Remote) has 12.
const IN_PLACE: usize = 14;

/// The bytes of a key. Those of one map are equally long, and sort as bytes do.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    bytes: [u8; LONGEST_KEY],
    len: u8,
}
impl Key {
    /// `None` when they are more than [`LONGEST_KEY`].
    pub fn new(key: &[u8]) -> Option<Self> {
        let mut bytes = [0; LONGEST_KEY];
        bytes.get_mut(..key.len())?.copy_from_slice(key);
        Some(Self { bytes, len: u8::try_from(key.len()).ok()? })
    }
}
impl Deref for Key {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}
impl Debug for Key {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        self.deref().fmt(f)
    }
}

/// The bytes of a value.
#[derive(Clone, PartialEq, Eq)]
pub enum Value {
    /// Few of them.
    Short {
        /// How many.
        len: u8,
        /// They, and zeros.
        bytes: [u8; IN_PLACE],
    },
    /// More.
    Long(Box<Vec<u8>>),
}
impl From<&[u8]> for Value {
    fn from(value: &[u8]) -> Self {
        let mut bytes = [0; IN_PLACE];
        match (bytes.get_mut(..value.len()), u8::try_from(value.len())) {
            (Some(place), Ok(len)) => {
                place.copy_from_slice(value);
                Self::Short { len, bytes }
            }
            _ => Self::Long(Box::new(value.to_vec())),
        }
    }
}
impl Deref for Value {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        match self {
            Self::Short { len, bytes } => &bytes[..usize::from(*len)],
            Self::Long(bytes) => bytes,
        }
    }
}
impl Debug for Value {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        self.deref().fmt(f)
    }
}

/// Bytes of the longest value of a map of policy.
pub const LONGEST_OF_POLICY: usize = 8;

/// The bytes of a value of a map of policy: [`LONGEST_OF_POLICY`] at most.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Few {
    len: u8,
    bytes: [u8; LONGEST_OF_POLICY],
}
impl From<&[u8]> for Few {
    fn from(value: &[u8]) -> Self {
        let mut bytes = [0; LONGEST_OF_POLICY];
        match (bytes.get_mut(..value.len()), u8::try_from(value.len())) {
            (Some(place), Ok(len)) => {
                place.copy_from_slice(value);
                Self { len, bytes }
            }
            // The test `no_value_of_policy_is_too_long` holds that.
            _ => unreachable!("{value:?} is too long for a value of policy"),
        }
    }
}
impl Deref for Few {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}
impl Debug for Few {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        self.deref().fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_come_out_as_they_went_in() {
        let all: Vec<u8> = (1..=100).collect();
        for len in 0..all.len() {
            assert_eq!(&*Value::from(&all[..len]), &all[..len]);
            assert_eq!(Key::new(&all[..len]).as_deref(), (len <= LONGEST_KEY).then_some(&all[..len]));
            if len <= LONGEST_OF_POLICY {
                assert_eq!(&*Few::from(&all[..len]), &all[..len]);
            }
        }
    }

    #[test]
    fn they_are_small() {
        assert!(size_of::<Key>() <= 29 && size_of::<Value>() <= 16);
    }
}
