//! The world itself: what the other cases stand on.
use lab::{
    layout::NARROW_MTU,
    probe::{self, Family, Flow},
    tool,
};

use crate::{MUCH, Rig, option};

pub fn nodes_reach_the_world_and_are_told_how_narrow_it_is(rig: &Rig) {
    for side in &rig.sides {
        for family in Family::BOTH {
            let own = side.address(family);
            for host in [&rig.near, &rig.narrow] {
                assert_eq!(probe::udp(&side.node, host, family).unwrap().seen, Some(own));
                probe::ping(&side.node, host, family).unwrap();
                let mut flow = Flow::open(&side.node, host, family).unwrap();
                assert_eq!(flow.seen().ip(), own);
                flow.exchange(MUCH).unwrap();
                let route = format!("ip {} route get {}", option(family), host.address(family).unwrap());
                let route = tool::succeeds(&side.node, &route).unwrap();
                let is_narrow = route.contains(&format!("mtu {NARROW_MTU}"));
                assert_eq!(is_narrow, host.name == rig.narrow.name, "{}: {route}", side.node.name);
            }
            for from in [&rig.router, &rig.near, &rig.narrow] {
                let theirs = from.address(family).unwrap();
                assert_eq!(probe::udp(from, &side.node, family).unwrap().seen, Some(theirs));
                assert_eq!(probe::tcp(from, &side.node, family).unwrap().seen, Some(theirs));
                probe::ping(from, &side.node, family).unwrap();
            }
        }
    }
}
