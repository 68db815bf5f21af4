//! The IPAM plugin that a configuration names: found in `CNI_PATH` and executed (specification section 4).
//!
//! It gets the environment and the configuration that this plugin got, and its standard error is this plugin's.
use std::{
    fs,
    io::{self, Read as _, Write as _},
    os::unix::{
        fs::{MetadataExt as _, PermissionsExt as _},
        process::CommandExt as _,
    },
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::mpsc::{self, Sender},
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::{
        signal::{Signal, killpg},
        wait::{Id, WaitPidFlag, waitid},
    },
    unistd::Pid,
};
use serde::Deserialize as _;
use serde_json::Value;

use crate::{
    protocol::{MAX_RESPONSE, Verb},
    spec::{AddResult, CniError, ErrorCode, Version, short},
};

/// The longest name of a file, in bytes.
const MAX_FILE_NAME: usize = 255;

/// What a plugin left behind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    /// Whether it exited with 0.
    pub success: bool,
    /// How it ended, for people: `exit status: 1`.
    pub how: String,
    /// Its standard output.
    pub stdout: Vec<u8>,
}

/// How a plugin is executed: as a process, or by a stand-in in tests.
pub trait Plugins {
    /// Executes `executable` for `verb` with `config` on its standard input, and waits for its end.
    ///
    /// # Errors
    /// What kept it from running to its end. That it fails is an [`Ended`].
    fn run(&self, executable: &Path, verb: Verb, config: &[u8]) -> Result<Ended, CniError>;
}

/// The IPAM plugin of a call.
pub struct Ipam<'a> {
    name: &'a str,
    executable: PathBuf,
    /// The network configuration as the runtime sent it, byte by byte.
    config: &'a [u8],
    /// The version of that configuration: a result that names none has its shape.
    version: Version,
    plugins: &'a dyn Plugins,
}

impl<'a> Ipam<'a> {
    /// Finds the plugin `name` in the directories of `path`.
    ///
    /// # Errors
    /// [`ErrorCode::INVALID_CONFIG`] for a name that is a path or this plugin's own, and when no directory holds it;
    /// [`ErrorCode::INVALID_ENVIRONMENT`] without directories.
    pub fn find(
        name: &'a str,
        path: &[PathBuf],
        config: &'a [u8],
        version: Version,
        plugins: &'a dyn Plugins,
    ) -> Result<Self, CniError> {
        let executable = find(name, path)?;
        Ok(Self { name, executable, config, version, plugins })
    }

    /// Asks for addresses; the result has the newest shape.
    ///
    /// # Errors
    /// What the plugin says; [`ErrorCode::DECODING_FAILURE`] for an answer that is no result.
    pub fn add(&self) -> Result<AddResult, CniError> {
        let stdout = self.run(Verb::Add)?;
        let wrong = |why: String| {
            CniError::new(
                ErrorCode::DECODING_FAILURE,
                format!("the IPAM plugin {} succeeded, but its answer is no CNI result: {why}", self.name),
            )
            .with_details(format!("is {} an IPAM plugin, and a whole one?", self.executable.display()))
        };
        let value: Value = serde_json::from_slice(&stdout).map_err(|e| wrong(short(e)))?;
        let result = AddResult::from_plugin(&value, self.version).map_err(wrong)?;
        if result.ips.is_empty() {
            return Err(CniError::new(
                ErrorCode::INVALID_CONFIG,
                format!("the IPAM plugin {} succeeded, but gave no address", self.name),
            )
            .with_details("give it addresses in `ipam` of the network configuration, or remove `ipam`"));
        }
        Ok(result)
    }

    /// Has it take back what it gave to the attachment.
    ///
    /// # Errors
    /// What the plugin says.
    pub fn del(&self) -> Result<(), CniError> {
        self.run(Verb::Del).map(drop)
    }

    /// Has it compare what it gave to the attachment with what it remembers.
    ///
    /// # Errors
    /// What the plugin says.
    pub fn check(&self) -> Result<(), CniError> {
        self.run(Verb::Check).map(drop)
    }

    /// Has it forget what the runtime no longer lists. A plugin from before GC came is none the worse for it.
    ///
    /// # Errors
    /// What the plugin says.
    pub fn gc(&self) -> Result<(), CniError> {
        unless_unknown(self.run(Verb::Gc))
    }

