//! The agent's start.
use super::*;

/// More calls of one kind than any start makes.
const MOST: usize = 100_000;

/// So many calls of a kind there are between two that are tried, unless `WEFT_EVERY_FAULT` is set. Behind the first hundred they are fewer
/// and fewer: most of them read the entries of a map one by one.
fn stride(ordinary: usize) -> usize {
    if std::env::var_os("WEFT_EVERY_FAULT").is_some() { 1 } else { ordinary }
}

/// Lets the first, and every so manyth call of the kind fail while the agent starts on a node with a pod. It starts all the same, or ends
/// with a sentence; the pod's packets flow, and the next start finds what it needs.
fn faults(calls: &'static str, errno: &'static str, ordinary: usize) {
    let mut rig = Rig::new();
    let pod = rig.call("ADD").unwrap();
    let before = rig.traces();
    let (mut tried, mut ended, mut n) = (0, 0, 1);
    while n < MOST {
        let when = format!("{calls} number {n} answered {errno} at the start");
        let log = rig.node().paths().run().join("strace-start.log");
        rig.lab.stop_agent("node-1", Ending::Killed).unwrap();
        let words = ["strace", "-D", "-f", "--seccomp-bpf", "-qq", "-o"].map(str::to_owned).into_iter();
        let what = [format!("trace={calls}"), format!("inject={calls}:error={errno}:when={n}")];
        let under: Vec<String> = words
            .chain([log.display().to_string()])
            .chain(what.into_iter().flat_map(|w| ["-e".to_owned(), w]))
            .collect();
        let started = rig.lab.start_agent_under("node-1", &under);
        let said = rig.node().log_tail();
        assert!(!said.contains("panicked"), "{when}: {said}");
        rig.exchange(&pod);
        rig.lab.stop_agent("node-1", Ending::Killed).unwrap();
        let refused = fs::read_to_string(&log).unwrap().contains("(INJECTED)");
        if let Err(e) = started {
            ended += 1;
            let words = format!("{e:#}");
            assert!(refused, "{when}: it failed of itself: {words}");
            assert!(words.contains("ended before it was ready"), "{when}: it neither served nor ended: {words}");
        }
        rig.lab.start_agent("node-1").unwrap_or_else(|e| panic!("after {when}: {e:#}"));
        rig.exchange(&pod);
        let clean = until("the node is as before", || rig.traces() == before);
        assert!(clean.is_ok(), "after {when}: {:?} was {before:?}", rig.traces());
        if !refused {
            assert!(tried > 0, "{calls}: a start makes no such call, so nothing was tried");
            println!("{calls}: {ended} of {tried} starts ended, and all left the pod connected");
            rig.call("DEL").unwrap();
            return rig.lab.down().unwrap();
        }
        tried += 1;
        n += stride(ordinary).max(n / 8);
    }
    panic!("{calls}: more than {MOST} calls in one start");
}

#[test]
#[ignore = "strace now and then does not let the agent begin on a busy machine; docs/testing.md has the command"]
fn a_bpf_call_that_is_refused_harms_no_pod() {
    faults("bpf", "ENOMEM", 19);
}

#[test]
#[ignore = "strace now and then does not let the agent begin on a busy machine; docs/testing.md has the command"]
fn a_netlink_request_that_cannot_be_sent_harms_no_pod() {
    faults("sendto", "ENOBUFS", 4);
}

#[test]
#[ignore = "strace now and then does not let the agent begin on a busy machine; docs/testing.md has the command"]
fn a_file_that_cannot_be_opened_harms_no_pod() {
    faults("openat", "EMFILE", 5);
}

#[test]
#[ignore = "strace now and then does not let the agent begin on a busy machine; docs/testing.md has the command"]
fn a_socket_that_cannot_be_opened_harms_no_pod() {
    faults("socket", "EMFILE", 2);
}

#[test]
#[ignore = "strace now and then does not let the agent begin on a busy machine; docs/testing.md has the command"]
fn a_file_that_cannot_be_put_in_place_harms_no_pod() {
    faults("rename", "ENOSPC", 1);
}
