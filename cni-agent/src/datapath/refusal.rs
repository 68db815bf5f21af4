//! A load that the kernel refused: what of it is told, and to whom it may happen again. Pure.
use std::{error::Error, io, time::Duration};

use serde::{Deserialize, Serialize};

/// As many lines of the verifier's log are kept, from its end: there it says what it refuses, and the way that led to it.
const LINES: usize = 20;
/// As many bytes of them, newlines included.
const BYTES: usize = 4096;

/// Pauses before a load is tried again that may only have come at a bad time.
const PAUSES: [Duration; 4] =
    [Duration::from_millis(100), Duration::from_millis(300), Duration::from_millis(900), Duration::from_millis(1500)];

/// What the kernel refused, and how it said so.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// The program, or `maps`.
    pub what: String,
    /// The kernel's answer, one line.
    pub error: String,
    /// The verifier's last lines, the oldest first; none if it was not the verifier.
    pub log: Vec<String>,
}

/// A refused load, and what is served with instead: for `weft status`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefusedLoad {
    /// What was refused.
    #[serde(flatten)]
    pub refusal: Refusal,
    /// When: seconds since 1970.
    pub at: u64,
    /// When the programs that run were loaded: seconds since 1970. `None`: the kernel does not say.
    pub running_since: Option<u64>,
}

impl Refusal {
    /// Of a program. `log` is what the verifier says in short, `detail` what it says at length, if it could be asked once more.
    pub fn of_program(name: &str, error: &io::Error, log: &str, detail: Option<&str>) -> Self {
        let short = last_lines(log);
        let long = detail.map(last_lines).unwrap_or_default();
        // A buffer may have been too small for it: then it ends somewhere else, or the kernel said nothing but that.
        let log = if long.last().is_some() && (short.is_empty() || long.last() == short.last()) { long } else { short };
        let error = match log.last() {
            Some(last) => format!("{error}: {last}"),
            None => error.to_string(),
        };
        Self { what: name.to_owned(), error, log }
    }

    /// Of something else.
    pub fn plain(what: &str, error: &dyn Error) -> Self {
        Self { what: what.to_owned(), error: crate::error_chain(error), log: Vec::new() }
    }
}

/// The last lines of a verifier's log, without its figures, as many and as long as are shown.
fn last_lines(log: &str) -> Vec<String> {
    const FIGURES: [&str; 3] = ["processed ", "verification time ", "stack depth "];
    // Linux 7.3 counts each function apart.
    let of_function = |line: &str| line.starts_with("subprog ") && line.contains(" insns_self ");
    let told = |line: &&str| !line.is_empty() && !of_function(line) && !FIGURES.iter().any(|f| line.starts_with(f));
    let mut left = BYTES;
    let mut lines = Vec::new();
    for line in log.lines().map(str::trim_end).rev().filter(told).take(LINES) {
        if line.len() >= left {
            // One that is too long by itself is cut; of others the newer ones are enough.
            if lines.is_empty() {
                lines.push(line.chars().take(BYTES / 4 - 1).collect());
            }
            break;
        }
        left -= line.len() + 1;
        lines.push(line.to_owned());
    }
    lines.reverse();
    lines
}

/// Whether the same load may succeed a moment later: the kernel had no memory, or a signal came. What the verifier refuses it refuses
/// each time.
pub fn may_pass(error: &(dyn Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(e) = next {
        let code = e.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error);
        if matches!(code, Some(libc::ENOMEM | libc::EAGAIN | libc::EINTR)) {
            return true;
        }
        next = e.source();
    }
    false
}

