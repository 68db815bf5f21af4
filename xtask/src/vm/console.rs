//! A machine's serial console: what its init and the tests say on it, as figures.

use std::time::{Duration, Instant};

use super::{guest, suites::Step};
use crate::{
    libtest::{self, Counts, Reader, Verified},
    ui,
};

/// How a test binary's run in a machine went.
pub struct Run {
    /// The suite that it is of.
    pub suite: String,
    /// `package/name`.
    pub name: String,
    /// Its tests.
    pub counts: Counts,
    /// From its start to its end.
    pub time: Duration,
}

/// Follows the console.
pub struct Console {
    steps: Vec<Step>,
    open: Option<(usize, Reader, Instant)>,
    /// The runs that came to their end.
    pub runs: Vec<Run>,
    /// Programs and what the verifier said of them.
    pub verified: Vec<Verified>,
}

impl Console {
    /// Expects these steps, in order.
    pub fn new(steps: &[Step]) -> Self {
        Self { steps: steps.to_vec(), open: None, runs: Vec::new(), verified: Vec::new() }
    }

    /// Takes a line: the marks of guest's init open and close a step, everything between belongs to it. A step that
    /// ended is reported.
    pub fn line(&mut self, line: &str) -> Option<String> {
        // A test that was killed left its line unfinished, so a mark may stand at the end of one.
        if let Some((_, rest)) = line.split_once(guest::MARK) {
            let mut words = rest.split_whitespace();
            match (words.next(), words.next().and_then(|n| n.parse::<usize>().ok()), words.next()) {
                (Some("begin"), Some(n), _) => self.open = Some((n, Reader::default(), Instant::now())),
                (Some("end"), Some(n), Some(code)) => return self.close(n, code),
                _ => {}
            }
        } else if let Some((_, reader, _)) = &mut self.open {
            reader.line(line);
            if let Some(figure) = libtest::verified(line)
                && !self.verified.contains(&figure)
            {
                self.verified.push(figure);
            }
        }
        None
    }

    fn close(&mut self, n: usize, code: &str) -> Option<String> {
        let (open, reader, started) = self.open.take()?;
        let step = self.steps.get(n)?;
        let name = step.name();
        let mut counts = reader.finish();
        if open != n || (code != "0" && counts.failed == 0) {
            counts.fail(format!("{name}: ended with code {code}"));
        }
        if counts.is_empty() {
            counts.fail(format!("{name}: ran no test"));
        }
        let time = started.elapsed();
        let went = match counts.failed {
            0 => format!("{} passed", counts.passed),
            failed => format!("{failed} FAILED"),
        };
        let done = self.runs.len() + 1;
        let progress = format!("{done} of {}: {name}: {went}, {}", self.steps.len(), ui::seconds(time));
        self.runs.push(Run { suite: step.suite.clone(), name, counts, time });
        Some(progress)
    }

    /// The first step that did not come to its end.
    pub fn unfinished(&self) -> Option<String> {
        let missing = self.steps.get(self.runs.len())?;
        Some(format!("the guest ended before {} did", missing.name()))
    }
}

/// A line without terminal control: the machine's firmware clears the screen, which here is somebody's terminal.
pub fn plain(line: &str) -> String {
    let mut out = String::new();
    let mut chars = line.chars().peekable();
    while let Some(c) = chars.next() {
        if c == '\x1b' {
            // Either one more character, or after a bracket everything up to a letter.
            if chars.next() == Some('[') {
                while chars.next().is_some_and(|c| !c.is_ascii_alphabetic()) {}
            }
        } else if c == '\t' || !c.is_control() {
            out.push(c);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn console(lines: &str) -> Console {
        let mut console = Console::new(&[Step::for_tests("packets", "pins"), Step::for_tests("lab", "two_pods")]);
        for line in lines.lines() {
            console.line(line);
        }
        console
    }

    const PINS: &str = "weft-vm: begin 0\nrunning 1 test\nverified: from_pod insns=100 xlated=9 jited=9 stack=0 load_us=1\ntest a ... ok\n\
        test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out\nweft-vm: end 0 0\n";

    #[test]
    fn counts_the_guests_steps() {
        let console = console(&format!("{PINS}{}", PINS.replace(" 0\n", " 1\n").replace("end 0 1", "end 1 0")));
        assert_eq!(console.runs.iter().map(|r| r.counts.passed).collect::<Vec<_>>(), [1, 1]);
        assert_eq!(console.unfinished(), None);
        assert_eq!(console.verified.iter().map(|v| v.insns).collect::<Vec<_>>(), [100]);
    }

    #[test]
    fn a_step_that_never_ended_is_named() {
        let console = console(&format!("{PINS}weft-vm: begin 1\nrunning 1 test\n"));
        assert!(console.unfinished().unwrap().contains("lab/two_pods"));
    }

    #[test]
    fn a_bad_exit_code_fails_even_if_no_test_did() {
        let console = console(&PINS.replace("end 0 0", "end 0 137"));
        assert_eq!(console.runs[0].counts.failed, 1);
    }

    #[test]
    fn the_end_of_a_killed_test_is_seen_behind_its_unfinished_line() {
        let console = console("weft-vm: begin 0\nrunning 1 test\ntest a ... weft-vm: end 0 143\n");
        assert_eq!(console.runs[0].counts.failed, 1);
    }

    #[test]
    fn terminal_control_is_left_out() {
        assert_eq!(plain("\x1bc\x1b[?7l\x1b[2J\x1b[0mSeaBIOS\r"), "SeaBIOS");
    }

    #[test]
    fn a_step_without_a_test_fails() {
        let console = console("weft-vm: begin 0\nweft-vm: end 0 0\n");
        assert_eq!(console.runs[0].counts.failed, 1);
    }
}
