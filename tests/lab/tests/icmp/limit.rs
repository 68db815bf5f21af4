//! How much a pod can make the programs answer.
use std::{
    fs, io,
    net::{SocketAddr, UdpSocket},
    time::{Duration, Instant},
};

use lab::probe::{self, Family, Place};
use nix::{
    sched::{CpuSet, sched_getaffinity, sched_setaffinity},
    unistd::Pid,
};

use crate::Rig;

/// Answers a second on each processor.
const LIMIT: u32 = 1000;
/// What is sent.
const FLOOD: u32 = 5000;

/// Messages of an exhausted TTL that the pod has got.
fn told(pod: &Place, family: Family) -> u32 {
    // Not /proc/net: that is the namespace of the process, not of the thread.
    let read = |name: &str| pod.run(|| fs::read_to_string(format!("/proc/thread-self/net/{name}"))).unwrap();
    let value = match family {
        Family::V4 => {
            let table = read("snmp");
            let mut lines = table.lines().filter_map(|line| line.strip_prefix("Icmp: "));
            let (names, values) = (lines.next().expect("names"), lines.next().expect("values"));
            let at = names.split(' ').position(|name| name == "InTimeExcds").expect("the counter");
            values.split(' ').nth(at).map(str::to_owned)
        }
        Family::V6 => {
            read("snmp6").lines().find_map(|line| line.strip_prefix("Icmp6InTimeExcds").map(|v| v.trim().to_owned()))
        }
    };
    value.expect("a value").parse().expect("a number")
}

/// Stays on one processor: the limit is one of each.
fn pin() -> io::Result<()> {
    let here = Pid::from_raw(0);
    let allowed = sched_getaffinity(here)?;
    let mut one = CpuSet::new();
    one.set((0..CpuSet::count()).find(|cpu| allowed.is_set(*cpu) == Ok(true)).unwrap_or(0))?;
    Ok(sched_setaffinity(here, &one)?)
}

#[test]
fn a_flood_of_exhausted_ttls_is_answered_within_the_limit_and_counted_whole() {
    for family in Family::BOTH {
        // Each with programs of its own: the limit is one for both families.
        let rig = Rig::new(Family::V4);
        let to = SocketAddr::new(rig.far.address(family).unwrap(), 9);
        let (told_before, dropped_before) = (told(&rig.client, family), rig.drops("TtlExceeded"));
        let took: Duration = rig
            .client
            .run(|| {
                pin()?;
                let socket = UdpSocket::bind(SocketAddr::new(family.any(), 0))?;
                probe::set_ttl(&socket, family, 1)?;
                let begin = Instant::now();
                for _ in 0..FLOOD {
                    match socket.send_to(b"how far", to) {
                        // The answer to an earlier one.
                        Err(e) if e.kind() == io::ErrorKind::HostUnreachable => {}
                        other => drop(other?),
                    }
                }
                Ok(begin.elapsed())
            })
            .unwrap();
        // What is on its way is there when this is.
        probe::udp(&rig.client, &rig.far, family).unwrap();
        let (answers, dropped) = (told(&rig.client, family) - told_before, rig.drops("TtlExceeded") - dropped_before);
        println!("{family}: {answers} answers to {FLOOD} packets in {took:?}");
        assert_eq!(dropped, u64::from(FLOOD), "{family}: each is counted, answered or not");
        // What is left of a second, and one begun.
        let most = LIMIT * (took.as_secs() as u32 + 2);
        assert!(
            (1..=most).contains(&answers),
            "{family}: {answers} answers in {took:?}, the limit is {LIMIT} a second"
        );
        rig.lab.down().unwrap();
    }
}
