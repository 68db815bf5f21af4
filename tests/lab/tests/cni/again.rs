//! ADD that comes again.
use super::*;

#[test]
fn add_asked_again_gives_the_same_answer_whatever_the_configuration_says() {
    let mut lab = one_node();
    let container = Container::new("again");
    let dns = json!({"dns": {"nameservers": ["10.96.0.10"], "search": ["lab"]}});
    let result = add(lab.node(ORDINARY).unwrap(), &container, "eth0", &dns);
    assert_eq!(result.dns.nameservers, ["10.96.0.10"]);
    let node = lab.node(ORDINARY).unwrap();
    for further in
        [json!({}), dns.clone(), json!({"runtimeConfig": {"mac": "0a:58:0a:00:00:05"}}), json!({"name": "other"})]
    {
        assert_eq!(add(node, &container, "eth0", &further), result, "{further}");
    }
    assert_eq!(served(node), (1, 2));
    lab.restart_agent(ORDINARY, lab::Ending::Killed).unwrap();
    let node = lab.node(ORDINARY).unwrap();
    assert_eq!(add(node, &container, "eth0", &json!({})), result, "the record keeps all that the answer tells");
    // The answer got lost: nobody took it.
    let bytes = request(Verb::Add, &container, "net1", &json!({})).encode().unwrap();
    let mut stream = std::os::unix::net::UnixStream::connect(node.paths().cni_socket()).unwrap();
    std::io::Write::write_all(&mut stream, &bytes).unwrap();
    stream.shutdown(std::net::Shutdown::Both).unwrap();
    drop(stream);
    let net1 = add(node, &container, "net1", &json!({}));
    assert_eq!((served(node), ips(&net1).len()), ((2, 4), 2));
    assert_reaches(&node.place().unwrap(), &container.at(&net1));
    lab.down().unwrap();
}

#[test]
fn add_after_the_namespace_was_made_anew_connects_the_new_one() {
    let lab = one_node();
    let node = lab.node(ORDINARY).unwrap();
    let container = Container::new("anew");
    add(node, &container, "eth0", &json!({}));
    // The runtime has lost its pod and makes it again under the same names, without a DEL.
    netns::delete(&container.netns).unwrap();
    drop(netns::create(&container.netns).unwrap());
    let second = add(node, &container, "eth0", &json!({}));
    assert_eq!(container.devices(), ["eth0", "lo"]);
    assert_reaches(&node.place().unwrap(), &container.at(&second));
    assert_eq!(served(node).0, 1);
    del(node, &container, "eth0");
    lab::pair::until("all is given back", || served(node) == (0, 0)).unwrap();
    assert_clean(node);
    lab.down().unwrap();
}

#[test]
fn add_from_another_namespace_is_refused() {
    let lab = one_node();
    let node = lab.node(ORDINARY).unwrap();
    let (container, mut other) = (Container::new("here"), Container::new("there"));
    add(node, &container, "eth0", &json!({}));
    other.id.clone_from(&container.id);
    let e = refused(node, &other, &json!({}), None);
    assert!(e.code.0 == 4 && e.msg.contains(&container.path()) && e.details.contains("DEL"), "{e}");
    assert_eq!(other.devices(), ["lo"]);
    lab.down().unwrap();
}

#[test]
fn a_plugin_of_the_last_release_is_served_while_the_node_is_upgraded() {
    let lab = one_node();
    let node = lab.node(ORDINARY).unwrap();
    let container = Container::new("older");
    let older = |verb| Request { protocol: 1, ..request(verb, &container, "eth0", &json!({})) };
    let result = call(node, &older(Verb::Add)).unwrap().expect("a result");
    assert_reaches(&node.place().unwrap(), &container.at(&result));
    call(node, &older(Verb::Del)).unwrap();
    assert_clean(node);
    let newer = Request { protocol: 3, ..older(Verb::Add) };
    let e = call(node, &newer).unwrap_err();
    assert!(e.code.0 == 101 && e.details.contains("install the plugin of the agent's release"), "{e}");
    assert_clean(node);
    lab.down().unwrap();
}
