//! What the kernel can: found as it is, by trying that leaves nothing; what is missing is named, and packets go without it. Needs root,
//! strace and `cargo xtask build`; run it with `cargo xtask test --suite lab`.
use std::{
    collections::{BTreeMap, BTreeSet},
    env, fs,
    os::fd::AsFd as _,
    process::{Command, Output},
    time::{Duration, Instant},
};

use cni_agent::{
    datapath::features::{ALL, Feature, Features, Try},
    netlink::{Socket, link, names, netns, tc},
};
use lab::{
    Hostile, Lab, LabConfig, PodSpec, Quiet, Snapshot, layout,
    pair::until,
    probe::{self, Family},
};
use serde_json::Value;

/// The kernel's own function behind a feature, where there is one that came with it.
fn symbol(f: &Feature) -> Option<String> {
    Some(match (f.name, &f.attempt) {
        // For all program types the same, and called by them alone.
        ("get-prandom-u32", _) => "bpf_user_rnd_u32".to_owned(),
        // Of classifiers; XDP has its own.
        ("fib-lookup", _) => "bpf_skb_fib_lookup".to_owned(),
        (_, Try::Helper(..)) => f.what.strip_prefix("the helper ")?.to_owned(),
        ("ring-buffer", _) => "ringbuf_map_alloc".to_owned(),
        ("tcx", _) => "tcx_link_attach".to_owned(),
        ("batch-hash", _) => "htab_map_lookup_batch".to_owned(),
        ("shared-blocks", _) => "clsact_ingress_block_set".to_owned(),
        ("vxlan", _) => "vxlan_validate".to_owned(),
        ("veth", _) => "veth_validate".to_owned(),
        _ => return None,
    })
}

fn symbols() -> BTreeSet<String> {
    let all = fs::read_to_string("/proc/kallsyms").unwrap();
    all.lines().filter_map(|l| Some(l.split_whitespace().nth(2)?.to_owned())).collect()
}

fn version(text: &str) -> (u32, u32) {
    let mut parts = text.split(|c: char| !c.is_ascii_digit()).map(|n| n.parse().unwrap());
    (parts.next().unwrap(), parts.next().unwrap())
}

#[test]
fn what_the_kernel_can_is_found_as_its_symbols_and_its_series_say_and_used() {
    let lab = Lab::up(LabConfig { hostile: Hostile::Nobody, ..LabConfig::with_nodes(1) }).expect("a lab of one node");
    let node = lab.node("node-1").unwrap();
    let status = node.ask("/v1/status").unwrap();
    let datapath = &status["datapath"];
    let release = status["kernel"].as_str().unwrap();
    let symbols = symbols();
    for f in ALL {
        let there = datapath["features"][f.name].as_bool().unwrap();
        // Our kernels are mainline's, with all options; the agent must not decide by that, but must come to the same.
        assert_eq!(there, version(release) >= version(f.since), "{} on {release}", f.name);
        if let Some(symbol) = symbol(f) {
            assert_eq!(there, symbols.contains(&symbol), "{} and {symbol} on {release}", f.name);
        }
    }
    let missing = datapath["missing_features"].as_array().unwrap();
    let absent = ALL.iter().filter(|f| datapath["features"][f.name] == false);
    assert!(absent.clone().map(|f| f.name).eq(missing.iter().map(|m| m["name"].as_str().unwrap())), "{missing:?}");
    for f in absent {
        let said = format!("{} without {}", "is used", f.what);
        let log = fs::read_to_string(node.paths().log()).unwrap();
        assert_eq!(log.matches(&said).count(), 1, "{}: once in\n{log}", f.name);
    }

    let tcx = datapath["features"]["tcx"] == true;
    let mut socket = Socket::open_in(node.place().unwrap().netns()).unwrap();
    for (program, device) in [("from_host", names::NET), ("from_overlay", names::VXLAN), ("from_netdev", "eth0")] {
        let index = link::by_name(&mut socket, device).unwrap().unwrap().index;
        let filters = tc::filters(&mut socket, tc::Place::Ingress(index)).unwrap();
        let pin = node.paths().bpf().join(format!("weft/link_{program}_{device}"));
        assert_eq!((filters.iter().any(tc::Filter::is_ours), pin.exists()), (!tcx, tcx), "{program} on {device}");
    }
    lab.down().unwrap();
}

