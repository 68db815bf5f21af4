//! Kubernetes' programs, built from the Go modules that tests/cluster pins, and the images that every node has.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use sha2::{Digest as _, Sha256};

use crate::{
    image::{self, Dockerfile},
    run::{self, Ended, Read},
    ui::{self, Stage},
    workspace::{self, Workspace},
};

/// Go packages; each program is called like the last part.
const PACKAGES: [&str; 4] =
    ["./hyperkube", "./pause", "k8s.io/kubernetes/test/images/agnhost", "helm.sh/helm/v3/cmd/helm"];
/// Images out of these programs: name, and what they are made of.
const IMAGES: [(&str, &str); 2] = [
    ("pause", "FROM scratch\nCOPY pause /\nENTRYPOINT [\"/pause\"]"),
    ("agnhost", "FROM scratch\nCOPY agnhost /\nENTRYPOINT [\"/agnhost\"]\nCMD [\"pause\"]"),
];
/// As long as a build may take on a machine that has other things to do.
const LIMIT: Duration = Duration::from_secs(3600);
/// Between two lines of progress.
const PROGRESS: Duration = Duration::from_secs(15);

/// Where the programs of this checkout are, or will be: a name for all that decides what they are.
pub fn directory(ws: &Workspace) -> Result<PathBuf> {
    let module = module(ws);
    let mut hash = Sha256::new();
    for file in ["go.mod", "go.sum", "hyperkube/main.go", "pause/main.go"].map(|f| module.join(f)) {
        hash.update(fs::read(&file).with_context(|| format!("read {}", file.display()))?);
    }
    for (name, text) in IMAGES {
        hash.update(name);
        hash.update(text);
    }
    let key: String = hash.finalize().iter().take(8).map(|b| format!("{b:02x}")).collect();
    Ok(workspace::cache()?.join("cluster").join(key))
}

fn module(ws: &Workspace) -> PathBuf {
    ws.root.join("tests/cluster")
}

/// Builds them, unless they are there, and says which; gives their directory.
pub fn build(ws: &Workspace) -> Result<PathBuf> {
    let kept = directory(ws)?;
    let above = kept.parent().context("the cache's directory has one above it")?;
    // Other runs may want the same programs at this moment. They have their name only once they are complete.
    let _alone = workspace::lock(&above.join(".lock"))?;
    if kept.exists() {
        ui::note(&format!("Kubernetes' programs are those of the cache: {}", kept.display()));
        return Ok(kept);
    }
    let stage = Stage::start("build Kubernetes' programs (some 10 minutes of processor time; they are kept)");
    let unfinished = above.join(".unfinished");
    if unfinished.exists() {
        fs::remove_dir_all(&unfinished).with_context(|| format!("remove {}", unfinished.display()))?;
    }
    fs::create_dir_all(&unfinished).with_context(|| format!("make {}", unfinished.display()))?;
    compile(ws, &unfinished)?;
    for (name, text) in IMAGES {
        let file = unfinished.join("images").join(format!("{name}.tar"));
        // Imported faster so.
        let compressed = false;
        image::pack(&Dockerfile::parse(text)?, &unfinished, &format!("weft.test/{name}:1"), compressed, &file)?;
    }
    fs::rename(&unfinished, &kept).with_context(|| format!("keep {}", kept.display()))?;
    stage.done("not in the cache before");
    Ok(kept)
}

fn compile(ws: &Workspace, to: &Path) -> Result<()> {
    let go = |verb: &[&str]| {
        let mut command = ws.command("go");
        command.current_dir(module(ws)).env("CGO_ENABLED", "0").env("GOFLAGS", "-mod=readonly").args(verb);
        command
    };
    let all = run::capture(go(&["list", "-deps"]).args(PACKAGES)).context(
        "list the packages of Kubernetes (the modules come from the Go proxy: check GOPROXY and the network)",
    )?;
    let all = all.lines().count();
    let mod_file = fs::read_to_string(module(ws).join("go.mod")).context("read tests/cluster/go.mod")?;
    let flags = linker_flags(&mod_file)?;
    let mut directory = to.as_os_str().to_owned();
    // With the slash at its end Go takes it for a directory.
    directory.push("/");
    let mut command = go(&["build", "-v", "-trimpath", "-buildvcs=false", "-ldflags", &flags, "-o"]);
    command.arg(directory).args(PACKAGES);
    let (mut compiled, mut said, mut told) = (0, Vec::new(), Instant::now());
    let ended = run::stream(&mut command, Read::Stderr, LIMIT, |line| {
        // A package's name has no blank; whatever has one is a message.
        if line.contains(' ') {
            said.push(line.to_owned());
        } else {
            compiled += 1;
        }
        if told.elapsed() > PROGRESS {
            told = Instant::now();
            eprintln!("    {compiled} of at most {all} packages compiled");
        }
    })?;
    if ended != Ended::Well {
        bail!("`{}` failed:\n{}", run::show(&command), run::tail(&said.join("\n"), 12));
    }
    Ok(())
}

/// Programs tell the API server their version, and it theirs: Kubernetes' own build sets it so.
fn linker_flags(mod_file: &str) -> Result<String> {
    let version = mod_file.lines().find_map(|l| l.trim().strip_prefix("k8s.io/kubernetes v"));
    let version = version.and_then(|v| v.split_ascii_whitespace().next());
    let version = version.context("tests/cluster/go.mod requires no k8s.io/kubernetes")?;
    let mut numbers = version.split('.');
    let (major, minor) = (numbers.next().unwrap_or_default(), numbers.next().context("a version has two numbers")?);
    let set = |name: &str, value: &str| format!("-X k8s.io/component-base/version.{name}={value}");
    Ok([
        "-s -w".to_owned(),
        set("gitVersion", &format!("v{version}")),
        set("gitMajor", major),
        set("gitMinor", minor),
        set("gitTreeState", "clean"),
    ]
    .join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_programs_say_the_version_that_the_module_pins() {
        let flags = linker_flags("require (\n\tk8s.io/kubernetes v1.35.4\n)\n").unwrap();
        assert!(flags.contains("gitVersion=v1.35.4 ") && flags.contains("gitMinor=35 "), "{flags}");
        assert!(linker_flags("require (\n)\n").is_err());
    }

    #[test]
    fn what_images_are_made_of_is_understood() {
        for (name, text) in IMAGES {
            assert_eq!(Dockerfile::parse(text).unwrap().copies[0].0, name);
        }
    }
}
