//! Starting other programs: errors that name the command, and output that is read line by line under a time limit.

use std::{
    io::{BufRead as _, BufReader},
    process::{Child, Command, Stdio},
    sync::mpsc::{self, RecvTimeoutError},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

/// How long output may still come after its program ended; a daemon that was left behind may hold the pipe for ever.
const LINGER: Duration = Duration::from_secs(2);

/// How often a running program is looked at while it prints nothing.
const LOOK: Duration = Duration::from_millis(200);

/// The command as one would type it, without its environment.
pub fn show(command: &Command) -> String {
    let mut text = command.get_program().to_string_lossy().into_owned();
    if let Some(name) = std::path::Path::new(&text).file_name() {
        text = name.to_string_lossy().into_owned();
    }
    for arg in command.get_args() {
        text.push(' ');
        text.push_str(&arg.to_string_lossy());
    }
    text
}

/// Runs to the end and gives what it printed; a failure carries the last lines of its standard error.
pub fn capture(command: &mut Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("start `{}`", show(command)))?;
    if !output.status.success() {
        let err = String::from_utf8_lossy(&output.stderr);
        let out = String::from_utf8_lossy(&output.stdout);
        let said = if err.trim().is_empty() { out } else { err };
        bail!("`{}` failed ({}): {}", show(command), output.status, tail(&said, 12));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The last `lines` lines of a text.
pub fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.trim_end().lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

/// How a streamed program ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// By itself, with exit code 0.
    Well,
    /// By itself, with this exit code (none: by a signal).
    Badly(Option<i32>),
    /// It was killed, as it took longer than allowed.
    TimedOut,
}

/// Which of a program's outputs `stream` reads; the other goes where this process's goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Read {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
    /// Both, in the order in which lines arrive.
    Both,
}

/// Runs a program and hands each line of its output to `line`, for at most `limit`.
pub fn stream(command: &mut Command, read: Read, limit: Duration, mut line: impl FnMut(&str)) -> Result<Ended> {
    let (ended, _none) = follow(command, read, limit, |text| {
        line(text);
        None::<()>
    })?;
    Ok(ended)
}

/// Runs a program until `find` finds something in a line of its standard output, and kills it then.
pub fn until<T>(
    command: &mut Command,
    limit: Duration,
    find: impl FnMut(&str) -> Option<T>,
) -> Result<(Ended, Option<T>)> {
    command.stderr(Stdio::null());
    follow(command, Read::Stdout, limit, find)
}

fn follow<T>(
    command: &mut Command,
    read: Read,
    limit: Duration,
    mut find: impl FnMut(&str) -> Option<T>,
) -> Result<(Ended, Option<T>)> {
    command.stdin(Stdio::null());
    if read != Read::Stderr {
        command.stdout(Stdio::piped());
    }
    if read != Read::Stdout {
        command.stderr(Stdio::piped());
    }
    let mut child = command.spawn().with_context(|| format!("start `{}`", show(command)))?;
    let lines = readers(&mut child);
    let deadline = Instant::now() + limit;
    let mut ended: Option<Instant> = None;
    let (mut timed_out, mut found) = (false, None);
    loop {
        match lines.recv_timeout(LOOK) {
            Ok(text) => {
                found = find(&text);
                if found.is_some() {
                    child.kill().with_context(|| format!("kill `{}`", show(command)))?;
                    break;
                }
            }
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {
                if ended.is_none() && child.try_wait().context("wait for a program")?.is_some() {
                    ended = Some(Instant::now());
                }
                if ended.is_some_and(|at| at.elapsed() > LINGER) {
                    break;
                }
            }
        }
        if !timed_out && ended.is_none() && Instant::now() > deadline {
            timed_out = true;
            child.kill().with_context(|| format!("kill `{}`", show(command)))?;
        }
    }
    let status = child.wait().context("wait for a program")?;
    let ended = match status.code() {
        _ if timed_out => Ended::TimedOut,
        Some(0) => Ended::Well,
        code => Ended::Badly(code),
    };
    Ok((ended, found))
}

/// One thread an output; the channel closes when all outputs did.
fn readers(child: &mut Child) -> mpsc::Receiver<String> {
    let (sender, lines) = mpsc::channel();
    let outputs: [Option<Box<dyn std::io::Read + Send>>; 2] =
        [child.stdout.take().map(|o| Box::new(o) as _), child.stderr.take().map(|o| Box::new(o) as _)];
    for output in outputs.into_iter().flatten() {
        let sender = sender.clone();
        std::thread::spawn(move || {
            let mut reader = BufReader::new(output);
            let mut bytes = Vec::new();
            while matches!(reader.read_until(b'\n', &mut bytes), Ok(n) if n > 0) {
                let text = String::from_utf8_lossy(&bytes).trim_end_matches(['\n', '\r']).to_owned();
                bytes.clear();
                if sender.send(text).is_err() {
                    break;
                }
            }
        });
    }
    lines
}

/// Runs cargo and shows its progress only when it has something to do: a build that is up to date says nothing.
pub fn cargo(command: &mut Command) -> Result<()> {
    let ended = stream(command, Read::Stderr, Duration::from_secs(3600), |line| {
        if !line.trim_start().starts_with("Finished ") {
            eprintln!("{line}");
        }
    })?;
    if ended != Ended::Well {
        bail!("`{}` failed; the compiler's message is above", show(command));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn streams_both_outputs_and_reports_the_exit_code() {
        let mut seen = Vec::new();
        let ended = stream(&mut shell("echo out; echo err >&2; exit 3"), Read::Both, Duration::from_secs(60), |l| {
            seen.push(l.to_owned());
        })
        .unwrap();
        seen.sort();
        assert_eq!((ended, seen), (Ended::Badly(Some(3)), vec!["err".to_owned(), "out".to_owned()]));
    }

    #[test]
    fn kills_a_program_that_overstays() {
        let ended =
            stream(&mut shell("exec tail -f /dev/null"), Read::Stdout, Duration::from_millis(50), |_| {}).unwrap();
        assert_eq!(ended, Ended::TimedOut);
    }

    #[test]
    fn ends_a_program_when_the_line_has_come() {
        let mut endless = shell("echo one; echo two; exec tail -f /dev/null");
        let (ended, found) =
            until(&mut endless, Duration::from_secs(60), |l| (l == "two").then(|| l.to_owned())).unwrap();
        assert_eq!((ended, found.as_deref()), (Ended::Badly(None), Some("two")));
        let (ended, found) = until(&mut shell("echo one"), Duration::from_secs(60), |_| None::<()>).unwrap();
        assert_eq!((ended, found), (Ended::Well, None));
    }

    #[test]
    fn does_not_wait_for_a_daemon_that_holds_the_pipe() {
        let started = Instant::now();
        let mut daemon = String::new();
        let ended = stream(&mut shell("tail -f /dev/null & echo $!"), Read::Stdout, Duration::from_secs(60), |l| {
            l.clone_into(&mut daemon);
        })
        .unwrap();
        capture(Command::new("kill").arg(&daemon)).unwrap();
        assert_eq!(ended, Ended::Well);
        assert!(started.elapsed() < Duration::from_secs(30));
    }

    #[test]
    fn a_failed_command_is_named_with_what_it_said() {
        let text = format!("{:#}", capture(&mut shell("echo no such thing >&2; exit 2")).unwrap_err());
        assert!(text.contains("sh -c") && text.contains("no such thing"), "{text}");
    }
}