#[test]
fn a_helper_that_no_kernel_has_and_one_without_its_arguments_are_told_apart() {
    // By `EINVAL` and `EACCES`: had our programs wrong arguments, no answer would tell what is missing.
    assert_eq!(Try::Helper(9999, &[]).answer(), Err(nix::libc::EINVAL));
    // bpf_loop, Linux 5.17.
    let there = symbols().contains("bpf_loop");
    let expected = if there { nix::libc::EACCES } else { nix::libc::EINVAL };
    assert_eq!(Try::Helper(181, &[]).answer(), Err(expected));
}

#[test]
fn trying_leaves_nothing_and_takes_little() {
    let bound = lab::bound(Duration::from_millis(30));
    let _quiet = Quiet::wait().unwrap();
    Lab::remove_leftovers().unwrap();
    // Modules that are not loaded yet come with the first.
    let first = Features::try_all(&[]);
    let before = Snapshot::take().unwrap();
    let took = (0..5).map(|_| {
        let began = Instant::now();
        assert_eq!(Features::try_all(&[]).by_name(), first.by_name());
        began.elapsed()
    });
    let took = took.min().unwrap();
    println!("trying {} features took {took:?}", ALL.len());
    assert!(took < bound, "{took:?}");
    // The kernel frees maps and programs a moment after their descriptors.
    let listed =
        |kind| String::from_utf8(Command::new("bpftool").args([kind, "list"]).output().unwrap().stdout).unwrap();
    let left = || ["map", "prog"].iter().any(|kind| listed(kind).contains("weft_probe"));
    until("no map or program of trying is left", || !left()).unwrap();
    let difference = before.difference(&Snapshot::take().unwrap());
    assert!(difference.is_empty(), "{difference}");

    let name = layout::pod_netns("features");
    let fd = netns::create(&name).unwrap();
    let mut socket = Socket::open_in(fd.as_fd()).unwrap();
    let tried = |socket: &mut Socket| {
        let features = netns::in_netns(fd.as_fd(), || Features::try_all(&[]).by_name()).unwrap();
        let qdiscs = tc::qdiscs(socket).unwrap().into_iter().map(|q| q.kind).collect::<Vec<_>>();
        (features, qdiscs.contains(&"clsact".to_owned()), link::list(socket).unwrap().len())
    };
    assert_eq!(tried(&mut socket), (first.by_name(), false, 1));
    // Somebody else's on the loopback device is in the way, and stays.
    socket.run(tc::add_clsact(link::LOOPBACK, None)).unwrap();
    assert_eq!(tried(&mut socket), (first.by_name(), true, 1));
    netns::delete(&name).unwrap();
}

#[test]
fn without_tcx_and_offload_of_the_tunnel_pods_reach_each_other_all_the_same() {
    let agent_args = vec!["--without".to_owned(), "tcx,encap-l2-eth".to_owned()];
    let config = LabConfig { hostile: Hostile::Nobody, agent_args, ..LabConfig::with_nodes(2) };
    let mut lab = Lab::up(config).expect("a lab of two nodes");
    let [one, two] = [("node-1", "one"), ("node-2", "two")]
        .map(|(node, name)| lab.pod_add(node, &PodSpec::named(name)).expect("a pod").pod.place().unwrap());
    for family in Family::BOTH {
        probe::udp(&one, &two, family).unwrap();
        probe::tcp(&two, &one, family).unwrap();
        probe::ping(&one, &lab.node("node-2").unwrap().place().unwrap(), family).unwrap();
    }
    let status = lab.node("node-1").unwrap().ask("/v1/status").unwrap();
    let programs = status["datapath"]["programs"].as_array().unwrap();
    assert!(programs.len() >= 4 && programs.iter().all(|p| p["how"] != "tcx"), "{programs:#?}");
    assert_eq!(status["datapath"]["features"]["encap-l2-eth"], false);
    lab.down().unwrap();
}

