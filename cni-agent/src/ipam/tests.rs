use std::collections::{BTreeMap, BTreeSet, VecDeque};

use proptest::prelude::*;

use super::*;

#[test]
fn a_pod_gets_an_address_of_each_family_in_order() {
    let mut ipam = ipam(&["10.0.1.0/24", "fd00:1::/112"]);
    for n in 1..=3u8 {
        let lease = ipam.allocate().unwrap();
        assert_eq!(
            lease.addresses().map(|a| a.to_string()).collect::<Vec<_>>(),
            [format!("10.0.1.{n}"), format!("fd00:1::{n}")]
        );
    }
}

#[test]
fn one_family_alone_is_enough() {
    assert_eq!(ipam(&["10.0.1.0/24"]).allocate().unwrap(), Lease { v4: Some([10, 0, 1, 1].into()), v6: None });
    assert_eq!(ipam(&["fd00::/64"]).allocate().unwrap(), Lease { v4: None, v6: "fd00::1".parse().ok() });
}

#[test]
fn without_a_cidr_the_error_says_where_to_set_it() {
    let e = Ipam::new().allocate().unwrap_err();
    assert_eq!(e, IpamError::NoCidr);
    assert!(e.to_string().contains("spec.podCIDRs"));
}

#[test]
fn small_and_large_prefixes_give_exactly_what_may_be_given() {
    for (cidr, size, first, last) in [
        ("10.0.0.0/24", 254, "10.0.0.1", "10.0.0.254"),
        ("10.0.0.0/30", 2, "10.0.0.1", "10.0.0.2"),
        ("10.0.0.0/31", 2, "10.0.0.0", "10.0.0.1"),
        ("10.0.0.9/32", 1, "10.0.0.9", "10.0.0.9"),
        ("10.0.0.0/8", (1 << 20) - 1, "10.0.0.1", "10.15.255.255"),
        ("0.0.0.0/0", (1 << 20) - 1, "0.0.0.1", "0.15.255.255"),
        ("fd00::/127", 2, "fd00::", "fd00::1"),
        ("fd00::9/128", 1, "fd00::9", "fd00::9"),
        ("fd00::/120", 255, "fd00::1", "fd00::ff"),
        ("fd00::/64", 65_535, "fd00::1", "fd00::ffff"),
        ("::/0", 65_535, "::1", "::ffff"),
    ] {
        let mut ipam = ipam(&[cidr]);
        assert_eq!(ipam.usage()[0].size, size, "{cidr}");
        let given: Vec<IpAddr> = (0..size).map(|_| ipam.allocate().unwrap().addresses().next().unwrap()).collect();
        assert_eq!(given.first(), Some(&addr(first)), "{cidr}");
        assert_eq!(given.last(), Some(&addr(last)), "{cidr}");
        assert!(matches!(ipam.allocate(), Err(IpamError::Exhausted { .. })), "{cidr}");
    }
}

#[test]
fn a_used_up_range_says_so_with_its_numbers() {
    let mut ipam = ipam(&["10.0.0.0/30", "10.1.0.0/31", "fd00::/64"]);
    let leases: Vec<Lease> = (0..4).map(|_| ipam.allocate().unwrap()).collect();
    ipam.release(leases[0].addresses().next().unwrap());
    let e = ipam.allocate().unwrap_err();
    assert_eq!(
        e.to_string(),
        "all 4 IPv4 addresses of 10.0.0.0/30, 10.1.0.0/31 are taken (3 in use, 1 waiting for their links to go): \
         delete pods, or give the node a further or larger pod CIDR"
    );
}

#[test]
fn a_family_that_is_used_up_keeps_the_other_from_giving() {
    let mut ipam = ipam(&["10.0.0.0/24", "fd00::/127"]);
    ipam.allocate().unwrap();
    ipam.allocate().unwrap();
    assert!(matches!(ipam.allocate(), Err(IpamError::Exhausted { family: Family::V6, used: 2, size: 2, .. })));
    assert_eq!(ipam.usage()[0].used, 2, "an IPv4 address was lost");
}