/// Tries again after a pause, a few times, as long as `passing` says so of the error.
pub fn patiently<T, E>(
    mut attempt: impl FnMut() -> Result<T, E>,
    passing: impl Fn(&E) -> bool,
    mut pause: impl FnMut(&E, Duration),
) -> Result<T, E> {
    for wait in PAUSES {
        match attempt() {
            Err(e) if passing(&e) => pause(&e, wait),
            done => return done,
        }
    }
    attempt()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: &str =
        "invalid read from stack R10 off=8 size=8\nprocessed 1 insns (limit 1000000) max_states_per_insn 0\n";
    const LONG: &str = "func#0 @0\n0: R1=ctx() R10=fp0\n0: (79) r0 = *(u64 *)(r10 +8)\n\
                        invalid read from stack R10 off=8 size=8\nverification time 30 usec\nstack depth 0+0\n\
                        subprog 0 (from_pod) main insns_self 1 insns_total 1 stack 0\n\
                        processed 1 insns (limit 1000000) max_states_per_insn 0 total_states 0\n\n";

    fn denied() -> io::Error {
        io::Error::from_raw_os_error(libc::EACCES)
    }

    #[test]
    fn the_last_lines_are_told_without_the_verifiers_figures() {
        let long = Refusal::of_program("from_pod", &denied(), SHORT, Some(LONG));
        let told = ["func#0 @0", "0: R1=ctx() R10=fp0", "0: (79) r0 = *(u64 *)(r10 +8)"];
        assert_eq!(long.log[..3], told);
        assert_eq!(long.log[3], "invalid read from stack R10 off=8 size=8");
        assert_eq!((long.log.len(), long.what.as_str()), (4, "from_pod"));
        assert_eq!(long.error, "Permission denied (os error 13): invalid read from stack R10 off=8 size=8");
    }

    #[test]
    fn a_long_log_that_ends_elsewhere_is_not_taken_for_the_reason() {
        for detail in [None, Some(""), Some("0: (79) r0 = *(u64 *)(r10 +8)\n1: (b7) r1 = ")] {
            let short = Refusal::of_program("from_pod", &denied(), SHORT, detail);
            assert_eq!(short.log, ["invalid read from stack R10 off=8 size=8"], "{detail:?}");
        }
        let silent = Refusal::of_program("from_pod", &denied(), "", None);
        assert_eq!((silent.error.as_str(), silent.log.len()), ("Permission denied (os error 13)", 0));
    }

    #[test]
    fn what_is_told_is_bounded() {
        let many: String = (0..100).map(|n| format!("{n}: (bf) r1 = r2\n")).collect();
        let lines = last_lines(&many);
        assert_eq!((lines.len(), lines[0].as_str(), lines[19].as_str()), (20, "80: (bf) r1 = r2", "99: (bf) r1 = r2"));
        let wide: String = (0..30).map(|n| format!("{n} {}\n", "x".repeat(500))).collect();
        let lines = last_lines(&wide);
        assert!(lines.len() == 8 && lines.iter().map(|l| l.len() + 1).sum::<usize>() <= BYTES, "{}", lines.len());
        assert!(lines[7].starts_with("29 "));
        let endless = format!("first\n{}", "ß".repeat(BYTES));
        assert!(matches!(last_lines(&endless).as_slice(), [one] if (1..BYTES).contains(&one.len())));
    }

    #[test]
    fn a_refusal_is_final_and_a_lack_of_memory_may_pass() {
        #[derive(Debug, thiserror::Error)]
        #[error("load")]
        struct Within(#[source] io::Error);
        let of = |code| Within(io::Error::from_raw_os_error(code));
        assert!([libc::ENOMEM, libc::EAGAIN].into_iter().all(|code| may_pass(&of(code))));
        assert!(![libc::EACCES, libc::EINVAL, libc::E2BIG, libc::EPERM].into_iter().any(|code| may_pass(&of(code))));

        let tries = |fails: usize, passing: bool| {
            let (mut n, mut waited) = (0, Duration::ZERO);
            let attempt = || {
                n += 1;
                if n > fails { Ok(n) } else { Err("no memory") }
            };
            let done = patiently(attempt, |_| passing, |_, wait| waited += wait);
            (done, n, waited)
        };
        assert_eq!(tries(0, true), (Ok(1), 1, Duration::ZERO));
        assert_eq!(tries(2, true), (Ok(3), 3, PAUSES[0] + PAUSES[1]));
        assert_eq!(tries(9, true), (Err("no memory"), 5, PAUSES.iter().sum()));
        assert_eq!(tries(9, false), (Err("no memory"), 1, Duration::ZERO));
    }
}
