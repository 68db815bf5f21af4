//! Reads what Rust's test harness prints and counts.

use std::collections::BTreeMap;

/// So many lines of what a failed test said stand with its name: enough for a panic's message and its place, and few
/// enough that a log of which somebody keeps only the end still has them.
const SAID: usize = 12;

/// How many tests passed, failed and were skipped, and which failed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counts {
    /// Tests that ran and passed.
    pub passed: usize,
    /// Tests that ran and failed, and test binaries that ended before their summary.
    pub failed: usize,
    /// Tests that are there and were not run (`#[ignore]`), or have said `skipped: WHY`.
    pub skipped: usize,
    /// What failed, for the list under the table: a name or a sentence, and on further lines its panic or the last that it said.
    pub failures: Vec<String>,
}

impl Counts {
    /// Adds another suite's counts.
    pub fn add(&mut self, other: &Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
        self.failures.extend_from_slice(&other.failures);
    }

    /// Notes a failure that is no test's.
    pub fn fail(&mut self, what: impl Into<String>) {
        self.failed += 1;
        self.failures.push(what.into());
    }

    /// Whether nothing at all was run.
    pub fn is_empty(&self) -> bool {
        self.passed + self.failed == 0
    }
}

/// A test binary between its first line and its summary.
#[derive(Default)]
struct Open {
    /// Tests that have said that there is nothing to test; the harness counts them among those that passed.
    skipped: usize,
    /// Names on lines `test NAME ... FAILED`; what a test itself prints may break such a line.
    failed: Vec<String>,
    /// Names in the list at the end, which is there if the binary came that far; none: not in the list.
    listed: Option<Vec<String>>,
    /// The test whose output is being shown.
    speaker: Option<String>,
    /// What each test said, as far as the binary showed it.
    said: BTreeMap<String, Vec<String>>,
}

impl Open {
    /// The names of failed tests, as well as they are known.
    fn names(self, failed: usize) -> Vec<String> {
        let mut names = self.listed.filter(|l| l.len() >= self.failed.len()).unwrap_or(self.failed);
        for name in &mut names {
            let said = self.said.get(name.as_str()).map(Vec::as_slice).unwrap_or_default();
            // After its panic a test may still show the agents' logs.
            let panic = said.iter().position(|line| line.contains(" panicked at "));
            for line in said.iter().skip(panic.unwrap_or(said.len().saturating_sub(SAID))).take(SAID) {
                name.push_str("\n    ");
                name.push_str(line);
            }
        }
        if names.len() < failed {
            names.push(format!("{} more, whose names were lost", failed - names.len()));
        }
        names
    }
}

/// Follows the output of one test binary or of several after one another.
///
/// The summary line of a binary counts. A binary that ends without one has crashed, and counts as one failure more.
#[derive(Default)]
pub struct Reader {
    counts: Counts,
    open: Option<Open>,
}

impl Reader {
    /// Takes one line of output.
    pub fn line(&mut self, line: &str) {
        let line = line.trim_end();
        if is_start(line) {
            self.close();
            self.open = Some(Open::default());
        } else if let Some(rest) = line.strip_prefix("test result: ") {
            if let Some((passed, failed, ignored)) = summary(rest) {
                let open = self.open.take().unwrap_or_default();
                self.counts.passed += passed.saturating_sub(open.skipped);
                self.counts.failed += failed;
                self.counts.skipped += ignored + open.skipped.min(passed);
                let names = open.names(failed);
                self.counts.failures.extend(names);
            }
        } else if let Some(open) = &mut self.open {
            if line.starts_with("skipped: ") && open.speaker.is_none() {
                open.skipped += 1;
            } else if let Some(name) = line.strip_prefix("test ").and_then(|r| r.strip_suffix(" ... FAILED")) {
                open.failed.push(name.to_owned());
            } else if let Some(name) = line.strip_prefix("---- ").and_then(|r| r.strip_suffix(" stdout ----")) {
                open.speaker = Some(name.to_owned());
            } else if line == "failures:" {
                // Stands twice: above what the failed tests printed, and above their names.
                open.listed = Some(Vec::new());
                open.speaker = None;
            } else if let Some(speaker) = &open.speaker {
                if !line.is_empty() {
                    open.said.entry(speaker.clone()).or_default().push(line.to_owned());
                }
            } else if let (Some(listed), Some(name)) = (&mut open.listed, line.strip_prefix("    ")) {
                listed.push(name.to_owned());
            }
        }
    }

    /// The counts once the output has ended.
    pub fn finish(mut self) -> Counts {
        self.close();
        self.counts
    }

    fn close(&mut self) {
        if let Some(open) = self.open.take() {
            self.counts.failed += open.failed.len();
            self.counts.failures.extend(open.failed);
            self.counts.fail("a test binary ended before its summary (crash or time limit)");
        }
    }
}

/// `running 3 tests`
fn is_start(line: &str) -> bool {
    let Some(rest) = line.strip_prefix("running ") else { return false };
    let Some((count, word)) = rest.split_once(' ') else { return false };
    count.parse::<usize>().is_ok() && (word == "tests" || word == "test")
}

/// `ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s`
fn summary(rest: &str) -> Option<(usize, usize, usize)> {
    let (_, figures) = rest.split_once(". ")?;
    let figure = |word: &str| {
        figures.split(';').find_map(|part| part.trim().strip_suffix(word)).and_then(|n| n.trim().parse::<usize>().ok())
    };
    Some((figure("passed")?, figure("failed")?, figure("ignored")?))
}

