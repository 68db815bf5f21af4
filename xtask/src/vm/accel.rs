//! KVM when it works, else emulation: found out by booting, as a /dev/kvm that is there may still hang every kernel.

use std::{
    collections::BTreeMap,
    fs::File,
    path::Path,
    process::Command,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Result, bail};

use crate::{
    run::{self, Ended, Read},
    ui,
};

/// What the user wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Wish {
    /// KVM if a kernel boots with it, else emulation
    #[default]
    Auto,
    /// KVM, or an error that says why not
    Kvm,
    /// Emulation
    Tcg,
}

/// How a machine's instructions are run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accel {
    /// By the processor.
    Kvm,
    /// By QEMU.
    Tcg,
}

/// What the line on the console has that a kernel under KVM came to its init.
pub const UP: &str = "weft-probe: up";

/// How long a kernel may take from power-on to power-off with a working KVM: it needs about one second.
const LIMIT: Duration = Duration::from_secs(6);

/// Decides for each kernel once a run; a KVM that hung one kernel is not tried with the next.
pub struct Choice {
    wish: Wish,
    made: Mutex<BTreeMap<String, Accel>>,
}

impl Choice {
    /// Nothing is tried yet.
    pub fn new(wish: Wish) -> Self {
        Self { wish, made: Mutex::default() }
    }

    /// The way to run a kernel; `command` gives QEMU's for a machine with KVM that prints `UP` and powers off.
    pub fn get(&self, kernel: &str, command: impl FnOnce() -> Result<Command>) -> Result<Accel> {
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(accel) = made.get(kernel).or_else(|| made.values().find(|a| **a == Accel::Tcg)) {
            return Ok(*accel);
        }
        let (accel, why) = decide(self.wish, Path::new("/dev/kvm"), || probe(&mut command()?, LIMIT))?;
        ui::note(&format!("machines run {}: {why}", if accel == Accel::Kvm { "with KVM" } else { "emulated (TCG)" }));
        made.insert(kernel.to_owned(), accel);
        Ok(accel)
    }
}

/// The way, and why. A probe says why KVM does not work, if it does not.
fn decide(wish: Wish, device: &Path, probe: impl FnOnce() -> Result<Option<String>>) -> Result<(Accel, String)> {
    if wish == Wish::Tcg {
        return Ok((Accel::Tcg, "--accel tcg".to_owned()));
    }
    let trouble = match File::options().read(true).write(true).open(device) {
        Err(e) => Some(format!("{}: {e}", device.display())),
        Ok(_) => probe()?,
    };
    match trouble {
        None => Ok((Accel::Kvm, "a kernel booted with it".to_owned())),
        Some(why) if wish == Wish::Kvm => bail!("KVM does not work here: {why}; --accel tcg does without, slowly"),
        Some(why) => Ok((Accel::Tcg, format!("KVM does not work here: {why}"))),
    }
}

/// Boots and looks whether the kernel comes up; says why it did not.
fn probe(command: &mut Command, limit: Duration) -> Result<Option<String>> {
    let (mut up, mut last) = (false, String::new());
    let ended = run::stream(command, Read::Both, limit, |line| {
        up |= line.contains(UP);
        if !line.trim().is_empty() {
            line.trim().clone_into(&mut last);
        }
    })?;
    let said = if last.is_empty() { String::new() } else { format!(" (its last line: {last})") };
    Ok(match ended {
        _ if up => None,
        Ended::TimedOut => Some(format!("the kernel had not come up after {}{said}", ui::seconds(limit))),
        Ended::Badly(_) | Ended::Well => Some(format!("QEMU ended before the kernel came up{said}")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Some file that can be opened, in the place of /dev/kvm.
    const THERE: &str = "/dev/null";

    fn with_qemu(wish: Wish, device: &str, script: &str) -> Result<(Accel, String)> {
        let mut qemu = Command::new("sh");
        qemu.args(["-c", script]);
        decide(wish, Path::new(device), || probe(&mut qemu, Duration::from_millis(700)))
    }

    #[test]
    fn a_kernel_that_comes_up_proves_kvm() {
        let (accel, _) = with_qemu(Wish::Auto, THERE, "echo SeaBIOS; echo 'weft-probe: up'").unwrap();
        assert_eq!(accel, Accel::Kvm);
    }

    #[test]
    fn a_kernel_that_hangs_is_left_after_the_limit() {
        let (accel, why) = with_qemu(Wish::Auto, THERE, "echo Decompressing; exec tail -f /dev/null").unwrap();
        assert_eq!(accel, Accel::Tcg);
        assert!(why.contains("0.7 s") && why.contains("Decompressing"), "{why}");
    }

    #[test]
    fn a_qemu_that_refuses_is_believed_and_its_word_shown() {
        let (accel, why) = with_qemu(Wish::Auto, THERE, "echo 'kvm: no access' >&2; exit 1").unwrap();
        assert_eq!(accel, Accel::Tcg);
        assert!(why.contains("kvm: no access"), "{why}");
    }

    #[test]
    fn without_the_device_nothing_is_booted() {
        let probe = || panic!("booted without a device");
        let (accel, why) = decide(Wish::Auto, Path::new("/nonexistent/kvm"), probe).unwrap();
        assert_eq!(accel, Accel::Tcg);
        assert!(why.contains("/nonexistent/kvm"), "{why}");
    }

    #[test]
    fn a_wish_is_obeyed_or_refused_but_never_bent() {
        let probe = || panic!("booted though emulation was wished");
        assert_eq!(decide(Wish::Tcg, Path::new(THERE), probe).unwrap().0, Accel::Tcg);
        assert!(with_qemu(Wish::Kvm, THERE, "exit 1").is_err());
        assert_eq!(with_qemu(Wish::Kvm, THERE, "echo 'weft-probe: up'").unwrap().0, Accel::Kvm);
    }

    #[test]
    fn a_kvm_that_hung_one_kernel_is_not_tried_with_the_next() {
        let choice = Choice { wish: Wish::Auto, made: Mutex::new([("6.1".to_owned(), Accel::Kvm)].into()) };
        let never = || panic!("booted again");
        assert_eq!(choice.get("6.1", never).unwrap(), Accel::Kvm);
        choice.made.lock().unwrap().insert("5.10".to_owned(), Accel::Tcg);
        assert_eq!(choice.get("newest", never).unwrap(), Accel::Tcg);
    }
}