#[test]
fn an_address_rests_in_quarantine_and_then_until_all_others_had_their_turn() {
    let mut ipam = ipam(&["10.0.0.0/29"]);
    let first = ipam.allocate().unwrap().addresses().next().unwrap();
    assert!(ipam.release(first));
    assert!(!ipam.release(first), "given back twice");
    assert_eq!(ipam.state(first), Some(State::Quarantined));
    let others: BTreeSet<_> = (0..5).map(|_| ipam.allocate().unwrap().addresses().next().unwrap()).collect();
    assert!(!others.contains(&first));
    assert!(ipam.allocate().is_err());
    assert!(ipam.settle(first));
    assert!(!ipam.settle(first), "settled twice");
    assert_eq!(ipam.allocate().unwrap().addresses().next(), Some(first));
}

#[test]
fn a_settled_address_is_not_the_next_one_given() {
    let mut ipam = ipam(&["10.0.0.0/24"]);
    let first = ipam.allocate().unwrap().addresses().next().unwrap();
    ipam.release(first);
    ipam.settle(first);
    assert_eq!(ipam.allocate().unwrap().addresses().next(), Some(addr("10.0.0.2")));
}

#[test]
fn a_claimed_address_is_not_given_and_is_claimed_once() {
    let mut ipam = ipam(&["10.0.0.0/30"]);
    ipam.claim(addr("10.0.0.1")).unwrap();
    assert_eq!(ipam.allocate().unwrap().v4, Some([10, 0, 0, 2].into()));
    assert_eq!(ipam.claim(addr("10.0.0.1")), taken("10.0.0.1", State::Used));
    ipam.release(addr("10.0.0.1"));
    assert_eq!(ipam.claim(addr("10.0.0.1")), taken("10.0.0.1", State::Quarantined));
}

#[test]
fn an_address_that_is_not_ours_is_not_claimed() {
    let mut ipam = ipam(&["10.0.0.0/30", "fd00::/64"]);
    for foreign in ["10.0.0.4", "9.255.255.255", "fd00:0:0:1::1", "fd00::1:0"] {
        let e = ipam.claim(addr(foreign)).unwrap_err();
        assert!(matches!(e, IpamError::Outside { .. }), "{e}");
        assert!(!ipam.release(addr(foreign)) && !ipam.settle(addr(foreign)));
        assert_eq!(ipam.state(addr(foreign)), None);
    }
    for reserved in ["10.0.0.0", "10.0.0.3", "fd00::"] {
        assert_eq!(ipam.claim(addr(reserved)), taken(reserved, State::Reserved));
        assert!(!ipam.release(addr(reserved)), "{reserved}");
    }
}

#[test]
fn an_overlapping_cidr_is_refused_and_the_same_one_is_not_added_twice() {
    let mut ipam = ipam(&["10.0.0.0/16"]);
    for other in ["10.0.3.0/24", "10.0.0.0/8"] {
        let e = ipam.add_cidr(net(other)).unwrap_err();
        assert_eq!(e, IpamError::Overlap { cidr: net(other), other: net("10.0.0.0/16") });
    }
    ipam.add_cidr(net("10.0.77.1/16")).unwrap();
    assert_eq!(ipam.usage().len(), 1);
}

#[test]
fn a_removed_cidr_goes_when_its_last_address_is_settled() {
    let mut ipam = ipam(&["10.0.0.0/24", "10.1.0.0/24"]);
    let held = ipam.allocate().unwrap().addresses().next().unwrap();
    assert_eq!(ipam.remove_cidr(net("10.0.0.0/24")), 1);
    assert_eq!(ipam.remove_cidr(net("172.16.0.0/24")), 0);
    assert_eq!(ipam.allocate().unwrap().v4, Some([10, 1, 0, 1].into()));
    assert!(ipam.usage()[0].draining);
    ipam.release(held);
    assert_eq!(ipam.usage().len(), 2, "gone while its link may still be there");
    ipam.settle(held);
    assert_eq!(ipam.usage().iter().map(|u| u.cidr).collect::<Vec<_>>(), [net("10.1.0.0/24")]);
}

#[test]
fn a_cidr_that_comes_back_while_it_drains_gives_again_and_knows_what_is_out() {
    let mut ipam = ipam(&["10.0.0.0/30"]);
    ipam.allocate().unwrap();
    ipam.set_cidrs(&[]).unwrap();
    assert_eq!(ipam.allocate(), Err(IpamError::NoCidr));
    ipam.set_cidrs(&[net("10.0.0.0/30")]).unwrap();
    assert_eq!(ipam.allocate().unwrap().v4, Some([10, 0, 0, 2].into()));
    assert!(ipam.allocate().is_err());
}

