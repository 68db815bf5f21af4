//! House rules on sources that no compiler lint knows.

use super::lexer::{code_only, has_word};

/// A breach of a rule.
#[derive(Debug, PartialEq, Eq)]
pub struct Finding {
    /// Line, counted from 1.
    pub line: usize,
    /// What is wrong, and the cure.
    pub text: String,
}

/// Directories that are somebody's machine and not part of the project. In pieces, so as not to find themselves.
const MACHINE_PATHS: [&str; 3] = [concat!("/wo", "rk/"), concat!("/ro", "ot/"), concat!("/ho", "me/")];

/// Files that may hold unsafe code (field guide, rule 11); the last ones by what they define.
const UNSAFE_PLACES: [&str; 4] = [
    "cni-ebpf/src/kernel/",
    "cni-ebpf/src/main.rs",
    "cni-agent/src/datapath/syscall/",
    "cni-agent/src/netlink/netns.rs",
];
/// Definitions of cni-common whose file may hold unsafe code.
const UNSAFE_DEFINITIONS: [&str; 2] = ["pub struct Shared<", "macro_rules! user_pod"];

/// How far above an unsafe block its SAFETY comment may begin, in lines.
const SAFETY_REACH: usize = 12;

/// Checks one file; `path` is relative to the workspace's root.
pub fn check(path: &str, text: &str) -> Vec<Finding> {
    let mut findings = Vec::new();
    machine_paths(text, &mut findings);
    if path.ends_with(".rs") {
        let code = code_only(text);
        unsafe_code(path, text, &code, &mut findings);
        sleep_in_tests(path, &code, &mut findings);
        cold(path, &code, &mut findings);
    }
    findings.sort_by_key(|f| f.line);
    findings
}

fn machine_paths(text: &str, findings: &mut Vec<Finding>) {
    for (n, line) in text.lines().enumerate() {
        for needle in MACHINE_PATHS {
            let found = line.match_indices(needle).any(|(at, _)| {
                // Inside a longer path it names something else, as in `docs/work/`.
                !line[..at].chars().next_back().is_some_and(|c| c.is_alphanumeric() || "_-.}/$".contains(c))
            });
            if found {
                findings.push(Finding {
                    line: n + 1,
                    text: format!(
                        "a path of one machine ({needle}); make it relative, or take it from the environment"
                    ),
                });
            }
        }
    }
}

fn unsafe_code(path: &str, text: &str, code: &str, findings: &mut Vec<Finding>) {
    let allowed = UNSAFE_PLACES.iter().any(|p| path.starts_with(p))
        || path.starts_with("cni-common/src/") && UNSAFE_DEFINITIONS.iter().any(|d| code.contains(d));
    let lines: Vec<&str> = text.lines().collect();
    for (n, line) in code.lines().enumerate() {
        if !has_word(line, "unsafe") {
            continue;
        }
        if !allowed {
            let cure = "unsafe code lives in the files that rule 11 of the field guide names; use their safe functions";
            findings.push(Finding { line: n + 1, text: cure.to_owned() });
            continue;
        }
        let claims = line.contains("unsafe {") || line.contains("unsafe impl") || line.trim_end().ends_with("unsafe");
        let reasoned = lines[n.saturating_sub(SAFETY_REACH)..=n].iter().any(|l| l.contains("SAFETY:"));
        if claims && !reasoned {
            let cure = "an unsafe block without its `// SAFETY:` comment: write the fact that makes it sound, and where it was established";
            findings.push(Finding { line: n + 1, text: cure.to_owned() });
        }
    }
}

fn sleep_in_tests(path: &str, code: &str, findings: &mut Vec<Finding>) {
    let all = path.split('/').any(|part| part == "tests");
    let mut in_tests = all;
    for (n, line) in code.lines().enumerate() {
        in_tests |= line.contains("#[cfg(test)]") || line.contains("#[test]") || line.contains("::test]");
        let sleeps = ["sleep", "sleep_ms", "sleep_until"].iter().any(|w| has_word(line, w));
        if in_tests && sleeps {
            let cure = "no sleep in tests: wait for the event itself, with a deadline";
            findings.push(Finding { line: n + 1, text: cure.to_owned() });
        }
    }
}

fn cold(path: &str, code: &str, findings: &mut Vec<Finding>) {
    if !path.starts_with("cni-ebpf/") && !path.starts_with("cni-common/") {
        return;
    }
    for (n, line) in code.lines().enumerate() {
        if (line.contains("#[") || line.contains("#![")) && has_word(line, "cold") {
            let cure = "the attribute `cold` moves a function to .text.unlikely., where aya resolves calls to another function; remove it";
            findings.push(Finding { line: n + 1, text: cure.to_owned() });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: [usize; 0] = [];

    fn lines(path: &str, text: &str) -> Vec<usize> {
        check(path, text).into_iter().map(|f| f.line).collect()
    }

    #[test]
    fn refuses_unsafe_code_outside_its_places() {
        let text = "// unsafe in words is fine\nfn f() { unsafe { g() } }\n";
        assert_eq!(lines("cni-agent/src/app.rs", text), [2]);
        assert_eq!(lines("cni-common/src/net.rs", "unsafe impl Sync for X {}"), [1]);
    }

    #[test]
    fn asks_for_the_reason_of_each_unsafe_block() {
        let path = "cni-ebpf/src/kernel/packet.rs";
        assert_eq!(lines(path, "fn f() { unsafe { g() } }\n"), [1]);
        assert_eq!(lines(path, "// SAFETY: g has no conditions.\nunsafe { g() }\n"), NONE);
        assert_eq!(
            lines(
                "cni-common/src/shared.rs",
                "pub struct Shared<T>(T);\n// SAFETY: one word.\nunsafe impl<T> Sync for Shared<T> {}"
            ),
            NONE
        );
    }

    #[test]
    fn refuses_sleep_in_tests_and_only_there() {
        let text = "fn back_off() { sleep(d) }\n#[cfg(test)]\nmod tests { fn t() { std::thread::sleep(d); } }\n";
        assert_eq!(lines("cni-agent/src/app.rs", text), [3]);
        assert_eq!(lines("tests/lab/src/lib.rs", "use std::thread::sleep;"), [1]);
    }

    #[test]
    fn refuses_cold_in_kernel_code() {
        assert_eq!(lines("cni-ebpf/src/flow.rs", "#[cold]\nfn cold_start() {}\n"), [1]);
        assert_eq!(lines("cni-agent/src/app.rs", "#[cold]\nfn f() {}\n"), NONE);
    }

    #[test]
    fn refuses_paths_of_one_machine() {
        let text = format!("cd {}main\ncat docs{}plan\n", MACHINE_PATHS[0], MACHINE_PATHS[0]);
        assert_eq!(lines("README.md", &text), [1]);
    }
}