    /// Asks whether it could give an address. A plugin from before STATUS came is taken to be able to.
    ///
    /// # Errors
    /// What the plugin says.
    pub fn status(&self) -> Result<(), CniError> {
        unless_unknown(self.run(Verb::Status))
    }

    fn run(&self, verb: Verb) -> Result<Vec<u8>, CniError> {
        let ended = self.plugins.run(&self.executable, verb, self.config)?;
        if ended.success { Ok(ended.stdout) } else { Err(self.failed(verb, &ended)) }
    }

    /// The plugin's own error, with its name in front; or, if it told none, how it ended.
    fn failed(&self, verb: Verb, ended: &Ended) -> CniError {
        let document = serde_json::from_slice(&ended.stdout).and_then(|value: Value| CniError::deserialize(&value));
        if let Ok(mut error) = document {
            error.msg = format!("the IPAM plugin {}: {}", self.name, error.msg);
            return error;
        }
        let (name, verb, how) = (self.name, verb.as_str(), &ended.how);
        let text = String::from_utf8_lossy(&ended.stdout);
        let said = if text.trim().is_empty() { "nothing".to_owned() } else { format!("{:?}", short(text.trim())) };
        CniError::new(
            ErrorCode::IO_FAILURE,
            format!("the IPAM plugin {name} failed at {verb} ({how}) without an error document; it said {said}"),
        )
        .with_details(format!("its standard error is in the runtime's log; is {} whole?", self.executable.display()))
    }
}

/// Plugins answer a command that they do not know with this code, and name the variable as the specification wants it.
fn unless_unknown(result: Result<Vec<u8>, CniError>) -> Result<(), CniError> {
    match result {
        Err(e) if e.code == ErrorCode::INVALID_ENVIRONMENT && e.to_string().contains("CNI_COMMAND") => Ok(()),
        other => other.map(drop),
    }
}

fn find(name: &str, path: &[PathBuf]) -> Result<PathBuf, CniError> {
    let unusable = |why: &str| {
        CniError::new(ErrorCode::INVALID_CONFIG, format!("ipam.type {:?} is not usable: {why}", short(name)))
            .with_details("name an IPAM plugin such as host-local, or remove `ipam`: Weft then gives addresses itself")
    };
    if name.contains(['/', '\0']) || matches!(name, "." | "..") {
        return Err(unusable("it must be the plain name of a plugin, without directories"));
    }
    if name.len() > MAX_FILE_NAME {
        return Err(unusable("no file has so long a name"));
    }
    let directories: Vec<&PathBuf> = path.iter().filter(|directory| !directory.as_os_str().is_empty()).collect();
    if directories.is_empty() {
        return Err(CniError::new(
            ErrorCode::INVALID_ENVIRONMENT,
            format!("the environment variable CNI_PATH names no directory in which to find the IPAM plugin {name}"),
        )
        .with_details("the runtime must set CNI_PATH to its directories of plugins, usually /opt/cni/bin"));
    }
    let mut unexecutable = None;
    for directory in &directories {
        let candidate = directory.join(name);
        let Ok(metadata) = fs::metadata(&candidate) else { continue };
        if !metadata.is_file() {
            continue;
        }
        if metadata.permissions().mode() & 0o111 == 0 {
            unexecutable.get_or_insert(candidate);
            continue;
        }
        let identity = (metadata.dev(), metadata.ino());
        if fs::metadata("/proc/self/exe").is_ok_and(|own| (own.dev(), own.ino()) == identity) {
            return Err(unusable("it is weft-cni itself, which would call itself for ever"));
        }
        return Ok(candidate);
    }
    let list: Vec<String> = directories.iter().map(|directory| directory.display().to_string()).collect();
    let list = short(list.join(", "));
    let (msg, cure) = match unexecutable {
        Some(file) => (
            format!("the IPAM plugin {} is not executable", file.display()),
            format!("make it so: chmod 755 {}", file.display()),
        ),
        None => (
            format!("there is no IPAM plugin {name} in the directories of CNI_PATH ({list})"),
            format!(
                "install {name} in one of them (the package of the reference CNI plugins has the usual ones), or correct \
                 ipam.type in the network configuration"
            ),
        ),
    };
    Err(CniError::new(ErrorCode::INVALID_CONFIG, msg).with_details(cure))
}

/// Plugins as processes.
#[derive(Clone, Copy, Debug)]
pub struct Processes {
    /// How long one may run.
    pub limit: Duration,
}

