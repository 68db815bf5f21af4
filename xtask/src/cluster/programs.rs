//! Kubernetes' programs, built from the Go modules that tests/cluster pins, and the images that every node has.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

use super::kept;
use crate::{
    image::{self, Dockerfile},
    workspace::Workspace,
};

/// Go packages; each program is called like the last part.
const PACKAGES: [&str; 4] =
    ["./hyperkube", "./pause", "k8s.io/kubernetes/test/images/agnhost", "helm.sh/helm/v3/cmd/helm"];
/// Images out of these programs: name, and what they are made of.
const IMAGES: [(&str, &str); 2] = [
    ("pause", "FROM scratch\nCOPY pause /\nENTRYPOINT [\"/pause\"]"),
    ("agnhost", "FROM scratch\nCOPY agnhost /\nENTRYPOINT [\"/agnhost\"]\nCMD [\"pause\"]"),
];
/// Where the programs of this checkout are, or will be: a name for all that decides what they are.
pub fn directory(ws: &Workspace) -> Result<PathBuf> {
    let files = ["go.mod", "go.sum", "hyperkube/main.go", "pause/main.go"].map(|f| module(ws).join(f));
    kept::directory("cluster", &files, &IMAGES.map(|(name, text)| [name, text]).concat())
}

/// The Go module of Kubernetes.
pub fn module(ws: &Workspace) -> PathBuf {
    ws.root.join("tests/cluster")
}

/// Builds them, unless they are there, and says which; gives their directory.
pub fn build(ws: &Workspace) -> Result<PathBuf> {
    let directory = directory(ws)?;
    kept::keep(&directory, "Kubernetes' programs", "some 10 minutes of processor time", |unfinished| {
        compile(ws, unfinished)?;
        for (name, text) in IMAGES {
            let file = unfinished.join("images").join(format!("{name}.tar"));
            // Imported faster so.
            let compressed = false;
            image::pack(&Dockerfile::parse(text)?, unfinished, &format!("weft.test/{name}:1"), compressed, &file)?;
        }
        Ok(())
    })?;
    Ok(directory)
}

fn compile(ws: &Workspace, to: &Path) -> Result<()> {
    let module = module(ws);
    let all = kept::count_packages(ws, &module, &PACKAGES)?;
    let flags = linker_flags(&mod_file(ws)?)?;
    let mut directory = to.as_os_str().to_owned();
    // With the slash at its end Go takes it for a directory.
    directory.push("/");
    let mut command = kept::go(ws, &module, &["build", "-v", "-trimpath", "-buildvcs=false", "-ldflags", &flags, "-o"]);
    kept::compile(command.arg(directory).args(PACKAGES), all)
}

/// The text of the module's go.mod.
pub fn mod_file(ws: &Workspace) -> Result<String> {
    fs::read_to_string(module(ws).join("go.mod")).context("read tests/cluster/go.mod")
}

/// Programs tell the API server their version, and it theirs: Kubernetes' own build sets it so.
pub fn linker_flags(mod_file: &str) -> Result<String> {
    let version = kept::version_of("k8s.io/kubernetes", mod_file).context("tests/cluster/go.mod")?;
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
