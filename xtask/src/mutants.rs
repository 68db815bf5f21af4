//! `cargo xtask mutants`: makes typical mistakes, one at a time, and sees whether the tests notice.

mod kept;

use std::{
    collections::BTreeSet,
    env, fs,
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use self::kept::Kept;
use crate::{
    run::{self, Ended, Read},
    ui::{self, Stage},
    workspace::{STATIC_TARGET, Workspace},
};

/// Make typical mistakes, one at a time, and see whether the tests notice.
///
/// TOPIC names tests/mutants/TOPIC.toml: the mistakes, each a text of a file and what is written in its place, and the
/// checks that are run until one turns red. They are made in a copy of the checkout, below the target directory, whose build
/// products are kept for the next time. Without any mistake all checks must be green. A mistake that no check notices has
/// survived; one whose text is not there any more, or is there twice, or that does not compile, is an error. The exit code is 1 if
/// there is one of either. What a run has found out is kept beside the copy, mistake by mistake, so that `--resume` goes on with a run that was interrupted.
#[derive(clap::Args)]
pub struct Args {
    /// The list of mistakes, such as policy
    topic: String,
    /// Only mistakes whose name or file contains one of these
    #[arg(long, value_name = "SUBSTR", num_args = 1..)]
    only: Vec<String>,
    /// Do not make a mistake again that a check has noticed, in a file that has not changed since
    #[arg(long)]
    resume: bool,
    /// See whether each mistake can be made, print them, and run nothing
    #[arg(long)]
    list: bool,
}

/// How long the tests of one check may take; a mistake that makes them hang has been noticed.
const LIMIT: Duration = Duration::from_secs(900);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Topic {
    check: Vec<Check>,
    mutant: Vec<Mutant>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Check {
    name: String,
    /// Only mistakes in this directory.
    of: Option<PathBuf>,
    cargo: Vec<String>,
    #[serde(default)]
    tests: Vec<String>,
    needs: Option<(String, PathBuf)>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Mutant {
    name: String,
    file: PathBuf,
    from: String,
    to: String,
    #[serde(default)]
    also: Vec<(String, String)>,
}

impl Mutant {
    /// The file's text with the mistake.
    fn apply(&self, text: &str) -> Result<String> {
        let pairs = [(&self.from, &self.to)].into_iter().chain(self.also.iter().map(|(from, to)| (from, to)));
        pairs.into_iter().try_fold(text.to_owned(), |text, (from, to)| {
            let found = text.matches(from.as_str()).count();
            ensure!(found == 1, "its text is {found} times in {}, not once:\n{from}", self.file.display());
            Ok(text.replacen(from.as_str(), to, 1))
        })
    }
}

/// What became of a mistake.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Outcome {
    /// This check turned red, by this test if it is known.
    Noticed {
        by: String,
        test: String,
    },
    Survived,
    /// It cannot be made, or not be compiled.
    Impossible(String),
}

/// The verb.
pub fn main(ws: &Workspace, args: &Args) -> Result<ExitCode> {
    let path = ws.root.join("tests/mutants").join(format!("{}.toml", args.topic));
    let text = fs::read_to_string(&path).with_context(|| format!("read {}", ws.show(&path)))?;
    let mut topic: Topic = toml::from_str(&text).with_context(|| format!("read {}", ws.show(&path)))?;
    let is_it = |m: &Mutant, part: &str| m.name.contains(part) || m.file.to_string_lossy().contains(part);
    topic.mutant.retain(|m| args.only.is_empty() || args.only.iter().any(|part| is_it(m, part)));
    if topic.mutant.is_empty() {
        bail!("no mistake of {} is called so; `--list` shows them all", args.topic);
    }
    if args.list {
        return list(ws, &topic.mutant);
    }
    let all = topic.mutant.len();
    let tree = Tree::of(ws)?;
    let mut kept = Kept::of(ws, &args.topic, args.resume)?;
    let known: Vec<Option<Outcome>> = topic.mutant.iter().map(|m| kept.outcome(ws, m)).collect::<Result<_>>()?;
    let left = known.iter().filter(|k| k.is_none()).count();
    let checks = checks(ws, topic.check);
    let mut sound = BTreeSet::new();
    let (mut outcomes, started) = (Vec::new(), Instant::now());
    for (n, (mutant, known)) in topic.mutant.iter().zip(known).enumerate() {
        if let Some(outcome) = known {
            outcomes.push(outcome);
            continue;
        }
        let stage = Stage::start(format!("{} of {all}: {}", n + 1, mutant.name));
        let outcome = tree.attempt(mutant, &checks, &mut sound)?;
        match &outcome {
            Outcome::Noticed { by, test } => stage.done(&format!("{by}: {test}")),
            Outcome::Survived => stage.failed("no check notices it"),
            Outcome::Impossible(why) => stage.failed(why),
        }
        kept.keep(ws, mutant, &outcome)?;
        outcomes.push(outcome);
    }
    if let Some(each) = started.elapsed().checked_div(u32::try_from(left).unwrap_or(u32::MAX)) {
        ui::note(&format!("{left} of {all} made now, {} each", ui::seconds(each)));
    }
    let rows = topic.mutant.iter().zip(&outcomes).map(|(m, o)| row(m, o)).collect::<Vec<_>>();
    print!("{}", ui::table(&["mistake", "outcome", "by"], &rows));
    let count = |is: fn(&Outcome) -> bool| outcomes.iter().filter(|o| is(o)).count();
    let (noticed, survived) =
        (count(|o| matches!(o, Outcome::Noticed { .. })), count(|o| matches!(o, Outcome::Survived)));
    println!("mutants {}: {noticed} noticed, {survived} survived, {} impossible", args.topic, all - noticed - survived);
    Ok(if noticed == all { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn list(ws: &Workspace, mutants: &[Mutant]) -> Result<ExitCode> {
    let mut code = ExitCode::SUCCESS;
    for mutant in mutants {
        println!("{}: {}", mutant.file.display(), mutant.name);
        let path = ws.root.join(&mutant.file);
        let text = fs::read_to_string(&path).with_context(|| format!("read {}", ws.show(&path)))?;
        if let Err(error) = mutant.apply(&text) {
            ui::error(&format!("{}: {error}", mutant.name));
            code = ExitCode::FAILURE;
        }
    }
    Ok(code)
}

fn row(mutant: &Mutant, outcome: &Outcome) -> Vec<String> {
    let (word, by) = match outcome {
        Outcome::Noticed { by, test } => ("noticed", format!("{by}: {test}")),
        Outcome::Survived => ("SURVIVED", String::new()),
        Outcome::Impossible(why) => ("IMPOSSIBLE", why.lines().next().unwrap_or_default().to_owned()),
    };
    vec![mutant.name.clone(), word.to_owned(), by]
}

/// A check that can be run here, and the variable that it is given.
type Ready = (Check, Option<(String, PathBuf)>);

/// Those checks that have what they need.
fn checks(ws: &Workspace, all: Vec<Check>) -> Vec<Ready> {
    let mut ready = Vec::new();
    for check in all {
        let Some((variable, path)) = &check.needs else {
            ready.push((check, None));
            continue;
        };
        let found = env::var_os(variable).map_or_else(|| ws.root.join(path), PathBuf::from);
        match found.canonicalize() {
            Ok(found) => {
                let given = Some((variable.clone(), found));
                ready.push((check, given));
            }
            Err(e) => ui::note(&format!(
                "the check {} is left out: {}: {e}; {variable} names it",
                check.name,
                found.display()
            )),
        }
    }
    ready
}

/// The copy in which mistakes are made.
struct Tree<'a> {
    ws: &'a Workspace,
    root: PathBuf,
}

impl<'a> Tree<'a> {
    /// A copy of the checkout as it is now. Files that have not changed since the last copy are left as they are, so that cargo builds
    /// what has.
    fn of(ws: &'a Workspace) -> Result<Self> {
        let stage = Stage::start("copy the checkout");
        let root = ws.target.join("mutants/tree");
        let listed = run::capture(ws.command("git").args(["ls-files", "--cached", "--others", "--exclude-standard"]))?;
        let mut wanted = Vec::new();
        for name in listed.lines() {
            let (from, to) = (ws.root.join(name), root.join(name));
            // Deleted, and not committed yet; or a link, which nothing here needs.
            let Ok(bytes) = fs::read(&from) else { continue };
            wanted.push(to.clone());
            write(&to, &bytes)?;
        }
        remove_others(&root, &wanted)?;
        stage.done(&format!("{} files", wanted.len()));
        Ok(Self { ws, root })
    }

    /// Without a mistake a check must be green.
    fn sound(&self, check: &Check, given: Option<&(String, PathBuf)>) -> Result<()> {
        let stage = Stage::start(format!("without a mistake: {}", check.name));
        let built = self.build(check)?.or_else(|why| bail!("it does not compile:\n{why}"))?;
        if let Some(test) = self.red(check, given, &built)? {
            bail!("{} is red without any mistake: {test}", check.name);
        }
        stage.done("");
        Ok(())
    }

    /// Makes a mistake for one check after another; `sound` are those that are known to be green without.
    fn attempt(&self, mutant: &Mutant, checks: &[Ready], sound: &mut BTreeSet<String>) -> Result<Outcome> {
        let path = self.root.join(&mutant.file);
        let right = fs::read_to_string(&path).with_context(|| format!("read {}", mutant.file.display()))?;
        let wrong = match mutant.apply(&right) {
            Ok(wrong) => wrong,
            Err(why) => return Ok(Outcome::Impossible(why.to_string())),
        };
        let concerned = |check: &Check| check.of.as_ref().is_none_or(|of| mutant.file.starts_with(of));
        for (check, given) in checks.iter().filter(|(check, _)| concerned(check)) {
            if sound.insert(check.name.clone()) {
                self.sound(check, given.as_ref())?;
            }
            write(&path, wrong.as_bytes())?;
            let outcome = self.judge(check, given.as_ref());
            write(&path, right.as_bytes())?;
            match outcome? {
                Outcome::Survived => {}
                outcome => return Ok(outcome),
            }
        }
        Ok(Outcome::Survived)
    }

    fn judge(&self, check: &Check, given: Option<&(String, PathBuf)>) -> Result<Outcome> {
        let built = match self.build(check)? {
            Ok(built) => built,
            Err(why) => return Ok(Outcome::Impossible(format!("does not compile\n{why}"))),
        };
        let by = check.name.clone();
        Ok(self.red(check, given, &built)?.map_or(Outcome::Survived, |test| Outcome::Noticed { by, test }))
    }

    /// Builds what a check runs; the inner error is what the compiler says.
    fn build(&self, check: &Check) -> Result<Result<Vec<Built>, String>> {
        let mut cargo = self.ws.cargo();
        // A directory of its own: cargo takes two copies of a workspace for one.
        cargo
            .current_dir(&self.root)
            .env("CARGO_TARGET_DIR", self.ws.target.join("mutants/build"))
            .env("RUSTFLAGS", "-Ctarget-feature=+crt-static")
            // Nobody debugs these binaries, and each is linked anew for each mistake.
            .env("CARGO_PROFILE_DEV_DEBUG", "0")
            .env("CARGO_INCREMENTAL", "1")
            .args(&check.cargo)
            .args(["--target", STATIC_TARGET, "--no-run", "--message-format=json-render-diagnostics"]);
        let (mut built, mut said) = (Vec::new(), Vec::new());
        let ended = run::stream(&mut cargo, Read::Both, LIMIT, |line| match serde_json::from_str::<Artifact>(line) {
            Ok(artifact) => built.extend(artifact.built()),
            Err(_) if line.starts_with('{') => {}
            Err(_) => said.push(line.to_owned()),
        })?;
        Ok(if ended == Ended::Well { Ok(built) } else { Err(run::tail(&said.join("\n"), 30)) })
    }

    /// Runs a check; if it turns red, a test that did. The first one is enough.
    fn red(&self, check: &Check, given: Option<&(String, PathBuf)>, built: &[Built]) -> Result<Option<String>> {
        ensure!(!built.is_empty(), "the check {} has no test", check.name);
        for Built { program, package } in built {
            let mut tests = self.ws.command(program);
            tests.current_dir(package).env("CARGO_MANIFEST_DIR", package).args(&check.tests);
            // What an input that has failed once leaves would be tried first the next time, and a mistake is not to be found by luck.
            tests.env("PROPTEST_DISABLE_FAILURE_PERSISTENCE", "1");
            tests.envs(given.map(|(variable, path)| (variable, path)));
            let (ended, failed) = run::until(&mut tests, LIMIT, |line| {
                line.strip_prefix("test ").and_then(|l| l.strip_suffix(" ... FAILED")).map(str::to_owned)
            })?;
            match (failed, ended) {
                (Some(test), _) => return Ok(Some(test)),
                (None, Ended::Well) => {}
                (None, Ended::TimedOut) => return Ok(Some("it takes too long".to_owned())),
                (None, Ended::Badly(_)) => return Ok(Some("no test's name".to_owned())),
            }
        }
        Ok(None)
    }
}

/// A program with tests.
struct Built {
    program: PathBuf,
    /// The directory of its package, in which tests begin.
    package: PathBuf,
}

/// What cargo says of something that it has built.
#[derive(Deserialize)]
struct Artifact {
    executable: Option<PathBuf>,
    manifest_path: PathBuf,
    profile: Profile,
}
#[derive(Deserialize)]
struct Profile {
    test: bool,
}
impl Artifact {
    /// Programs of the package come along with its tests.
    fn built(self) -> Option<Built> {
        let package = self.manifest_path.parent()?.to_owned();
        self.executable.filter(|_| self.profile.test).map(|program| Built { program, package })
    }
}

/// Writes a file if it is another one.
fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    if fs::read(path).is_ok_and(|there| there == bytes) {
        return Ok(());
    }
    let write = || {
        fs::create_dir_all(path.parent().unwrap_or(Path::new("/")))?;
        fs::write(path, bytes)
    };
    write().with_context(|| format!("write {}", path.display()))
}

/// Removes the files below a directory that are not among these.
fn remove_others(directory: &Path, wanted: &[PathBuf]) -> Result<()> {
    for entry in fs::read_dir(directory).with_context(|| format!("read {}", directory.display()))? {
        let entry = entry.with_context(|| format!("read {}", directory.display()))?;
        let path = entry.path();
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            remove_others(&path, wanted)?;
        } else if !wanted.contains(&path) {
            fs::remove_file(&path).with_context(|| format!("remove {}", path.display()))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mutant(from: &str, also: &[(&str, &str)]) -> Mutant {
        let also = also.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect();
        Mutant { name: "m".into(), file: "f".into(), from: from.into(), to: "x".into(), also }
    }

    #[test]
    fn a_mistake_is_made_where_its_text_is_once() {
        assert_eq!(mutant("b", &[("c", "y")]).apply("abcd").unwrap(), "axyd");
        for text in ["acd", "abbcd"] {
            let error = mutant("b", &[]).apply(text).unwrap_err().to_string();
            assert!(error.contains("times in f"), "{error}");
        }
    }

    #[test]
    fn every_mistake_of_every_list_can_be_made() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        for list in fs::read_dir(root.join("tests/mutants")).unwrap() {
            let topic: Topic = toml::from_str(&fs::read_to_string(list.unwrap().path()).unwrap()).unwrap();
            assert!(topic.mutant.len() >= 20 && !topic.check.is_empty());
            for mutant in topic.mutant {
                let text = fs::read_to_string(root.join(&mutant.file)).unwrap();
                let wrong = mutant.apply(&text).unwrap_or_else(|e| panic!("{}: {e}", mutant.name));
                assert_ne!(wrong, text, "{}", mutant.name);
            }
        }
    }
}