/// What the packet tests say of a program that the kernel has loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified {
    /// The program.
    pub program: String,
    /// Instructions that the verifier walked.
    pub insns: u64,
    /// Bytes of BPF instructions, as rewritten by the verifier.
    pub xlated: u64,
    /// Bytes of machine code.
    pub jited: u64,
    /// Bytes of stack of each function along the deepest chain of calls: `232+8+136`.
    pub stack: String,
    /// How long the load took, in microseconds.
    pub load_us: u64,
}

/// Reads a line `verified: PROGRAM insns=N xlated=BYTES jited=BYTES stack=BYTES+BYTES load_us=N`.
pub fn verified(line: &str) -> Option<Verified> {
    let mut words = line.trim().strip_prefix("verified: ")?.split_whitespace();
    let program = words.next()?.to_owned();
    let pairs: Vec<(&str, &str)> = words.filter_map(|w| w.split_once('=')).collect();
    let text = |key: &str| pairs.iter().find(|(k, _)| *k == key).map(|(_, value)| *value);
    let number = |key: &str| text(key)?.parse().ok();
    Some(Verified {
        program,
        insns: number("insns")?,
        xlated: number("xlated")?,
        jited: number("jited")?,
        stack: text("stack")?.to_owned(),
        load_us: number("load_us")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Counts {
        let mut reader = Reader::default();
        text.lines().for_each(|l| reader.line(l));
        reader.finish()
    }

    #[test]
    fn adds_up_the_summaries_of_several_binaries() {
        let counts = read(
            "running 2 tests\ntest a ... ok\ntest b ... ok\n\n\
             test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured; 3 filtered out; finished in 0.00s\n\n\
             running 3 tests\ntest c ... ignored, needs luck\ntest d ... FAILED\ntest e ... ok\n\nfailures:\n    d\n\n\
             test result: FAILED. 1 passed; 1 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.10s\n",
        );
        assert_eq!(counts, Counts { passed: 3, failed: 1, skipped: 1, failures: vec!["d".to_owned()] });
    }

    #[test]
    fn a_test_that_finds_nothing_to_test_is_skipped_and_has_not_passed() {
        let counts = read(
            "running 3 tests\ntest a ... \nskipped: no SCTP\nok\ntest b ... ok\ntest c ... FAILED\n\nfailures:\n\n---- c stdout ----\n\
             skipped: a beat\n\nfailures:\n    c\n\n\
             test result: FAILED. 2 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s\n",
        );
        assert_eq!((counts.passed, counts.failed, counts.skipped), (1, 1, 1));
    }

    #[test]
    fn a_failed_test_is_named_even_if_its_line_was_broken() {
        let counts = read(
            "running 1 test\ntest a ... Error: no such device\nFAILED\n\nfailures:\n\n---- a stdout ----\n    indented\n\n\
             failures:\n    a\n\ntest result: FAILED. 0 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out",
        );
        assert_eq!(counts.failures, ["a\n        indented"]);
    }

    #[test]
    fn a_failed_test_is_named_with_the_last_that_it_said() {
        let said: String = (0..20).map(|n| format!("line {n}\n")).collect();
        let counts = read(&format!(
            "running 2 tests\ntest a ... ok\ntest b ... FAILED\n\nsuccesses:\n\n---- a stdout ----\nfine\n\n\nsuccesses:\n    a\n\n\
             failures:\n\n---- b stdout ----\n{said}\n\nfailures:\n    b\n\ntest result: FAILED. 1 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out",
        ));
        let [failure] = &counts.failures[..] else { panic!("{counts:?}") };
        assert!(failure.starts_with("b\n    line 8\n") && failure.ends_with("\n    line 19"), "{failure}");
    }

    #[test]
    fn a_failed_test_is_named_with_its_panic_whatever_it_says_after_that() {
        let said: String = (0..20).map(|n| format!("line {n}\n")).collect();
        let counts = read(&format!(
            "running 1 test\ntest a ... FAILED\n\nfailures:\n\n---- a stdout ----\n{said}\nthread 'a' (7) panicked at a.rs:1:2:\nwhy\n{said}\n\n\
             failures:\n    a\n\ntest result: FAILED. 0 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out",
        ));
        let [failure] = &counts.failures[..] else { panic!("{counts:?}") };
        assert!(failure.starts_with("a\n    thread 'a' (7) panicked at a.rs:1:2:\n    why\n    line 0\n"), "{failure}");
    }

    #[test]
    fn a_binary_without_a_summary_has_crashed() {
        let counts = read(
            "running 2 tests\ntest a ... ok\nrunning 1 test\ntest b ... ok\ntest result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out",
        );
        assert_eq!((counts.passed, counts.failed), (1, 1));
    }

    #[test]
    fn a_binary_with_no_test_counts_nothing() {
        let counts = read(
            "running 0 tests\n\ntest result: ok. 0 passed; 0 failed; 0 ignored; 0 measured; 9 filtered out; finished in 0.00s",
        );
        assert!(counts.is_empty());
    }

    #[test]
    fn what_tests_print_is_not_taken_for_the_harness() {
        let counts = read(
            "running late today\ntest result: of my homework\nrunning 1 test\ntest a ... ok\ntest result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out",
        );
        assert_eq!((counts.passed, counts.failed), (1, 0));
    }

    #[test]
    fn reads_the_verifiers_figures() {
        let line = "verified: from_pod insns=8061 xlated=900 jited=500 stack=96+16+0 load_us=24505";
        let figures = verified(line).unwrap();
        assert_eq!((figures.program.as_str(), figures.stack.as_str()), ("from_pod", "96+16+0"));
        assert_eq!((figures.insns, figures.xlated, figures.jited, figures.load_us), (8061, 900, 500, 24505));
        assert_eq!(verified(&line.replace("insns=8061", "insns=none")), None);
        assert_eq!(verified("test verified ... ok"), None);
    }
}