impl Default for Processes {
    /// Long enough for a DHCP server that is asked again and again; with the agent's limit it stays below the two minutes
    /// after which kubelet gives up a sandbox.
    fn default() -> Self {
        Self { limit: Duration::from_secs(45) }
    }
}

/// What the threads around a child report.
enum Report {
    Output(io::Result<Vec<u8>>),
    Exited,
}

impl Plugins for Processes {
    fn run(&self, executable: &Path, verb: Verb, config: &[u8]) -> Result<Ended, CniError> {
        let failed = |step: &str, e: io::Error| {
            CniError::new(ErrorCode::IO_FAILURE, format!("cannot {step} the IPAM plugin {}: {e}", executable.display()))
                .with_details("is it a program for this machine, and whole?")
        };
        // A group of its own: when the time is up, what the plugin has started ends with it.
        let mut child = Command::new(executable)
            .env("CNI_COMMAND", verb.as_str())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .process_group(0)
            .spawn()
            .map_err(|e| failed("start", e))?;
        match finish(&mut child, config, self.limit) {
            Ok(Some((status, stdout))) => {
                if stdout.len() > MAX_RESPONSE {
                    let large = io::Error::other(format!("it is larger than {MAX_RESPONSE} bytes"));
                    return Err(failed("read the answer of", large));
                }
                Ok(Ended { success: status.success(), how: status.to_string(), stdout })
            }
            Ok(None) => {
                kill(&mut child);
                let (path, seconds) = (executable.display(), self.limit.as_secs());
                Err(CniError::new(
                    ErrorCode::TRY_AGAIN_LATER,
                    format!("the IPAM plugin {path} did not end its {} within {seconds} s", verb.as_str()),
                )
                .with_details("it was killed; its standard error in the runtime's log may say what it waited for"))
            }
            Err(e) => {
                kill(&mut child);
                Err(failed("talk to", e))
            }
        }
    }
}

/// Feeds the child, reads its answer to the end and waits for its own; `None` when the time is up.
fn finish(child: &mut Child, config: &[u8], limit: Duration) -> io::Result<Option<(ExitStatus, Vec<u8>)>> {
    let deadline = Instant::now() + limit;
    let (sender, reports) = mpsc::channel();
    watch(child, config.to_vec(), &sender)?;
    let (mut output, mut exited) = (None, false);
    while output.is_none() || !exited {
        match reports.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(Report::Output(bytes)) => output = Some(bytes?),
            Ok(Report::Exited) => exited = true,
            Err(_) => return Ok(None),
        }
    }
    Ok(Some((child.wait()?, output.unwrap_or_default())))
}

/// A thread for each thing that may block. Those that are left behind when the time is up end with this process.
fn watch(child: &mut Child, config: Vec<u8>, reports: &Sender<Report>) -> io::Result<()> {
    let spawn = |name: &str, run: Box<dyn FnOnce() + Send>| {
        thread::Builder::new().name(name.to_owned()).stack_size(64 << 10).spawn(run).map(drop)
    };
    let pid = Pid::from_raw(child.id().cast_signed());
    let exited = reports.clone();
    spawn(
        "wait",
        Box::new(move || {
            // The child stays a zombie until `wait` reaps it: until then its number is nobody else's, and can be killed.
            let ended = waitid(Id::Pid(pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT);
            let report = ended.map_or_else(|e| Report::Output(Err(e.into())), |_| Report::Exited);
            // Nobody listens any more after the time limit.
            drop(exited.send(report));
        }),
    )?;
    if let Some(mut stdin) = child.stdin.take() {
        // A plugin may answer without having read: that its end of the pipe is closed is no failure.
        spawn("stdin", Box::new(move || drop(stdin.write_all(&config))))?;
    }
    if let Some(stdout) = child.stdout.take() {
        let output = reports.clone();
        spawn(
            "stdout",
            Box::new(move || {
                let mut bytes = Vec::new();
                let read = stdout.take(MAX_RESPONSE as u64 + 1).read_to_end(&mut bytes);
                drop(output.send(Report::Output(read.map(|_| bytes))));
            }),
        )?;
    }
    Ok(())
}

fn kill(child: &mut Child) {
    // The failure to report is the one that led here; a child that is gone already needs no killing.
    if killpg(Pid::from_raw(child.id().cast_signed()), Signal::SIGKILL).is_err() {
        drop(child.kill());
    }
    drop(child.wait());
}