#[test]
fn what_an_earlier_agent_gave_is_out_before_and_after_its_cidr_is_known() {
    let mut ipam = Ipam::new();
    for held in ["10.0.0.2", "10.9.9.9", "fd00::7"] {
        assert!(ipam.hold(addr(held)));
        assert!(!ipam.hold(addr(held)), "{held} is held once");
        assert_eq!(ipam.state(addr(held)), Some(State::Used));
    }
    assert_eq!(ipam.follow(&[net("10.0.0.0/29"), net("fd00::/64")]), None);
    assert_eq!(ipam.usage().iter().map(|u| u.used).collect::<Vec<_>>(), [1, 1]);
    assert!(!ipam.hold(addr("10.0.0.2")));
    let given: Vec<_> = (0..5).map(|_| ipam.allocate().unwrap().v4.unwrap().to_string()).collect();
    assert_eq!(
        given,
        ["10.0.0.3", "10.0.0.4", "10.0.0.5", "10.0.0.6", "10.0.0.1"],
        "behind what was given, then round"
    );
    assert!(ipam.allocate().is_err());
    assert_eq!(ipam.out().len(), 5 + 5 + 3, "those of no CIDR too");
}

#[test]
fn an_address_of_no_cidr_goes_round_as_any_other() {
    let mut ipam = Ipam::new();
    let held = addr("10.0.0.1");
    ipam.hold(held);
    assert!(!ipam.settle(held));
    assert!(ipam.release(held) && !ipam.release(held));
    ipam.follow(&[net("10.0.0.0/31")]);
    assert_eq!(ipam.state(held), Some(State::Quarantined));
    assert_eq!(ipam.allocate().unwrap().v4, Some([10, 0, 0, 0].into()));
    assert!(ipam.allocate().is_err(), "its link may be there yet");
    assert!(ipam.settle(held) && !ipam.settle(held));
    assert_eq!(ipam.allocate().unwrap().v4, Some([10, 0, 0, 1].into()));
}

#[test]
fn a_larger_cidr_takes_over_what_is_out_of_the_one_that_it_replaces() {
    let mut ipam = ipam(&["10.0.0.0/30"]);
    let [first, second] = [addr("10.0.0.1"), addr("10.0.0.2")];
    ipam.allocate().unwrap();
    ipam.allocate().unwrap();
    ipam.release(second);
    assert_eq!(ipam.follow(&[net("10.0.0.0/24")]), None);
    assert_eq!((ipam.state(first), ipam.state(second)), (Some(State::Used), Some(State::Quarantined)));
    assert_eq!(ipam.allocate().unwrap().v4, Some([10, 0, 0, 3].into()));
    assert_eq!(ipam.usage().len(), 1);
    // And a smaller one, which the second is outside of.
    assert_eq!(ipam.follow(&[net("10.0.0.0/31")]), None);
    assert_eq!(ipam.usage()[0].used, 1);
    assert_eq!(ipam.state(second), Some(State::Quarantined));
    assert!(ipam.settle(second));
    assert_eq!(ipam.state(second), None);
}

#[test]
fn a_refused_cidr_is_told_once_and_taken_as_soon_as_it_fits() {
    let mut ipam = Ipam::new();
    let both = [net("10.0.0.0/16"), net("10.0.1.0/24")];
    assert!(matches!(ipam.follow(&both), Some(IpamError::Overlap { .. })));
    assert_eq!(ipam.follow(&both), None, "told already");
    assert_eq!(ipam.follow(&both[1..]), None);
    assert_eq!(ipam.usage().iter().map(|u| u.cidr).collect::<Vec<_>>(), both[1..]);
}

#[derive(Clone, Debug)]
enum Step {
    Allocate,
    Release(prop::sample::Index),
    Settle,
    Remove(bool),
    Add(bool),
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => Just(Step::Allocate),
        3 => any::<prop::sample::Index>().prop_map(Step::Release),
        3 => Just(Step::Settle),
        1 => any::<bool>().prop_map(Step::Remove),
        2 => any::<bool>().prop_map(Step::Add),
    ]
}

