//! Containerd with runc, by its command line: `ctr run --cni`.
use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, Output, Stdio},
};

use cni_agent::netlink::netns;
use lab::{Lab, LabConfig, Node, pair, probe::Place};

use crate::{
    client::Network,
    machine::{self, CGROUP, CONFIGURATIONS, IMAGE},
    traffic::{self, Traces, assert_talk},
};

/// A containerd of its own on one node of the lab. Its containers are namespaces of processes that `ctr` starts.
struct Containerd<'a> {
    node: &'a Node,
    directory: PathBuf,
    daemon: Child,
}

impl<'a> Containerd<'a> {
    /// With the image loaded, and the network as the agent has configured it.
    fn on(node: &'a Node, image: &Path) -> Self {
        machine::need(&["containerd", "ctr", "runc", "unshare"]);
        let directory = Path::new("/run/ctr").join(node.name());
        let networks = directory.join("net.d");
        fs::create_dir_all(&networks).unwrap();
        fs::copy(node.paths().conflist(), networks.join("05-weft.conflist")).unwrap();
        let place = |name: &str| directory.join(name).display().to_string();
        let settings = format!(
            "version = 2\nroot = {:?}\nstate = {:?}\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n\
             [grpc]\naddress = {:?}\n[ttrpc]\naddress = {:?}\n",
            place("root"),
            place("state"),
            place("sock"),
            place("ttrpc")
        );
        fs::write(directory.join("config.toml"), settings).unwrap();
        let log = fs::File::create(directory.join("log")).unwrap();
        let mut command = Command::new("containerd");
        command
            .arg("--config")
            .arg(directory.join("config.toml"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        let daemon = netns::spawn_in(node.place().unwrap().netns(), &mut command).unwrap();
        let containerd = Self { node, directory, daemon };
        let answers = || containerd.output(&["version"]).status.success();
        pair::until("containerd answers", answers).unwrap_or_else(|e| panic!("{e}\n{}", containerd.log()));
        containerd.says(&["image", "import", "--snapshotter", "native", image.to_str().unwrap()]);
        containerd
    }

    fn log(&self) -> String {
        fs::read_to_string(self.directory.join("log")).unwrap()
    }

    /// `ctr`, for which this node's networks are those of the machine: it knows no other place of theirs.
    fn command(&self, args: &[&str]) -> Command {
        let script = format!("mount --bind \"$1\" {CONFIGURATIONS} && shift && exec ctr \"$@\"");
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", &script, "sh"]).arg(self.directory.join("net.d"));
        command.arg("--address").arg(self.directory.join("sock")).args(args);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn start(&self, args: &[&str]) -> Child {
        netns::spawn_in(self.node.place().unwrap().netns(), &mut self.command(args)).unwrap()
    }

    fn output(&self, args: &[&str]) -> Output {
        self.start(args).wait_with_output().unwrap()
    }

    /// What it prints; it must end well.
    fn says(&self, args: &[&str]) -> String {
        let output = self.output(args);
        assert!(output.status.success(), "ctr {args:?}: {output:?}\n{}", self.log());
        String::from_utf8(output.stdout).unwrap()
    }

    /// Starts a container that serves its own name at port 80, with a `ctr` that stays until its end.
    fn run(&'a self, name: &'static str) -> Container<'a> {
        let serve = format!("echo {name} >/tmp/index.html && ip -o addr && echo ready && exec httpd -f -p 80 -h /tmp");
        let cgroup = format!("{CGROUP}/{}-{name}", self.node.name());
        let begin = ["run", "--rm", "--cni", "--snapshotter", "native", "--cgroup", &cgroup, IMAGE, name];
        let mut ctr = self.start(&[&begin[..], &["sh", "-c", &serve]].concat());
        let mut lines = BufReader::new(ctr.stdout.take().unwrap());
        let mut said = String::new();
        while !said.contains("ready") {
            let more = lines.read_line(&mut said).unwrap();
            assert!(more > 0, "{name} ended: {said}{:?}\n{}", ctr.wait_with_output(), self.node.log_tail());
        }
        // Lines of `N: eth0    inet 10.244.1.1/32 scope global eth0 …`.
        let words: Vec<Vec<&str>> = said.lines().map(|l| l.split_ascii_whitespace().collect()).collect();
        let own = words.iter().filter(|w| w.get(1) == Some(&"eth0"));
        let addresses = own.filter_map(|w| w.get(3)?.split('/').next()?.parse().ok()).collect();
        let tasks = self.says(&["task", "list"]);
        let task = tasks.lines().map(|l| l.split_ascii_whitespace().collect::<Vec<_>>()).find(|w| w[0] == name);
        let sandbox = format!("/proc/{}/ns/net", task.expect("the task is listed")[1]);
        let place = Place::new(name, &sandbox, addresses).unwrap();
        assert_eq!(place.addresses.len(), 2, "{said}");
        traffic::await_server(&place);
        Container { containerd: self, place, ctr, _output: lines }
    }
}

impl Drop for Containerd<'_> {
    fn drop(&mut self) {
        // Its shims end with the machine.
        drop(self.daemon.kill());
        drop(self.daemon.wait());
    }
}

struct Container<'a> {
    containerd: &'a Containerd<'a>,
    place: Place,
    ctr: Child,
    _output: BufReader<ChildStdout>,
}

