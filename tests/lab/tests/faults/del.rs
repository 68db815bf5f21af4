//! CNI DEL.
use super::*;

/// Lets the first, the second … call of the kind fail in a DEL, until a DEL makes no more of them: after it, or after the same call
/// again, nothing is left.
fn faults(calls: &'static str, errno: &'static str, threads: Threads) {
    let rig = Rig::new();
    let fault = Fault { calls, errno, threads };
    let mut failed = 0;
    for n in 1..ENOUGH {
        let when = format!("{calls} number {n} answered {errno}");
        rig.call("ADD").unwrap_or_else(|e| panic!("ADD before {when}: {e:#}"));
        let strace = Strace::attach(rig.node(), &fault, n);
        let deleted = rig.call("DEL");
        let refused = strace.detach();
        if let Err(e) = deleted {
            failed += 1;
            let words = format!("{e:#}");
            assert!(refused > 0, "{when}: DEL failed of itself: {words}");
            assert!(words.contains("\"details\""), "{when}: no cure in {words}");
            rig.call("DEL").unwrap_or_else(|e| panic!("{when}: DEL fails afterwards too: {e:#}"));
        }
        rig.assert_bare(&when);
        if refused == 0 {
            assert!(n > 1, "{calls}: DEL makes no such call, so nothing was tried");
            println!("{calls}: {failed} of {} DELs failed and went through when they were repeated", n - 1);
            return rig.lab.down().unwrap();
        }
    }
    panic!("{calls}: more than {ENOUGH} calls in one DEL");
}

#[test]
fn a_netlink_request_that_cannot_be_sent_leaves_nothing_of_del() {
    faults("sendto", "ENOBUFS", Threads::All);
}

#[test]
fn a_map_that_keeps_an_entry_leaves_nothing_of_del() {
    faults("bpf", "ENOMEM", Threads::Reconciler);
}

#[test]
fn a_record_that_cannot_be_removed_leaves_nothing_of_del() {
    faults("unlink", "EIO", Threads::Workers);
}
