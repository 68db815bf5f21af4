//! Podman with its CNI backend, `network_backend = "cni"`.
use std::{
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
};

use cni_agent::netlink::netns;
use lab::{Lab, LabConfig, Node, probe::Place, tool};
use serde_json::{Value, json};

use crate::{
    machine::{self, CGROUP, IMAGE, PLUGINS},
    traffic::{self, Container as _, Traces, assert_reaches, assert_talk},
};

/// The network of all containers, and the file of its configuration.
const NETWORK: &str = "weft";

/// Podman on one node of the lab, as if it were alone on a machine: storage, state and networks of its own.
struct Podman<'a> {
    node: &'a Node,
    directory: PathBuf,
}

impl<'a> Podman<'a> {
    /// With the image loaded, and one network: of these plugins, or, if there are none, as the agent has configured it.
    fn on(node: &'a Node, image: &Path, plugins: &[Value]) -> Self {
        machine::need(&["podman", "conmon", "runc"]);
        let directory = Path::new("/run/podman").join(node.name());
        let networks = directory.join("net.d");
        fs::create_dir_all(&networks).unwrap();
        let file = networks.join("05-weft.conflist");
        if plugins.is_empty() {
            fs::copy(node.paths().conflist(), file).unwrap();
        } else {
            let list = json!({"cniVersion": "1.0.0", "name": NETWORK, "plugins": plugins});
            fs::write(file, list.to_string()).unwrap();
        }
        // Locks in files, as those in shared memory have one name for the whole machine.
        let settings = format!(
            "[network]\nnetwork_backend = \"cni\"\ncni_plugin_dirs = [\"{PLUGINS}\"]\nnetwork_config_dir = \"{}\"\n\
             default_network = \"{NETWORK}\"\n\
             [engine]\ncgroup_manager = \"cgroupfs\"\nevents_logger = \"file\"\nlock_type = \"file\"\nruntime = \"runc\"\n\
             [containers]\nlog_driver = \"k8s-file\"\n",
            networks.display()
        );
        fs::write(directory.join("containers.conf"), settings).unwrap();
        let podman = Self { node, directory };
        podman.says(&["load", "--input", image.to_str().unwrap()]);
        podman
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new("podman");
        for (option, place) in [("--root", "storage"), ("--runroot", "run"), ("--tmpdir", "tmp")] {
            command.arg(option).arg(self.directory.join(place));
        }
        command.args(["--storage-driver", "vfs"]).args(args);
        command.env("CONTAINERS_CONF", self.directory.join("containers.conf"));
        command
    }

    fn output(&self, args: &[&str]) -> Output {
        let mut command = self.command(args);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let child: Child = netns::spawn_in(self.node.place().unwrap().netns(), &mut command).unwrap();
        child.wait_with_output().unwrap()
    }

    /// What it prints; it must end well.
    fn says(&self, args: &[&str]) -> String {
        let output = self.output(args);
        assert!(output.status.success(), "podman {args:?}: {output:?}\n{}", self.node.log_tail());
        String::from_utf8(output.stdout).unwrap()
    }

    /// What it says when it fails, as it must.
    fn fails(&self, args: &[&str]) -> String {
        let output = self.output(args);
        assert!(!output.status.success(), "podman {args:?}: {output:?}");
        String::from_utf8(output.stderr).unwrap()
    }

    /// Starts a container that serves its own name at port 80.
    fn run(&self, name: &str, further: &[&str]) -> Container<'_> {
        let serve = "hostname >/tmp/index.html && exec httpd -f -p 80 -h /tmp";
        let begin = ["run", "--detach", "--name", name, "--hostname", name, "--network", NETWORK];
        let end = ["--cgroup-parent", CGROUP, IMAGE, "sh", "-c", serve];
        self.says(&[&begin, further, &end].concat());
        self.running(name)
    }

    /// A container that has just been started.
    fn running(&self, name: &str) -> Container<'_> {
        let settings: Value = serde_json::from_str(&self.says(&["inspect", name])).unwrap();
        let network = &settings[0]["NetworkSettings"];
        let own = &network["Networks"][NETWORK];
        let addresses: Vec<IpAddr> =
            ["IPAddress", "GlobalIPv6Address"].map(|key| own[key].as_str().unwrap().parse().unwrap()).to_vec();
        let sandbox = network["SandboxKey"].as_str().unwrap();
        let place = Place::new(name, sandbox, addresses).unwrap();
        traffic::await_server(&place);
        Container { podman: self, place }
    }
}

