//! The devices' offloads, and what they do to the size of packets.
//!
//! A real NIC often can not segment inside a tunnel, and puts packets of MTU size on the wire. A veth hands packets of 64 KiB on as
//! they are, unless it is told not to.
use std::{fs, time::Duration};

use anyhow::{Context as _, Result, bail};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};

use crate::{probe::Place, tool};

/// Bytes per packet, on average, that only a path on which coalescing works carries.
pub const LARGE_PACKETS: f64 = 30_000.0;

/// What ethtool is asked for so that the wire's end `device` becomes like a NIC that can not segment inside a tunnel, and that
/// coalesces what it receives.
#[must_use]
pub fn without_segmentation_options(device: &str) -> String {
    format!("-K {device} tso off tx-udp_tnl-segmentation off tx-udp_tnl-csum-segmentation off gro on")
}

/// Makes a wire's end so.
///
/// # Errors
/// When ethtool is missing or refuses.
pub fn without_segmentation(place: &Place, device: &str) -> Result<()> {
    tool::succeeds(place, &format!("ethtool {}", without_segmentation_options(device)))
        .map(drop)
        .with_context(|| format!("take segmentation offload from {device} of {}", place.name))
}

/// Whether a veth of this kernel can coalesce. Those that can (from 5.13 on) are made with it switched off; older ones show the
/// default of all devices, which does nothing there.
///
/// # Errors
/// When ethtool is missing or refuses.
pub fn veth_can_coalesce(place: &Place, device: &str) -> Result<bool> {
    let features = tool::succeeds(place, &format!("ethtool -k {device}"))?;
    let line = features.lines().find_map(|l| l.trim().strip_prefix("generic-receive-offload:"));
    Ok(line.with_context(|| format!("ethtool says nothing of {device}'s GRO"))?.trim().starts_with("off"))
}

/// Lets what a device could coalesce wait so long for more, across the single interrupts in which it comes.
///
/// # Errors
/// When there is no such device.
pub fn hold_for_coalescing(place: &Place, device: &str, time: Duration) -> Result<()> {
    let file = format!("/sys/class/net/{device}/gro_flush_timeout");
    place
        .run(|| {
            // The sysfs that is mounted shows the devices of another namespace. This mount goes with this thread.
            let none: Option<&str> = None;
            unshare(CloneFlags::CLONE_NEWNS)?;
            mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
            mount(Some("sysfs"), "/sys", Some("sysfs"), MsFlags::empty(), none)?;
            fs::write(&file, time.as_nanos().to_string())
        })
        .with_context(|| format!("write {file}"))
}

/// Packets and bytes that a device has received.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Received {
    /// Packets; a large one counts once.
    pub packets: u64,
    /// Bytes.
    pub bytes: u64,
}

impl Received {
    /// By `device` of `place`, until now.
    ///
    /// # Errors
    /// When there is no such device.
    pub fn by(place: &Place, device: &str) -> Result<Self> {
        // Not /proc/net: that is the namespace of the process, not of the thread.
        let table = place.run(|| fs::read_to_string("/proc/thread-self/net/dev"))?;
        let line = table.lines().find_map(|line| line.trim().strip_prefix(device)?.strip_prefix(':'));
        let mut fields = line.unwrap_or_default().split_ascii_whitespace().map(str::parse::<u64>);
        match (fields.next(), fields.next()) {
            (Some(Ok(bytes)), Some(Ok(packets))) => Ok(Self { packets, bytes }),
            _ => bail!("no counters of a device {device} in {}", place.name),
        }
    }

    /// Average bytes of a packet since `before`; none when there was none.
    #[must_use]
    pub fn average_since(self, before: Self) -> Option<f64> {
        let packets = self.packets - before.packets;
        (packets > 0).then(|| (self.bytes - before.bytes) as f64 / packets as f64)
    }
}
