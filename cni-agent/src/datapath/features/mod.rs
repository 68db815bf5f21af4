//! What the kernel can, found by trying: the one table of what Weft needs and of what it makes use of.
//!
//! Versions and options stand here for people to read; nothing is decided by them. Trying leaves nothing: maps and programs go with their
//! descriptors, and netlink is asked for what every kernel refuses, those that can by another error than those that cannot.
mod attempt;
mod table;

use std::{
    collections::BTreeMap,
    fmt::{self, Display},
    time::Instant,
};

use serde::{Deserialize, Serialize};
use tracing::{debug, info};

pub use self::{
    attempt::{SK_RELEASE, Try},
    table::{ALL, ENCAP_L2_ETH, SWITCHABLE, TCX},
};

/// Something that a kernel has or has not.
#[derive(Debug)]
pub struct Feature {
    /// A word for programs and settings; it stays the same from version to version.
    pub name: &'static str,
    /// What it is, for the middle of a sentence.
    pub what: &'static str,
    /// The first mainline version that has it.
    pub since: &'static str,
    /// Options of the kernel's configuration that it needs, without `CONFIG_`.
    pub options: &'static [&'static str],
    /// What Weft has of it.
    pub purpose: &'static str,
    /// What Weft does without it; none when it can do nothing.
    pub without: Option<&'static str>,
    /// How it is tried.
    pub attempt: Try,
}

/// What came of trying.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    There,
    Missing,
    NotAllowed,
    /// Neither: the kernel answered by this error.
    Unclear(i32),
    /// The settings say that it is not to be used.
    SwitchedOff,
}

/// The lowest version that has all that is needed.
const FLOOR: (u32, u32) = (5, 10);

/// `ENOTSUPP`, which is the kernel's own and has leaked.
const NOT_SUPPORTED: i32 = 524;

impl Feature {
    /// From the kernel's answer: success, or its error number.
    fn judge(&self, answer: Result<(), i32>) -> Verdict {
        let errno = match answer {
            Ok(()) => return Verdict::There,
            Err(libc::EPERM) => return Verdict::NotAllowed,
            Err(libc::ENOSYS) => return Verdict::Missing,
            Err(errno) => errno,
        };
        // The first error of two is that of a kernel that can: what was asked for cannot be had for another reason, which it alone sees.
        let (there, missing): (&[i32], &[i32]) = match self.attempt {
            Try::Tcx => (&[libc::ENODEV], &[libc::EINVAL]),
            Try::Batch(_) => (&[libc::ENOENT], &[libc::EINVAL, NOT_SUPPORTED]),
            Try::Veth | Try::Vxlan => (&[libc::EADDRNOTAVAIL], &[libc::EOPNOTSUPP]),
            Try::SharedBlock => (&[libc::EINVAL], &[libc::ENOENT, libc::ENODEV, libc::EOPNOTSUPP]),
            Try::TestRun | Try::AdjustRoom(_) => (&[], &[libc::EINVAL, NOT_SUPPORTED]),
            Try::Map(..) | Try::Helper(..) | Try::Socket(_) | Try::VerifiedInsns => {
                (&[], &[libc::EINVAL, libc::EOPNOTSUPP])
            }
        };
        if there.contains(&errno) {
            Verdict::There
        } else if missing.contains(&errno) {
            Verdict::Missing
        } else {
            Verdict::Unclear(errno)
        }
    }

    /// First version and options, as far as they help: `Linux 6.6, CONFIG_NET_XGRESS`.
    fn origin(&self) -> String {
        let options = self.options.iter().map(|o| format!(", CONFIG_{o}")).collect::<String>();
        format!("Linux {}{options}", self.since)
    }
}

/// A feature that is not used, and why.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MissingFeature {
    /// Its name.
    pub name: String,
    /// What it is, for the middle of a sentence.
    pub what: String,
    /// Weft does not run without it.
    pub required: bool,
    /// `missing`, `not allowed`, `switched off`, or `unclear` with the kernel's error.
    pub why: String,
    /// First mainline version that has it, and options that it needs.
    pub origin: String,
    /// What Weft does without it; of a required one, what it needs it for.
    pub without: String,
}

/// The kernel cannot run Weft.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnfitKernel {
    /// It may be able to, but not for this process.
    #[error(
        "the kernel does not let this process use {what} (EPERM): run it as root, or with CAP_BPF, CAP_PERFMON, CAP_NET_ADMIN and CAP_SYS_ADMIN."
    )]
    NotAllowed {
        /// The first thing that was refused.
        what: &'static str,
    },
    /// Older than the floor.
    #[error("Linux {release} is too old for Weft: it lacks {lacks}. Weft runs on {}.{} and newer.", FLOOR.0, FLOOR.1)]
    TooOld {
        /// `uname -r`.
        release: String,
        /// What it lacks, with the version that has it.
        lacks: String,
    },
    /// New enough, but built without something.
    #[error("Linux {release} lacks what Weft needs: {lacks}. Boot a kernel that was built with it.")]
    Lacks {
        /// `uname -r`.
        release: String,
        /// What it lacks, with the options that it needs.
        lacks: String,
    },
}