/// A program of ours on a kernel whose `n`th call (and those that follow, if `n` says so) is answered by an error.
fn on_a_kernel_that_refuses(calls: &str, errno: &str, n: &str, program: &[&str]) -> Output {
    let bin_dir = env::var("WEFT_BIN_DIR").expect("WEFT_BIN_DIR, as for every lab");
    let inject = format!("inject={calls}:error={errno}:when={n}");
    let mut strace = Command::new("strace");
    strace.args(["-f", "-qq", "-o", "/dev/null", "-e", &format!("trace={calls}"), "-e", &inject]);
    strace.arg(format!("{bin_dir}/{}", program[0])).args(&program[1..]).output().expect("strace")
}

/// What `weft doctor` finds there, without an agent, by name.
fn doctor(calls: &str, errno: &str, n: &str) -> BTreeMap<String, bool> {
    let output = on_a_kernel_that_refuses(calls, errno, n, &["weft", "doctor", "--json", "--socket", "/nobodys.sock"]);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {output:?}"));
    let findings = report["findings"].as_array().unwrap();
    let features: BTreeMap<String, bool> = serde_json::from_value(report["features"].clone()).unwrap();
    for f in ALL.iter().filter(|f| !features[f.name]) {
        let about = format!("without {} ({})", f.what, f.name);
        let row = findings.iter().find(|row| row["what"].as_str().unwrap().contains(&about));
        let row = row.unwrap_or_else(|| panic!("no row about {}: {report:#}", f.name));
        let id = if f.without.is_none() { "kernel" } else { "kernel-feature" };
        assert_eq!((&row["id"], &row["hinders"]), (&id.into(), &f.without.is_none().into()));
        assert!(row["cure"].as_str().unwrap().contains(f.since), "{row}");
    }
    features
}

/// An agent's last words; it must end with 1.
fn last_words(calls: &str, errno: &str, n: &str) -> String {
    let run_dir = env::temp_dir().join(format!("weft-features-{}", std::process::id()));
    let run = run_dir.to_str().unwrap();
    let agent = ["weft-agent", "--node-name", "n", "--cni-install", "no", "--run-dir", run, "--bpffs", "/nowhere"];
    let output = on_a_kernel_that_refuses(calls, errno, n, &agent);
    fs::remove_dir_all(&run_dir).unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    said.lines().last().unwrap().to_owned()
}

#[test]
fn every_feature_that_a_kernel_refuses_is_named_and_a_required_one_ends_the_agent_with_a_sentence() {
    // In an emulated machine some of them: it is the same program.
    let step = if env::var_os("WEFT_VM").is_some() { 9 } else { 1 };
    let whole = Features::try_all(&[]).by_name();
    let mut lost = BTreeSet::new();
    for (calls, errno) in [("bpf", "EINVAL"), ("sendto", "EOPNOTSUPP")] {
        for n in (1..).step_by(step) {
            let found = doctor(calls, errno, &n.to_string());
            let gone: Vec<_> = ALL.iter().filter(|f| whole[f.name] && !found[f.name]).collect();
            let [f] = &gone[..] else {
                // The kernel was tried for all before that call, or it was about something that this kernel lacks anyway.
                assert!(gone.is_empty(), "call {n} of {calls}: {gone:?}");
                // No attempt makes more than two.
                if n > 2 * ALL.len() || calls == "sendto" { break } else { continue }
            };
            if lost.insert(f.name) && f.without.is_none() {
                let said = last_words(calls, errno, &n.to_string());
                assert!(said.starts_with("weft-agent: Linux ") && said.contains(f.what), "{}: {said}", f.name);
                assert!(said.contains(&format!("CONFIG_{}", f.options[0])), "{}: {said}", f.name);
            }
        }
    }
    println!("{} of {} features refused one by one", lost.len(), ALL.len());
    let there = ALL.iter().filter(|f| whole[f.name]).map(|f| f.name).collect::<BTreeSet<_>>();
    assert!(step > 1 && lost.len() >= 3 || lost == there, "never refused: {:?}", there.difference(&lost));
}

#[test]
fn a_kernel_without_bpf_and_one_that_does_not_allow_it_have_each_their_sentence() {
    let without = last_words("bpf", "ENOSYS", "1+");
    assert!(without.contains("the system call bpf(2) (CONFIG_BPF_SYSCALL)") && !without.contains("more"), "{without}");
    let forbidden = last_words("bpf", "EPERM", "1+");
    assert!(forbidden.contains("does not let this process use the system call bpf(2) (EPERM)"), "{forbidden}");
    assert!(forbidden.contains("CAP_BPF"), "{forbidden}");
}
