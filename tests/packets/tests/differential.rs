//! One decision, two targets: native logic and loaded program agree on every frame of a random corpus, in verdict, bytes and what is
//! counted.
use std::collections::{BTreeMap, BTreeSet};

use bytemuck::{Zeroable as _, bytes_of};
use cni_common::{
    drop::{
        DropReason::{PolicyEgress, PolicyIngress, PolicyUnknown},
        Point,
    },
    event::DropEvent,
    maps::CtEntry,
    policy::{HitKey, PeerKey, RULES_ALLOW_ALL, only_audits},
    schema,
    wire::OVERHEAD4,
};
use cni_ebpf::{
    event,
    fake::{Fake, Frame, policy},
};
use packets::{
    corpus::{self, Rng},
    kernel::{self, Kernel},
    node::Node,
    world::{self, CLIENT_IFINDEX},
};

/// Frames a seed and program; a VM without acceleration takes fewer (`WEFT_CORPUS`).
fn size() -> usize {
    std::env::var("WEFT_CORPUS").ok().map_or(2000, |n| n.parse().expect("WEFT_CORPUS is a number"))
}

type Table = BTreeMap<Vec<u8>, CtEntry>;

/// Keys of entries that are not the same, but for the time, which only the kernel knows.
fn difference(native: &Table, kernel: &Table) -> Vec<(Vec<u8>, [Option<CtEntry>; 2])> {
    let keys: BTreeSet<_> = native.keys().chain(kernel.keys()).collect();
    let timeless = |t: &Table, key| t.get(key).map(|e| CtEntry { seen: 0, ..*e });
    let both = keys.into_iter().map(|k| (k.clone(), [timeless(native, k), timeless(kernel, k)]));
    both.filter(|(_, [a, b])| a != b).collect()
}

/// Of the outermost IPv4 header.
fn id_of(frame: &[u8]) -> u16 {
    frame.get(18..20).map_or(0, |id| u16::from_be_bytes([id[0], id[1]]))
}

#[test]
fn native_logic_and_loaded_program_agree_on_every_frame() {
    agree(world::world());
}

#[test]
fn they_agree_on_a_node_that_masquerades() {
    let node = Node::new();
    let w = node.world();
    node.run(|| agree(w));
}

#[test]
fn they_agree_on_a_node_whose_pods_are_isolated_while_policies_change() {
    let node = Node::new();
    let mut w = node.world();
    policy::isolate(&mut w);
    // Some have their single ports in the hash.
    policy::put_by_port(&mut w, &[16, 20]);
    node.run(|| agree(w));
}

#[test]
fn they_agree_on_a_node_with_policies_in_audit_mode_while_policies_change() {
    let node = Node::new();
    let mut w = node.world();
    policy::isolate(&mut w);
    policy::audit(&mut w);
    node.run(|| agree(w));
}

/// Something is allowed no more, and something is, which is told by a new epoch.
fn change(k: &mut Kernel, w: &mut Fake, seed: u64) {
    let who = [policy::CLIENT, policy::FAR, policy::WORLD][(seed % 3) as usize];
    let key = (policy::SERVER_IN, who);
    match w.policy.peers.remove(&key) {
        Some(_) => {
            let key = PeerKey { set: key.0, identity: key.1 };
            k.datapath().map(&schema::POLICY_PEER).delete(bytes_of(&key)).expect("is deleted");
        }
        None => drop(w.policy.peers.insert(key, RULES_ALLOW_ALL)),
    }
    w.ct_config.epoch += 1;
    packets::fill::fill(k.datapath(), w);
}