/// What this kernel can.
#[derive(Clone, Debug)]
pub struct Features {
    release: String,
    /// In the order of [`ALL`].
    verdicts: Vec<Verdict>,
}

impl Features {
    /// Tries everything. Those in `unwanted` count as not there.
    pub fn try_all(unwanted: &[String]) -> Self {
        let began = Instant::now();
        super::load::raise_memlock_limit();
        let mut attempts = attempt::Attempts::default();
        let release = nix::sys::utsname::uname().map(|u| u.release().to_string_lossy().into_owned());
        let found = Self::of(release.unwrap_or_default(), unwanted, |f| attempts.make(&f.attempt));
        debug!(took = ?began.elapsed(), "tried what the kernel can");
        found
    }

    /// As a kernel has them that answers so.
    fn of(release: String, unwanted: &[String], mut ask: impl FnMut(&Feature) -> Result<(), i32>) -> Self {
        let judge = |f: &Feature| match f.judge(ask(f)) {
            Verdict::There if unwanted.iter().any(|name| name == f.name) => Verdict::SwitchedOff,
            verdict => verdict,
        };
        Self { release, verdicts: ALL.iter().map(judge).collect() }
    }

    fn each(&self) -> impl Iterator<Item = (&'static Feature, Verdict)> {
        ALL.iter().zip(self.verdicts.iter().copied())
    }

    /// Whether a feature is there and to be used.
    pub fn has(&self, name: &str) -> bool {
        self.each().any(|(f, verdict)| f.name == name && verdict == Verdict::There)
    }

    /// By name, whether it is there and to be used.
    pub fn by_name(&self) -> BTreeMap<String, bool> {
        self.each().map(|(f, verdict)| (f.name.to_owned(), verdict == Verdict::There)).collect()
    }

    /// Those that are not, in the order of [`ALL`].
    pub fn missing(&self) -> Vec<MissingFeature> {
        let missing = |(f, verdict): (&Feature, Verdict)| MissingFeature {
            name: f.name.into(),
            what: f.what.into(),
            required: f.without.is_none(),
            why: verdict.to_string(),
            origin: f.origin(),
            without: f.without.unwrap_or(f.purpose).into(),
        };
        self.each().filter(|(_, verdict)| *verdict != Verdict::There).map(missing).collect()
    }

    /// Whether Weft can run. What is unclear is no hindrance here: using it will tell.
    ///
    /// # Errors
    /// One sentence, which says what cures it.
    pub fn check(&self) -> Result<(), UnfitKernel> {
        let required = || self.each().filter(|(f, _)| f.without.is_none());
        if let Some((f, _)) = required().find(|(_, verdict)| *verdict == Verdict::NotAllowed) {
            return Err(UnfitKernel::NotAllowed { what: f.what });
        }
        let mut missing: Vec<_> = required().filter(|(_, v)| *v == Verdict::Missing).map(|(f, _)| f).collect();
        let Some(first) = missing.first() else { return Ok(()) };
        // Without the system call nothing of it is there.
        if first.name == ALL[0].name {
            missing.truncate(1);
        }
        let release = self.release.clone();
        let list = |text: fn(&Feature) -> String| named(&missing.iter().map(|f| text(f)).collect::<Vec<_>>());
        if version(&release).is_some_and(|v| v < FLOOR) {
            let lacks = list(|f| format!("{} (Linux {})", f.what, f.since));
            return Err(UnfitKernel::TooOld { release, lacks });
        }
        let lacks = list(|f| {
            format!("{} ({})", f.what, f.options.iter().map(|o| format!("CONFIG_{o}")).collect::<Vec<_>>().join(", "))
        });
        Err(UnfitKernel::Lacks { release, lacks })
    }

    /// Says once what is not used.
    pub fn log(&self) {
        for (f, verdict) in self.each().filter(|(_, verdict)| *verdict != Verdict::There) {
            let without = f.without.unwrap_or("What needs it will fail.");
            info!(feature = f.name, why = %verdict, origin = f.origin(), "the kernel is used without {}: {without}", f.what);
        }
    }
}

/// The first two, and how many more.
fn named(all: &[String]) -> String {
    match all {
        [one] => one.clone(),
        [one, other] => format!("{one} and {other}"),
        [one, other, rest @ ..] => format!("{one}, {other} and {} more", rest.len()),
        [] => String::new(),
    }
}

impl Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::There => f.write_str("there"),
            Self::Missing => f.write_str("missing"),
            Self::NotAllowed => f.write_str("not allowed"),
            Self::Unclear(errno) => write!(f, "unclear: {}", std::io::Error::from_raw_os_error(*errno)),
            Self::SwitchedOff => f.write_str("switched off"),
        }
    }
}

/// Major and minor number of a release.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut parts = release.split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests;
