//! Reads what Rust's test harness prints and counts.

/// How many tests passed, failed and were skipped, and which failed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counts {
    /// Tests that ran and passed.
    pub passed: usize,
    /// Tests that ran and failed, and test binaries that ended before their summary.
    pub failed: usize,
    /// Tests that are there and were not run (`#[ignore]`).
    pub skipped: usize,
    /// What failed, for the list under the table.
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
    /// Names on lines `test NAME ... FAILED`; what a test itself prints may break such a line.
    failed: Vec<String>,
    /// Names in the list at the end, which is there if the binary came that far; none: not in the list.
    listed: Option<Vec<String>>,
}

impl Open {
    /// The names of failed tests, as well as they are known.
    fn names(self, failed: usize) -> Vec<String> {
        let mut names = self.listed.filter(|l| l.len() >= self.failed.len()).unwrap_or(self.failed);
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
                let names = self.open.take().unwrap_or_default().names(failed);
                self.counts.passed += passed;
                self.counts.failed += failed;
                self.counts.skipped += ignored;
                self.counts.failures.extend(names);
            }
        } else if let Some(open) = &mut self.open {
            if let Some(name) = line.strip_prefix("test ").and_then(|r| r.strip_suffix(" ... FAILED")) {
                open.failed.push(name.to_owned());
            } else if line == "failures:" {
                // Stands twice: above what the failed tests printed, and above their names.
                open.listed = Some(Vec::new());
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

/// Instructions that the verifier walked for a program: the packet tests print `verified: PROGRAM N` and maybe more words;
/// N is no number where the kernel does not report it.
pub fn verified(line: &str) -> Option<(String, u64)> {
    let mut words = line.trim().strip_prefix("verified: ")?.split_whitespace();
    Some((words.next()?.to_owned(), words.next()?.parse().ok()?))
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
    fn a_failed_test_is_named_even_if_its_line_was_broken() {
        let counts = read(
            "running 1 test\ntest a ... Error: no such device\nFAILED\n\nfailures:\n\n---- a stdout ----\n    indented\n\n\
             failures:\n    a\n\ntest result: FAILED. 0 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out",
        );
        assert_eq!(counts.failures, ["a"]);
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
        assert_eq!(verified("verified: from_pod 8061"), Some(("from_pod".to_owned(), 8061)));
        assert_eq!(verified("verified: from_pod 8061 xlated 900"), Some(("from_pod".to_owned(), 8061)));
        assert_eq!(verified("verified: from_pod not-reported"), None);
        assert_eq!(verified("test verified ... ok"), None);
    }
}
