//! The BPF file system, which holds the pins.
use nix::mount::{MntFlags, umount2};

use super::*;

#[test]
fn an_agent_whose_pins_are_gone_serves_on_and_its_successor_makes_others() {
    let mut lab = lab();
    let (one, two) = (pod(&mut lab, "one"), pod(&mut lab, "two"));
    umount2(&node(&lab).paths().bpf(), MntFlags::MNT_DETACH).unwrap();
    assert_reaches(&one, &two);
    let three = pod(&mut lab, "three");
    assert_reaches(&three, &one);
    lab.restart_agent("node-1", Ending::Killed).unwrap();
    let place = node(&lab).place().unwrap();
    for (from, to) in [(&one, &two), (&three, &one), (&place, &two), (&two, &place)] {
        assert_reaches(from, to);
    }
    assert_eq!(counts(node(&lab)), [3, 6, 3]);
    assert_reaches(&pod(&mut lab, "four"), &one);
    lab.down().unwrap();
}