impl traffic::Container for Container<'_> {
    fn place(&self) -> &Place {
        &self.place
    }

    fn exec(&self, args: &[&str]) -> String {
        self.containerd.says(&[&["task", "exec", "--exec-id", "probe", &self.place.name], args].concat())
    }
}

impl Container<'_> {
    /// Kills it; the `ctr` that has started it then calls DEL, without a namespace, as that is gone, and ends.
    fn kill(self) {
        self.containerd.says(&["task", "kill", "--signal", "KILL", &self.place.name]);
        let output = self.ctr.wait_with_output().unwrap();
        let words = String::from_utf8_lossy(&output.stderr);
        assert!(!words.contains("network"), "{words}");
    }
}

#[test]
fn containers_of_one_node_and_of_two_reach_each_other_and_leave_nothing() {
    machine::on_its_own(|| {
        let lab = Lab::up(LabConfig::with_nodes(2)).unwrap();
        machine::install_plugins(&lab, &["loopback"]);
        let image = machine::image();
        let nodes = [lab.node("node-1").unwrap(), lab.node("node-2").unwrap()];
        let [first, second] = nodes.map(|node| Containerd::on(node, image));
        let before = nodes.map(Traces::of);

        let [web, client] = ["web", "client"].map(|name| first.run(name));
        let far = second.run("far");
        assert_eq!(nodes.map(|node| Traces::of(node).endpoints()), [2, 1]);
        assert_talk(&client, &web);
        assert_talk(&client, &far);

        for container in [web, client, far] {
            container.kill();
        }
        for (node, before) in nodes.into_iter().zip(&before) {
            before.await_again(node);
        }
        drop([first, second]);
        lab.down().unwrap();
    });
}

/// Nobody calls DEL for it. Its wire goes with its namespace, the agent's record of it stays.
#[test]
fn what_a_detached_container_leaves_gc_collects() {
    machine::on_its_own(|| {
        let lab = Lab::up(LabConfig::with_nodes(1)).unwrap();
        machine::install_plugins(&lab, &[]);
        let node = lab.node("node-1").unwrap();
        let containerd = Containerd::on(node, machine::image());
        let before = Traces::of(node);
        let cgroup = format!("{CGROUP}/detached");
        let run = ["run", "--detach", "--null-io", "--cni", "--snapshotter", "native", "--cgroup", &cgroup];
        containerd.says(&[&run[..], &[IMAGE, "detached", "sleep", "1000"]].concat());
        let network = Network::installed(node);
        assert!(network.call("status").status.success());
        assert!(network.collect(&[("default-detached", "eth0")]).status.success());
        assert_eq!(Traces::of(node).endpoints(), before.endpoints() + 1, "what is listed stays");

        containerd.says(&["task", "kill", "--signal", "KILL", "detached"]);
        let deleted = || containerd.output(&["container", "delete", "detached"]).status.success();
        let stopped = || drop(containerd.output(&["task", "delete", "detached"]));
        pair::until("the container is deleted", || {
            stopped();
            deleted()
        })
        .unwrap();
        assert_eq!(Traces::of(node).endpoints(), before.endpoints() + 1);
        assert!(network.collect(&[]).status.success());
        before.await_again(node);
        drop(containerd);
        lab.down().unwrap();
    });
}
