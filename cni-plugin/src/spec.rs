//! The Container Network Interface specification, as far as Weft speaks it: 1.1.0 and every version back to 0.3.0.
//!
//! Source: `SPEC.md` of containernetworking/cni. Types here have the newest version's shape;
//! [`AddResult::in_version`] gives the older ones.
mod capabilities;
mod config;
mod error;
mod legacy;
mod params;
mod result;
mod version;

pub use config::{DEFAULT_AGENT_SOCKET, NetConf, ValidAttachment};
pub use error::{CniError, ErrorCode, short};
pub use params::{
    Command, Parameters, parse_args, plugin_path, validate_container_id, validate_ifname, validate_netns,
    validate_network_name,
};
pub use result::{AddResult, BadCidr, Cidr, Dns, Interface, IpConfig, IpVersion, Route};
pub use version::{UnknownVersion, Version, VersionInfo};
