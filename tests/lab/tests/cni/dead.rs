//! Pods that go without a DEL.
use lab::pair::until;

use super::*;

#[test]
fn a_pod_whose_namespace_is_deleted_without_a_del_goes_and_no_other() {
    let lab = two_nodes();
    for name in [ORDINARY, HOSTILE] {
        let node = lab.node(name).unwrap();
        let (lives, dies) = (Container::new("lives"), Container::new("dies"));
        let place = lives.at(&add(node, &lives, "eth0", &json!({})));
        add(node, &dies, "eth0", &json!({}));
        add(node, &dies, "net1", &json!({}));
        assert_eq!(served(node), (3, 6));
        drop(dies);
        until("the dead pod goes", || served(node).0 == 1).unwrap();
        assert_reaches(&node.place().unwrap(), &place);
        assert_eq!((records(node), entries(node, "endpoints")), (1, 1));
        // The runtime comes late, and is told that all is well.
        let dies = Container::new("dies");
        del(node, &dies, "eth0");
        del(node, &lives, "eth0");
        assert_clean(node);
    }
    lab.down().unwrap();
}

#[test]
fn a_pod_that_lives_and_whose_device_somebody_deleted_keeps_its_address() {
    let lab = one_node();
    let node = lab.node(ORDINARY).unwrap();
    let (cut, dies) = (Container::new("cut"), Container::new("dies"));
    add(node, &cut, "eth0", &json!({}));
    add(node, &dies, "eth0", &json!({}));
    let mut host = Socket::open_in(node.place().unwrap().netns()).unwrap();
    let device = node.ask("/v1/endpoints").unwrap()[0]["ifindex"].as_u64().unwrap();
    host.run(link::delete(u32::try_from(device).unwrap())).unwrap();
    // Once the second is gone the first has been looked at.
    drop(dies);
    until("the dead pod goes", || served(node).0 == 1).unwrap();
    let left = node.ask("/v1/endpoints").unwrap();
    assert_eq!(left[0]["container_id"], *cut.id, "{left}");
    assert!(node.log_tail().contains("somebody has deleted the device of a pod that lives"), "{}", node.log_tail());
    del(node, &cut, "eth0");
    assert_clean(node);
    lab.down().unwrap();
}
