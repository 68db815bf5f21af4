//! Versions of the specification, and the answer to the VERSION command.
use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A version of the CNI specification that Weft speaks, oldest first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Version {
    /// 0.3.0: the first with lists of interfaces and addresses, and with chaining.
    V0_3_0,
    /// 0.3.1: the same with a misprint mended.
    V0_3_1,
    /// 0.4.0: brought CHECK, and `prevResult` for DEL.
    V0_4_0,
    /// 1.0.0: took the field `version` out of the addresses.
    V1_0_0,
    /// 1.1.0: brought GC and STATUS, and `mtu`, `socketPath`, `pciID` and the attributes of routes.
    #[default]
    V1_1_0,
}

impl Version {
    /// All of them, oldest first.
    pub const ALL: [Self; 5] = [Self::V0_3_0, Self::V0_3_1, Self::V0_4_0, Self::V1_0_0, Self::V1_1_0];
    /// The newest: the shape in which plugin and agent talk to each other.
    pub const LATEST: Self = Self::V1_1_0;

    /// As it stands in `cniVersion`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::V0_3_0 => "0.3.0",
            Self::V0_3_1 => "0.3.1",
            Self::V0_4_0 => "0.4.0",
            Self::V1_0_0 => "1.0.0",
            Self::V1_1_0 => "1.1.0",
        }
    }

    /// The versions as a person reads them, for error messages.
    pub fn list() -> String {
        Self::ALL.map(Self::as_str).join(", ")
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A `cniVersion` that Weft does not speak.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownVersion(
    /// What was asked for.
    pub String,
);

impl fmt::Display for UnknownVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CNI version {:?} is not one of {}", self.0, Version::list())
    }
}
impl std::error::Error for UnknownVersion {}

impl FromStr for Version {
    type Err = UnknownVersion;

    fn from_str(s: &str) -> Result<Self, UnknownVersion> {
        Self::ALL.into_iter().find(|v| v.as_str() == s).ok_or_else(|| UnknownVersion(s.to_owned()))
    }
}

impl Serialize for Version {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for Version {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

/// The answer to the VERSION command.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VersionInfo {
    /// The version that the caller named, or [`Version::LATEST`] when it named none that we speak.
    #[serde(rename = "cniVersion")]
    pub cni_version: Version,
    /// All versions that the plugin speaks, oldest first.
    #[serde(rename = "supportedVersions")]
    pub supported_versions: Vec<Version>,
}

impl VersionInfo {
    /// What this plugin speaks, told to a caller that speaks `asked`.
    pub fn for_caller(asked: Version) -> Self {
        Self { cni_version: asked, supported_versions: Version::ALL.to_vec() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_ordered_by_age_and_read_back_what_they_print() {
        assert!(Version::ALL.is_sorted());
        assert_eq!(Version::ALL.last(), Some(&Version::LATEST));
        assert_eq!(Version::default(), Version::LATEST);
        for v in Version::ALL {
            assert_eq!(v.to_string().parse(), Ok(v));
        }
    }

    #[test]
    fn a_version_that_is_not_spoken_is_refused_by_name() {
        for s in ["", "0.1.0", "0.2.0", "1.0", "1.1.1", "2.0.0", "v1.1.0", " 1.1.0"] {
            assert_eq!(s.parse::<Version>(), Err(UnknownVersion(s.to_owned())));
        }
        assert_eq!(
            UnknownVersion("0.2.0".into()).to_string(),
            r#"CNI version "0.2.0" is not one of 0.3.0, 0.3.1, 0.4.0, 1.0.0, 1.1.0"#
        );
    }
}