struct Container<'a> {
    podman: &'a Podman<'a>,
    place: Place,
}

impl traffic::Container for Container<'_> {
    fn place(&self) -> &Place {
        &self.place
    }

    fn exec(&self, args: &[&str]) -> String {
        self.podman.says(&[&["exec", &self.place.name], args].concat())
    }
}

impl Container<'_> {
    fn remove(self) {
        self.podman.says(&["rm", "--force", "--time", "0", &self.place.name]);
    }
}

#[test]
fn containers_of_one_node_and_of_two_reach_each_other_and_leave_nothing() {
    machine::on_its_own(|| {
        let lab = Lab::up(LabConfig::with_nodes(2)).unwrap();
        machine::install_plugins(&lab, &[]);
        let image = machine::image();
        let nodes = [lab.node("node-1").unwrap(), lab.node("node-2").unwrap()];
        let [first, second] = nodes.map(|node| Podman::on(node, image, &[]));
        let before = nodes.map(Traces::of);

        let [web, client] = ["web", "client"].map(|name| first.run(name, &[]));
        let far = second.run("far", &[]);
        assert_eq!(nodes.map(|node| Traces::of(node).endpoints()), [2, 1]);
        assert_talk(&client, &web);
        assert_talk(&client, &far);
        // And the nodes themselves.
        for node in nodes {
            assert_reaches(&node.place().unwrap(), &web.place);
            assert_reaches(&far.place, &node.place().unwrap());
        }

        for container in [web, client, far] {
            container.remove();
        }
        for (node, before) in nodes.into_iter().zip(&before) {
            before.await_again(node);
        }
        lab.down().unwrap();
    });
}

#[test]
fn a_container_that_is_restarted_is_connected_anew() {
    machine::on_its_own(|| {
        let lab = Lab::up(LabConfig::with_nodes(1)).unwrap();
        machine::install_plugins(&lab, &[]);
        let node = lab.node("node-1").unwrap();
        let podman = Podman::on(node, machine::image(), &[]);
        let before = Traces::of(node);
        let [web, client] = ["web", "client"].map(|name| podman.run(name, &[]));
        podman.says(&["stop", "--time", "0", "web"]);
        podman.says(&["start", "web"]);
        let again = podman.running("web");
        assert_ne!(again.place.addresses, web.place.addresses, "an address rests before it is given again");
        client.uses(&again);
        again.uses(&client);
        again.remove();
        client.remove();
        before.await_again(node);
        lab.down().unwrap();
    });
}

#[test]
fn a_port_that_ours_is_to_publish_is_refused_with_cause_and_cure() {
    machine::on_its_own(|| {
        let lab = Lab::up(LabConfig::with_nodes(1)).unwrap();
        machine::install_plugins(&lab, &[]);
        let node = lab.node("node-1").unwrap();
        let podman = Podman::on(node, machine::image(), &[]);
        let before = Traces::of(node);
        let said = podman.fails(&[
            "run",
            "--detach",
            "--name",
            "web",
            "--network",
            NETWORK,
            "--publish",
            "8080:80",
            "--cgroup-parent",
            CGROUP,
            IMAGE,
            "sleep",
            "60",
        ]);
        assert!(said.contains("portMappings"), "{said}");
        before.await_again(node);
        lab.down().unwrap();
    });
}

#[test]
fn a_port_is_published_by_portmap_behind_ours() {
    machine::on_its_own(|| {
        let lab = Lab::up(LabConfig::with_nodes(1)).unwrap();
        machine::install_plugins(&lab, &["portmap"]);
        let node = lab.node("node-1").unwrap();
        let portmap = json!({"type": "portmap", "capabilities": {"portMappings": true}});
        let ours = json!({"type": "weft-cni", "agentSocket": node.paths().cni_socket()});
        let podman = Podman::on(node, machine::image(), &[ours, portmap]);
        let before = Traces::of(node);
        let web = podman.run("web", &["--publish", "8080:80"]);
        let place = node.place().unwrap();
        let get =
            |host: &str| tool::says(&place, &format!("timeout 5 busybox wget -q -O - http://{host}:8080/")).unwrap();
        for host in ["127.0.0.1", "10.99.0.1", "[fd99::1]"] {
            let said = get(host);
            assert_eq!((said.well, said.text.trim()), (true, "web"), "{host}");
        }
        web.remove();
        assert!(!get("10.99.0.1").well);
        before.await_again(node);
        lab.down().unwrap();
    });
}
