//! What a network namespace counts of its sockets' trouble.
use std::{fs, io};

use anyhow::Result;

use crate::probe::Place;

/// Counters of a network namespace.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Counters {
    /// Datagrams that a socket had no room for (`RcvbufErrors`), both families.
    pub(super) no_room: u64,
    /// TCP segments that were sent again (`RetransSegs`), both families.
    pub(super) sent_again: u64,
}

impl Counters {
    pub(super) fn of(place: &Place) -> Result<Self> {
        place.run(|| {
            // Of the thread, which is in the place's namespace; the process is not.
            let read = |name| fs::read_to_string(format!("/proc/thread-self/net/{name}"));
            Self::parse(&read("snmp")?, &read("snmp6")?).ok_or_else(|| io::Error::other("unknown counters in /proc"))
        })
    }

    fn parse(snmp: &str, snmp6: &str) -> Option<Self> {
        let six = snmp6.lines().find_map(|line| line.strip_prefix("Udp6RcvbufErrors"))?.trim().parse::<u64>().ok()?;
        Some(Self {
            no_room: column(snmp, "Udp:", "RcvbufErrors")? + six,
            sent_again: column(snmp, "Tcp:", "RetransSegs")?,
        })
    }
}

/// A figure of `/proc/net/snmp`: a line of names, and one of figures under them.
fn column(snmp: &str, protocol: &str, name: &str) -> Option<u64> {
    let mut lines = snmp.lines().filter_map(|line| line.strip_prefix(protocol));
    let (names, figures) = (lines.next()?, lines.next()?);
    let at = names.split_ascii_whitespace().position(|n| n == name)?;
    figures.split_ascii_whitespace().nth(at)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_found_by_their_names() {
        let snmp = "Tcp: RtoMin RetransSegs\nTcp: 200 7\nUdp: InDatagrams RcvbufErrors\nUdp: 1 4\nUdpLite: InDatagrams\nUdpLite: 9\n";
        let found = Counters::parse(snmp, "Udp6InErrors\t3\nUdp6RcvbufErrors     \t2\n").unwrap();
        assert_eq!(found, Counters { no_room: 6, sent_again: 7 });
        assert_eq!(Counters::parse("Tcp: RtoMin\nTcp: 200\n", "Udp6RcvbufErrors 2\n"), None);
    }
}
