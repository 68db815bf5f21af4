//! Processes of the lab: known again by number *and* time of start, ended without a race.
use std::{
    fs,
    os::fd::{AsFd, OwnedFd},
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};

/// How long an ending process has before it is killed.
pub(crate) const PATIENCE: Duration = Duration::from_secs(5);

/// A process, so that another one that got its number later is not taken for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Identity {
    /// Its number.
    pub(crate) pid: i32,
    /// When it started, clock ticks since boot.
    start_time: u64,
}

/// A process that is held: its number can not pass to another one meanwhile.
#[derive(Debug)]
pub(crate) struct Held {
    fd: OwnedFd,
}

impl Identity {
    /// Of the process with this number; none if there is none.
    pub(crate) fn of(pid: i32) -> Option<Self> {
        Some(Self { pid, start_time: start_time(pid)? })
    }

    /// Of this process.
    pub(crate) fn own() -> Result<Self> {
        let pid = i32::try_from(std::process::id()).context("a process number that is too large")?;
        Self::of(pid).context("read /proc/self/stat: is /proc mounted?")
    }

    /// Takes hold of it; none if it has ended.
    pub(crate) fn hold(self) -> Option<Held> {
        let fd = pidfd_open(Pid::from_raw(self.pid)?, PidfdFlags::empty()).ok()?;
        // Only now, as until the descriptor was open the number could have passed on.
        (Self::of(self.pid) == Some(self)).then_some(Held { fd })
    }

    /// It runs still.
    pub(crate) fn is_alive(self) -> bool {
        Self::of(self.pid) == Some(self) && !is_zombie(self.pid)
    }
}

impl Held {
    /// Asks it to end (SIGTERM). False if it has ended already.
    pub(crate) fn terminate(&self) -> bool {
        pidfd_send_signal(&self.fd, Signal::TERM).is_ok()
    }

    /// Kills it (SIGKILL). False if it has ended already.
    pub(crate) fn kill(&self) -> bool {
        pidfd_send_signal(&self.fd, Signal::KILL).is_ok()
    }

    /// Waits for its end, at most this long. True if it has ended.
    pub(crate) fn wait(&self, limit: Duration) -> Result<bool> {
        let deadline = Instant::now() + limit;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            // Rounded up: a wait of 0 ms would spin.
            let timeout = PollTimeout::try_from(left + Duration::from_micros(999)).unwrap_or(PollTimeout::MAX);
            match poll(&mut [PollFd::new(self.fd.as_fd(), PollFlags::POLLIN)], timeout) {
                Ok(0) => return Ok(false),
                Ok(_) => return Ok(true),
                Err(nix::errno::Errno::EINTR) => {}
                Err(e) => return Err(e).context("wait for the end of a process"),
            }
        }
    }
}

/// Ends processes: asks all of them, and kills those that have not ended in time.
pub(crate) fn end(processes: &[Held]) -> Result<()> {
    for process in processes {
        process.terminate();
    }
    let deadline = Instant::now() + PATIENCE;
    for process in processes {
        if !process.wait(deadline.saturating_duration_since(Instant::now()))? {
            process.kill();
            if !process.wait(PATIENCE)? {
                bail!("a process of the lab does not end although it was killed; look for one in state D with `ps ax`");
            }
        }
    }
    Ok(())
}

/// Numbers of all processes.
pub(crate) fn all() -> Result<Vec<i32>> {
    let mut pids: Vec<i32> = fs::read_dir("/proc")
        .context("list the processes in /proc")?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect();
    pids.sort_unstable();
    Ok(pids)
}

/// Name of the program of a process, without its directory; none if it has ended or is the kernel's.
pub(crate) fn program(pid: i32) -> Option<String> {
    let command_line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let program = String::from_utf8_lossy(command_line.split(|b| *b == 0).next()?).into_owned();
    Some(Path::new(&program).file_name()?.to_string_lossy().into_owned())
}

fn start_time(pid: i32) -> Option<u64> {
    // Field 22; the name in field 2 may hold blanks and brackets, so count behind its last bracket.
    stat(pid)?.split(' ').nth(19)?.parse().ok()
}

fn is_zombie(pid: i32) -> bool {
    stat(pid).is_none_or(|fields| fields.starts_with(['Z', 'X']))
}

/// Fields of /proc/PID/stat from the third on.
fn stat(pid: i32) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    Some(stat.rsplit_once(") ")?.1.to_owned())
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_process_is_known_by_its_start_and_not_by_its_number_alone() {
        let own = Identity::own().unwrap();
        assert!(own.is_alive() && own.hold().is_some());
        let other = Identity { start_time: own.start_time + 1, ..own };
        assert!(!other.is_alive() && other.hold().is_none());
    }

    #[test]
    fn a_process_is_gone_when_it_was_ended() {
        let mut child = Command::new("cat").stdin(std::process::Stdio::piped()).spawn().unwrap();
        let held = Identity::of(child.id().try_into().unwrap()).unwrap().hold().unwrap();
        assert!(!held.wait(Duration::ZERO).unwrap(), "it runs");
        end(&[held]).unwrap();
        assert!(!child.wait().unwrap().success());
    }
}
