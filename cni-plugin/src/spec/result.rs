//! What a successful ADD answers (specification section 5).
use std::{
    fmt,
    net::{AddrParseError, IpAddr},
    str::FromStr,
};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::{
    legacy::{null_is_default, version_or_latest},
    version::Version,
};

/// The result of ADD. Fields that the version in `cni_version` does not know are `None` after
/// [`in_version`](Self::in_version); what is empty is left out of the JSON text.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddResult {
    /// The version whose shape this is.
    #[serde(rename = "cniVersion", default, deserialize_with = "version_or_latest")]
    pub cni_version: Version,
    /// The interfaces that were made, those of the host included.
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "Vec::is_empty")]
    pub interfaces: Vec<Interface>,
    /// The addresses that were given.
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "Vec::is_empty")]
    pub ips: Vec<IpConfig>,
    /// The routes that were made in the container.
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "Vec::is_empty")]
    pub routes: Vec<Route>,
    /// Name resolution.
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "Dns::is_empty")]
    pub dns: Dns,
}

/// An interface of the attachment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its hardware address, six pairs of hexadecimal digits with colons between.
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "String::is_empty")]
    pub mac: String,
    /// Its MTU in bytes. Since 1.1.0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// The container's network namespace as `CNI_NETNS` gave it; empty for an interface of the host.
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "String::is_empty")]
    pub sandbox: String,
    /// The socket that stands for the interface (vhost-user). Since 1.1.0; Weft has none.
    #[serde(rename = "socketPath", default, skip_serializing_if = "Option::is_none")]
    pub socket_path: Option<String>,
    /// The PCI device behind the interface. Since 1.1.0; Weft has none.
    #[serde(rename = "pciID", default, skip_serializing_if = "Option::is_none")]
    pub pci_id: Option<String>,
}

/// An address of the attachment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IpConfig {
    /// The family. Until 0.4.0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<IpVersion>,
    /// The address and the length of its prefix.
    pub address: Cidr,
    /// The way out of the subnet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<IpAddr>,
    /// The interface that has the address: its place in [`AddResult::interfaces`], counted from 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<u32>,
}

/// The family of an address, as versions until 0.4.0 write it: a digit in a string.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum IpVersion {
    /// IPv4.
    #[serde(rename = "4")]
    V4,
    /// IPv6.
    #[serde(rename = "6")]
    V6,
}

/// A route in the container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// Where it leads.
    pub dst: Cidr,
    /// The next hop.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gw: Option<IpAddr>,
    /// The largest packet on the way, in bytes. Since 1.1.0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// The segment size that TCP offers its peer, in bytes. Since 1.1.0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub advmss: Option<u32>,
    /// Lower goes first. Since 1.1.0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<u32>,
    /// The number of the routing table. Since 1.1.0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub table: Option<u32>,
    /// The kernel's number of the scope: 0 global, 253 link, 254 host. Since 1.1.0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<u32>,
}

impl Route {
    /// A route to `dst` without next hop and attributes.
    pub fn to(dst: Cidr) -> Self {
        Self { dst, gw: None, mtu: None, advmss: None, priority: None, table: None, scope: None }
    }

    /// A route to `dst` by way of `gw`, without attributes.
    pub fn via(dst: Cidr, gw: IpAddr) -> Self {
        Self { gw: Some(gw), ..Self::to(dst) }
    }
}

/// Name resolution for the container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dns {
    /// Addresses of name servers, the best first.
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "Vec::is_empty")]
    pub nameservers: Vec<String>,
    /// The local domain.
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "String::is_empty")]
    pub domain: String,
    /// Domains in which short names are sought.
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "Vec::is_empty")]
    pub search: Vec<String>,
    /// Options of the resolver.
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<String>,
}

impl Dns {
    /// Whether it says nothing.
    pub fn is_empty(&self) -> bool {
        self.nameservers.is_empty() && self.domain.is_empty() && self.search.is_empty() && self.options.is_empty()
    }
}

