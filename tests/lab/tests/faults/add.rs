//! CNI ADD.
use super::*;

/// Lets the first, the second … call of the kind fail in an ADD, until an ADD makes no more of them. Gives how many ADDs failed.
fn every_call_fails_once(rig: &Rig, fault: &Fault) -> u32 {
    let mut failed = 0;
    for n in 1..ENOUGH {
        let when = format!("{} number {n} answered {}", fault.calls, fault.errno);
        let strace = Strace::attach(rig.node(), fault, n);
        let added = rig.call("ADD");
        let refused = strace.detach();
        match &added {
            Ok(result) => rig.exchange(result),
            Err(e) => {
                failed += 1;
                let words = format!("{e:#}");
                assert!(refused > 0, "{when}: ADD failed of itself: {words}");
                assert!(words.contains("\"details\""), "{when}: no cure in {words}");
                // What failed is the answer alone: the pod is connected, and the same call again says so.
                if !words.contains("before it answered") {
                    rig.assert_bare(&when);
                }
                rig.exchange(&rig.call("ADD").unwrap_or_else(|e| panic!("{when}: ADD fails afterwards too: {e:#}")));
            }
        }
        rig.call("DEL").unwrap_or_else(|e| panic!("{when}: DEL: {e:#}"));
        rig.assert_bare(&format!("DEL after {when}"));
        if refused == 0 {
            assert!(n > 1, "{}: ADD makes no such call, so nothing was tried", fault.calls);
            return failed;
        }
    }
    panic!("{}: more than {ENOUGH} calls in one ADD", fault.calls);
}

fn faults(calls: &'static str, errno: &'static str, threads: Threads) {
    let rig = Rig::new();
    let failed = every_call_fails_once(&rig, &Fault { calls, errno, threads });
    println!("{calls}: {failed} ADDs failed and were undone");
    assert!(failed > 0, "no ADD failed: the faults did not reach it");
    rig.lab.down().unwrap();
}

#[test]
fn a_netlink_request_that_cannot_be_sent_undoes_add() {
    faults("sendto", "ENOBUFS", Threads::All);
}

#[test]
fn a_netlink_answer_that_is_lost_undoes_add() {
    faults("recvfrom", "ENOBUFS", Threads::Workers);
}

#[test]
fn a_socket_that_cannot_be_opened_undoes_add() {
    faults("socket", "EMFILE", Threads::All);
}

#[test]
fn a_namespace_that_cannot_be_entered_undoes_add() {
    faults("setns", "EPERM", Threads::All);
}

#[test]
fn a_thread_that_cannot_be_started_undoes_add() {
    faults("clone3", "EAGAIN", Threads::Workers);
}

#[test]
fn a_map_that_refuses_an_entry_undoes_add() {
    faults("bpf", "ENOSPC", Threads::Reconciler);
}

#[test]
fn a_file_that_cannot_be_opened_undoes_add() {
    faults("openat", "EMFILE", Threads::Workers);
}

#[test]
fn a_full_disk_undoes_add() {
    faults("write", "ENOSPC", Threads::Workers);
}

#[test]
fn a_record_that_cannot_be_finished_undoes_add() {
    faults("pwrite64", "EIO", Threads::Workers);
}

#[test]
fn a_record_that_cannot_be_put_in_place_undoes_add() {
    faults("rename", "EIO", Threads::Workers);
}
