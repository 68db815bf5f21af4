//! Events that come faster than the agent reads them.
use cni_agent::netlink::{Socket, link, names::endpoint_of, netns};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::*;

/// Changes of a device: each is an event, and so many do not fit into the agent's socket.
const CHANGES: u32 = 20_000;

/// Events that the node's netlink sockets had no room for.
fn lost(place: &Place) -> u64 {
    let table = place.run(|| fs::read_to_string("/proc/thread-self/net/netlink")).unwrap();
    table.lines().skip(1).map(|line| line.split_whitespace().nth(8).unwrap().parse::<u64>().unwrap()).sum()
}

fn pods_devices(host: &mut Socket) -> usize {
    link::list(host).unwrap().iter().filter(|l| endpoint_of(&l.name).is_some()).count()
}

#[test]
fn a_pod_that_died_unheard_of_goes_all_the_same() {
    let mut lab = lab();
    let one = pod(&mut lab, "one");
    let dead = lab.pod_add("node-1", &PodSpec::named("two")).unwrap().pod.netns();
    let mut host = Socket::open_in(node(&lab).place().unwrap().netns()).unwrap();
    host.run(link::create_bridge("noise")).unwrap();
    let noise = link::by_name(&mut host, "noise").unwrap().unwrap().index;
    let agent = Pid::from_raw(node(&lab).agent_pid().unwrap());
    kill(agent, Signal::SIGSTOP).unwrap();
    for n in 0..CHANGES {
        host.run(link::set_mtu(noise, 1400 + n % 2)).unwrap();
    }
    netns::delete(&dead).unwrap();
    until("the kernel takes the device", || pods_devices(&mut host) == 1).unwrap();
    assert!(lost(&node(&lab).place().unwrap()) > 0, "the agent's socket had room for all");
    host.run(link::delete(noise)).unwrap();
    kill(agent, Signal::SIGCONT).unwrap();
    until("the dead pod goes", || counts(node(&lab)) == [1, 2, 1]).unwrap();
    assert_reaches(&node(&lab).place().unwrap(), &one);
    lab.down().unwrap();
}
