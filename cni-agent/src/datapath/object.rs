//! The BPF object inside the agent's binary.
use aya::include_bytes_aligned;

/// The ELF file that `cargo xtask build` has built; empty when the agent was built without it.
pub static OBJECT: &[u8] = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/weft.bpf.o"));

/// tc ingress of the pods' host-side veths.
pub const FROM_POD: &str = "from_pod";
/// tc ingress of `weft_net`.
pub const FROM_HOST: &str = "from_host";
/// tc ingress of the node's devices.
pub const FROM_NETDEV: &str = "from_netdev";
/// tc ingress of `weft_vxlan`.
pub const FROM_OVERLAY: &str = "from_overlay";

/// The programs that are attached.
pub const HOOKS: [&str; 4] = [FROM_POD, FROM_HOST, FROM_NETDEV, FROM_OVERLAY];
