//! What must get through between two ends, and what must be left of one that is gone.
use std::{
    collections::BTreeSet,
    fs,
    net::{SocketAddr, TcpStream},
};

use cni_agent::netlink::{Socket, link};
use lab::{
    Node, pair,
    probe::{self, Family, Place},
};

/// TCP, UDP and echo requests, in both families.
pub fn assert_reaches(from: &Place, to: &Place) {
    for family in Family::BOTH {
        probe::tcp(from, to, family).unwrap();
        probe::udp(from, to, family).unwrap();
        probe::ping(from, to, family).unwrap();
    }
}

/// A running container of the image, which serves its own name at port 80.
pub trait Container {
    /// Its network namespace and addresses.
    fn place(&self) -> &Place;

    /// What a program in it prints; it must end well.
    fn exec(&self, args: &[&str]) -> String;

    /// Its own `ping` and `wget` reach the other, in both families.
    fn uses(&self, other: &Self) {
        for address in &other.place().addresses {
            let (ping, host) =
                if address.is_ipv4() { ("ping", address.to_string()) } else { ("ping6", format!("[{address}]")) };
            self.exec(&[ping, "-c", "1", "-W", "2", &address.to_string()]);
            // busybox' own limit of time (-T) ends in a segmentation fault where it is linked statically.
            let said = self.exec(&["timeout", "5", "wget", "-q", "-O", "-", &format!("http://{host}/")]);
            assert_eq!(said.trim(), other.place().name);
        }
    }
}

/// Waits until the container's server has opened its port; asked from inside, so the way to it is not part of this.
pub fn await_server(container: &Place) {
    let address = SocketAddr::new(container.addresses[0], 80);
    pair::until("the container serves", || container.run(|| TcpStream::connect(address)).is_ok()).unwrap();
}

/// Two containers reach each other, by every protocol and with their own programs.
pub fn assert_talk<C: Container>(one: &C, other: &C) {
    for (from, to) in [(one, other), (other, one)] {
        assert_reaches(from.place(), to.place());
        from.uses(to);
    }
}

/// What a node knows of its containers: the agent's list, its records and the devices.
#[derive(Debug, PartialEq, Eq)]
pub struct Traces {
    endpoints: usize,
    records: BTreeSet<String>,
    devices: BTreeSet<String>,
}

impl Traces {
    /// At this moment.
    pub fn of(node: &Node) -> Self {
        let endpoints = node.ask("/v1/endpoints").unwrap().as_array().expect("a list of endpoints").len();
        let entries = fs::read_dir(node.paths().state()).unwrap().map(|e| e.unwrap());
        let names = entries.map(|e| e.file_name().to_string_lossy().into_owned());
        let records = names.filter(|name| name.ends_with(".json")).collect();
        let mut socket = Socket::open_in(node.place().unwrap().netns()).unwrap();
        let devices = link::list(&mut socket).unwrap().into_iter().map(|l| l.name).collect();
        Self { endpoints, records, devices }
    }

    /// Waits until the node is back in this state: devices are removed behind the answer to DEL.
    pub fn await_again(&self, node: &Node) {
        let back = pair::until("the node is as before", || Self::of(node) == *self);
        assert!(back.is_ok(), "the node keeps {:?}, and had {self:?}\n{}", Self::of(node), node.log_tail());
    }

    /// How many endpoints there are.
    pub fn endpoints(&self) -> usize {
        self.endpoints
    }
}