proptest! {
    /// Against a model that knows what is out and what rests: nothing is given twice, nothing that rests is given, and
    /// an error comes exactly when nothing is left.
    #[test]
    fn nothing_is_given_twice_and_exhaustion_is_exact(steps in prop::collection::vec(any_step(), 0..200)) {
        let cidrs = [net("10.0.0.0/29"), net("10.0.1.0/28")];
        let sizes = BTreeMap::from([(cidrs[0], 6usize), (cidrs[1], 14)]);
        let mut active = BTreeSet::from(cidrs);
        let mut ipam = ipam(&["10.0.0.0/29", "10.0.1.0/28", "fd00::/64"]);
        let (mut out, mut resting) = (BTreeSet::new(), VecDeque::new());
        for step in steps {
            match step {
                Step::Allocate => {
                    let busy = |c: &IpNet| out.iter().chain(&resting).filter(|a: &&IpAddr| c.contains(*a)).count();
                    let free: usize = active.iter().map(|c| sizes[c] - busy(c)).sum();
                    match ipam.allocate() {
                        Ok(lease) => {
                            prop_assert!(lease.v6.is_some());
                            if let Some(v4) = lease.v4.map(IpAddr::V4) {
                                prop_assert!(free > 0);
                                prop_assert!(active.iter().any(|c| c.contains(&v4)), "{} is of a removed CIDR", v4);
                                prop_assert!(!resting.contains(&v4), "{} rests", v4);
                                prop_assert!(out.insert(v4), "{} was given twice", v4);
                            } else {
                                prop_assert!(active.is_empty());
                            }
                        }
                        Err(IpamError::Exhausted { family: Family::V4, .. }) => prop_assert!(free == 0 && !active.is_empty()),
                        Err(e) => prop_assert!(false, "{}", e),
                    }
                }
                Step::Release(which) => {
                    if !out.is_empty() {
                        let addr = *out.iter().nth(which.index(out.len())).unwrap();
                        out.remove(&addr);
                        resting.push_back(addr);
                        prop_assert!(ipam.release(addr));
                    }
                }
                Step::Settle => {
                    if let Some(addr) = resting.pop_front() {
                        prop_assert!(ipam.settle(addr));
                    }
                }
                Step::Remove(which) => {
                    ipam.remove_cidr(cidrs[usize::from(which)]);
                    active.remove(&cidrs[usize::from(which)]);
                }
                Step::Add(which) => {
                    prop_assert_eq!(ipam.add_cidr(cidrs[usize::from(which)]), Ok(()));
                    active.insert(cidrs[usize::from(which)]);
                }
            }
            let v4 = ipam.usage().into_iter().filter(|u| u.cidr.addr().is_ipv4()).collect::<Vec<_>>();
            prop_assert_eq!(v4.iter().map(|u| u.used as usize).sum::<usize>(), out.len());
            prop_assert_eq!(v4.iter().map(|u| u.quarantined as usize).sum::<usize>(), resting.len());
        }
    }

    #[test]
    fn what_was_given_can_be_claimed_by_the_next_agent(count in 1usize..200, cidr in prop_oneof![
        Just("10.0.0.0/22"), Just("192.168.0.0/16"), Just("fd00::/64"), Just("fd00::/116"),
    ]) {
        let mut before = ipam(&[cidr]);
        let given: Vec<IpAddr> = (0..count).flat_map(|_| before.allocate().unwrap().addresses()).collect();
        let mut after = ipam(&[cidr]);
        for addr in &given {
            prop_assert_eq!(after.claim(*addr), Ok(()));
        }
        let next = after.allocate().unwrap().addresses().next().unwrap();
        prop_assert!(!given.contains(&next));
        prop_assert_eq!(after.usage()[0].used as usize, count + 1);
    }
}

#[test]
fn an_address_of_no_cidr_that_rests_cannot_be_held_and_comes_free_all_the_same() {
    let mut ipam = ipam(&["10.0.0.0/24"]);
    let far = addr("172.16.0.9");
    assert!(ipam.hold(far) && ipam.release(far));
    assert!(!ipam.hold(far), "its link is still there");
    assert_eq!(ipam.state(far), Some(State::Quarantined));
    assert!(ipam.settle(far) && ipam.hold(far));
}

fn ipam(cidrs: &[&str]) -> Ipam {
    let mut ipam = Ipam::new();
    for cidr in cidrs {
        ipam.add_cidr(net(cidr)).unwrap();
    }
    ipam
}
fn net(s: &str) -> IpNet {
    s.parse().unwrap()
}
fn addr(s: &str) -> IpAddr {
    s.parse().unwrap()
}
fn taken(addr: &str, state: State) -> Result<(), IpamError> {
    Err(IpamError::Taken { addr: addr.parse().unwrap(), state })
}
