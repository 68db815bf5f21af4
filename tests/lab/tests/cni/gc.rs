//! GC.
use super::*;

fn valid(list: &[(&Container, &str)]) -> Value {
    let list: Vec<_> = list.iter().map(|(c, ifname)| json!({"containerID": c.id, "ifname": ifname})).collect();
    json!({"cni.dev/valid-attachments": list})
}

#[test]
fn gc_disconnects_what_the_runtime_no_longer_lists_and_nothing_else() {
    let lab = one_node();
    let node = lab.node(ORDINARY).unwrap();
    let (kept, lost) = (Container::new("kept"), Container::new("lost"));
    let foreign = json!({"name": "another"});
    let place = kept.at(&add(node, &kept, "eth0", &json!({})));
    add(node, &kept, "net1", &json!({}));
    add(node, &lost, "eth0", &json!({}));
    add(node, &lost, "net2", &foreign);
    assert_eq!(served(node), (4, 8));

    call(node, &about_all(Verb::Gc, &valid(&[(&kept, "eth0")]))).unwrap();
    assert_eq!(served(node).0, 2, "eth0 of the one, and what is of another network");
    assert_eq!((kept.ruled(), records(node), entries(node, "endpoints")), (vec![], 2, 2));
    let names: Vec<_> =
        node.ask("/v1/endpoints").unwrap().as_array().unwrap().iter().map(|e| e["ifname"].clone()).collect();
    assert_eq!(names, ["eth0", "net2"]);
    assert_reaches(&node.place().unwrap(), &place);
    call(node, &about_all(Verb::Gc, &valid(&[(&kept, "eth0")]))).unwrap();
    assert_eq!(served(node).0, 2);

    let mut other = valid(&[]);
    other["name"] = "another".into();
    call(node, &about_all(Verb::Gc, &other)).unwrap();
    call(node, &about_all(Verb::Gc, &valid(&[]))).unwrap();
    assert_clean(node);
    lab.down().unwrap();
}

#[test]
fn gc_without_a_list_is_refused_and_removes_nothing() {
    let lab = one_node();
    let node = lab.node(ORDINARY).unwrap();
    let container = Container::new("kept");
    add(node, &container, "eth0", &json!({}));
    for further in [json!({}), json!({"cni.dev/valid-attachments": {}}), json!({"cni.dev/valid-attachments": [{}]})] {
        let e = call(node, &about_all(Verb::Gc, &further)).unwrap_err();
        assert!(e.code.0 == 7 && e.msg.contains("cni.dev/valid-attachments"), "{e}");
    }
    assert_eq!(served(node), (1, 2));
    lab.down().unwrap();
}