impl AddResult {
    /// The same result in the shape of `version`: what that version does not know is left out, what it wants is there.
    #[must_use]
    pub fn in_version(&self, version: Version) -> Self {
        let mut result = self.clone();
        result.cni_version = version;
        for ip in &mut result.ips {
            ip.version = (version <= Version::V0_4_0).then(|| ip.address.family());
        }
        if version < Version::V1_1_0 {
            for interface in &mut result.interfaces {
                interface.mtu = None;
                interface.socket_path = None;
                interface.pci_id = None;
            }
            for route in &mut result.routes {
                *route = Route { gw: route.gw, ..Route::to(route.dst) };
            }
        }
        result
    }
}

/// An address and the length of its prefix, such as `10.0.0.5/24`. Unlike a network it keeps the host's bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cidr {
    addr: IpAddr,
    prefix_len: u8,
}

impl Cidr {
    /// An address with a prefix of `prefix_len` bits.
    ///
    /// # Errors
    /// [`BadCidr`] when the address does not have that many bits.
    pub fn new(addr: IpAddr, prefix_len: u8) -> Result<Self, BadCidr> {
        if prefix_len > bits(addr) {
            return Err(BadCidr(format!("{addr}/{prefix_len}")));
        }
        Ok(Self { addr, prefix_len })
    }

    /// A single address: `/32` or `/128`.
    pub fn host(addr: IpAddr) -> Self {
        Self { addr, prefix_len: bits(addr) }
    }

    /// The address.
    pub fn addr(self) -> IpAddr {
        self.addr
    }

    /// The length of the prefix in bits.
    pub fn prefix_len(self) -> u8 {
        self.prefix_len
    }

    /// The family of the address.
    pub fn family(self) -> IpVersion {
        match self.addr {
            IpAddr::V4(_) => IpVersion::V4,
            IpAddr::V6(_) => IpVersion::V6,
        }
    }
}

fn bits(addr: IpAddr) -> u8 {
    match addr {
        IpAddr::V4(_) => 32,
        IpAddr::V6(_) => 128,
    }
}

/// A string is not an address with a prefix length.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadCidr(
    /// The string.
    pub String,
);

impl fmt::Display for BadCidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} is not an address with a prefix length, such as 10.0.0.5/24 or fd00::5/64", self.0)
    }
}
impl std::error::Error for BadCidr {}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.addr, self.prefix_len)
    }
}

impl FromStr for Cidr {
    type Err = BadCidr;

    fn from_str(s: &str) -> Result<Self, BadCidr> {
        let bad = || BadCidr(s.to_owned());
        let (addr, len) = s.split_once('/').ok_or_else(bad)?;
        let addr = addr.parse().map_err(|_: AddrParseError| bad())?;
        // The parser of the standard library takes "+8" and "08", the specification's readers do not.
        if len.is_empty() || !len.bytes().all(|b| b.is_ascii_digit()) || (len.len() > 1 && len.starts_with('0')) {
            return Err(bad());
        }
        Self::new(addr, len.parse().map_err(|_| bad())?).map_err(|_| bad())
    }
}

impl Serialize for Cidr {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Cidr {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_cidr_reads_back_what_it_prints(addr in any::<IpAddr>(), len in 0u8..=128) {
            match Cidr::new(addr, len) {
                Ok(cidr) => prop_assert_eq!(cidr.to_string().parse(), Ok(cidr)),
                Err(_) => prop_assert!(addr.is_ipv4() && len > 32),
            }
        }
        #[test]
        fn any_string_is_a_cidr_or_refused(s in "\\PC{0,40}") {
            if let Ok(cidr) = s.parse::<Cidr>() {
                prop_assert_eq!(cidr.to_string().parse(), Ok(cidr));
            }
        }
    }

    #[test]
    fn a_string_that_is_no_cidr_is_refused_by_name() {
        for s in ["", "/", "10.0.0.1", "10.0.0.1/", "10.0.0.1/33", "10.0.0.1/+8", "10.0.0.1/08", "fd00::/129", "x/8"] {
            assert_eq!(s.parse::<Cidr>(), Err(BadCidr(s.to_owned())));
        }
    }
}