fn agree(mut w: Fake) {
    let policies = !w.policy.peers.is_empty();
    let audits = w.policy.peers.keys().any(|(set, _)| only_audits(*set));
    let mut audited = 0;
    // Time goes on for the kernel alone: no flow may be over while the test runs.
    w.ct_config = cni_ebpf::ct::lifetime::config(1, 100_000);
    let mut k = Kernel::empty();
    packets::fill::fill(k.datapath(), &w);
    // For frames that the kernel does not take.
    let aside = w.clone();
    // By a kernel of its own: the frame that it tries is a flow as well.
    let decap_l3 = Kernel::loaded().decap_l3();
    let (mut tunnelled, mut identifications) = (0, BTreeSet::new());
    let mut cookies = BTreeSet::new();
    let (mut compared, mut refused, mut kinds) = (0, 0, BTreeMap::<String, u32>::new());
    for point in Point::ALL {
        for seed in [1, 2, 3] {
            let mut r = Rng::new(seed);
            if policies {
                change(&mut k, &mut w, seed);
            }
            for n in 0..size() {
                let f = corpus::frame(&mut r, point);
                let ran = match k.run(point, &f) {
                    Ok(ran) => Some(ran),
                    // The kernel wants a whole network header of a test frame (seen on 6.1 to 6.18).
                    Err(_) if f.len() < 14 + 40 => None,
                    Err(e) => panic!("frame {n} of seed {seed} for {point:?}: {e}"),
                };
                // By chance in the program; all else follows from the frame.
                let identification = ran.as_ref().map_or(0, |ran| id_of(&ran.data));
                let mut frame = Frame { decap_l3, identification, ..Frame::new(f.clone(), CLIENT_IFINDEX) };
                let decision = kernel::native(point, &mut frame, if ran.is_some() { &w } else { &aside });
                *kinds.entry(format!("{point:?} {:?}", decision.counted())).or_default() += 1;
                let Some(ran) = ran else {
                    refused += 1;
                    continue;
                };
                let what = format!(
                    "frame {n} of seed {seed} for {point:?}: native {decision:?}\nin     {f:02x?}\nnative {:02x?}\nkernel {:02x?}",
                    frame.data, ran.data
                );
                assert_eq!(ran.code, decision.code(), "{what}");
                let let_pass = w.policy.audited.take();
                let mut counted: Vec<_> = decision.counted().into_iter().map(|c| (point, c)).collect();
                counted.extend(let_pass.iter().map(|(outcome, _)| (point, Ok(*outcome))));
                assert_eq!(ran.counted, counted, "{what}");
                assert_eq!(ran.events.len(), let_pass.len() + usize::from(decision.frame.is_err()), "{what}");
                let (reported, dropped) = ran.events.split_at(let_pass.len());
                for (e, (_, told)) in reported.iter().zip(&let_pass) {
                    assert_eq!(*e, DropEvent { time: e.time, endpoint: e.endpoint, ..*told }, "{what}");
                    audited += 1;
                }
                if let ([e], Err(PolicyEgress | PolicyIngress | PolicyUnknown)) = (dropped, decision.frame) {
                    let mut told = DropEvent { time: e.time, endpoint: e.endpoint, ..DropEvent::zeroed() };
                    event::describe(&frame, e.point, e.reason, w.policy.told.get().blame, &mut told);
                    assert_eq!(*e, told, "{what}");
                    cookies.insert(e.cookie);
                }
                // A dropped frame's bytes are nobody's.
                assert!(decision.is_lost() || ran.data == frame.data, "{what}");
                compared += 1;
                if ran.data.len() == f.len() + OVERHEAD4 as usize {
                    tunnelled += 1;
                    identifications.insert(id_of(&ran.data));
                }
            }
        }
    }
    let native =
        [("ct4", &w.ct4), ("ct6", &w.ct6)].map(|(name, t)| (name, t.flows.dump(), t.new.dump(), t.held.take()));
    for ((name, settled, new, held), in_kernel) in native.into_iter().zip(k.flows()) {
        assert_eq!(held, in_kernel.held, "{name}");
        assert_eq!(difference(&settled, &in_kernel.settled), [], "{name}");
        assert_eq!(difference(&new, &in_kernel.new), [], "new in {name}");
        println!("{name}: {} flows settled, {} new", settled.len(), new.len());
        assert!(!new.is_empty());
        // In a corpus so large somebody has answered.
        assert!(!settled.is_empty() || size() < 2000);
    }
    for (name, t, maps) in [
        ("nat4", &w.nat4, [&schema::NAT_BACK4, &schema::NAT_FORTH4, &schema::NAT_HELD4]),
        ("nat6", &w.nat6, [&schema::NAT_BACK6, &schema::NAT_FORTH6, &schema::NAT_HELD6]),
    ] {
        let held = t.held.borrow().iter().map(|(k, n)| (k.to_ne_bytes().to_vec(), n.to_ne_bytes().to_vec())).collect();
        let [back, forth, in_kernel] = maps.map(|map| k.datapath().map(map).dump().expect("is read"));
        let keys = |t: &BTreeMap<Vec<u8>, Vec<u8>>| t.keys().cloned().collect::<BTreeSet<_>>();
        // What it says is when it was made, and to whom it leads, which the other half says too.
        assert_eq!(keys(&t.back.borrow()), back.into_keys().collect(), "{name}");
        assert_eq!(*t.forth.borrow(), forth.into_iter().collect(), "{name}");
        let held: BTreeMap<_, _> = held;
        assert_eq!(held, in_kernel.into_iter().collect(), "{name}");
        println!("{name}: {} translations", t.forth.borrow().len());
        assert!(!t.forth.borrow().is_empty() || w.v4.leave.is_empty() || size() < 2000);
    }
    let hits = k.datapath().map(&schema::HITS).dump().expect("is read");
    let hits: BTreeMap<u64, u64> = hits
        .iter()
        .map(|(key, n)| (bytemuck::pod_read_unaligned::<HitKey>(key).number(), bytemuck::pod_read_unaligned(n)))
        .collect();
    assert_eq!(*w.policy.hits.borrow(), hits, "what has decided how often");
    assert_eq!(!hits.is_empty(), policies);
    let different = identifications.len();
    assert!(different * 10 > tunnelled * 9, "{different} identifications for {tunnelled} outer IPv4 headers");
    assert_eq!(audited > 0, audits, "{audited} packets were let pass");
    assert!(!policies || audits || cookies.len() > 2, "rules that deny are named: {cookies:?}");
    for (kind, n) in &kinds {
        println!("{n:7} {kind}");
    }
    println!("corpus: {compared} frames equal, {refused} too short for the kernel's test run");
    assert!(compared > refused * 10, "most frames must have been compared");
}
