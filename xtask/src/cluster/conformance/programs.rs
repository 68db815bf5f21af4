//! Upstream's test programs, built of the modules that tests/cluster pins, and the image that their pods run.
//!
//! Two of upstream's files are built with a few words changed ([`CHANGES`]): a program that is only told by flags would ask what
//! Weft does not have yet.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};

use crate::{
    cluster::{kept, programs},
    image::{self, Dockerfile},
    run,
    workspace::{Workspace, which},
};

/// Go modules whose text is changed.
const KUBERNETES: &str = "k8s.io/kubernetes";
const CYCLONUS: &str = "github.com/mattfenwick/cyclonus";

/// The images' names begin so: they are imported on every node, and never pulled.
pub const REGISTRY: &str = "weft.test/conformance";

/// Words of upstream's that are built as others.
struct Change {
    module: &'static str,
    file: &'static str,
    /// Stands in the file exactly once.
    find: &'static str,
    with: &'static str,
}

const CHANGES: [Change; 4] = [
    // Each pod of the NetworkPolicy suite is asked under the address of a Service of its own. Weft serves no Services yet: its own address
    // is asked instead, which is known when it runs.
    Change {
        module: KUBERNETES,
        file: "test/e2e/network/netpol/kubemanager.go",
        find: "for _, createdPod := range createdPods {",
        with: "for i, createdPod := range createdPods {",
    },
    Change {
        module: KUBERNETES,
        file: "test/e2e/network/netpol/kubemanager.go",
        find: "\t\t\treturn fmt.Errorf(\"unable to wait for pod %s/%s: %w\", createdPod.Namespace, createdPod.Name, err)\n\t\t}\n",
        with: "\t\t\treturn fmt.Errorf(\"unable to wait for pod %s/%s: %w\", createdPod.Namespace, createdPod.Name, err)\n\t\t}\n\
               \t\trunning, err := k.getPod(ctx, createdPod.Namespace, createdPod.Name)\n\t\tif err != nil {\n\t\t\treturn err\n\t\t}\n\
               \t\tk.allPods[i].ServiceIP = running.Status.PodIP\n",
    },
    // Cyclonus can ask all of a pod's questions in one exec, and has the flag for it commented out.
    Change {
        module: CYCLONUS,
        file: "pkg/cli/generate.go",
        find: "batchJobs := false // args.BatchJobs",
        with: "batchJobs := true",
    },
    // … by an image that we do not have.
    Change {
        module: CYCLONUS,
        file: "pkg/connectivity/probe/pod.go",
        find: "cyclonusWorkerImage = \"mfenwick100/cyclonus-worker:latest\"",
        with: "cyclonusWorkerImage = \"weft.test/conformance/worker:1\"",
    },
];

/// What the tests' pods call by a shell, beside agnhost.
const TOOLS: [(&str, &str); 5] = [
    ("dash", "bin/sh"),
    ("curl", "usr/bin/curl"),
    ("nc.openbsd", "usr/bin/nc"),
    ("grep", "bin/grep"),
    ("cat", "bin/cat"),
];
/// Says which libraries a program needs.
const LIBRARIES_OF: &str = "ldd";

/// Upstream's programs.
pub struct Programs {
    /// Where they are.
    pub directory: PathBuf,
    /// The images' archives.
    pub images: Vec<PathBuf>,
    /// Versions of what they are built of: name and version.
    pub versions: Vec<(&'static str, String)>,
}

fn own_module(ws: &Workspace) -> PathBuf {
    programs::module(ws).join("conformance")
}

/// Builds them, unless they are in the cache. `kubernetes`: the directory of Kubernetes' programs, for agnhost.
pub fn build(ws: &Workspace, kubernetes: &Path) -> Result<Programs> {
    let own = own_module(ws);
    let mut files = ["go.mod", "go.sum"].map(|f| programs::module(ws).join(f)).to_vec();
    files.extend(["go.mod", "go.sum", "worker/main.go"].map(|f| own.join(f)));
    let texts: Vec<&str> = CHANGES.iter().flat_map(|c| [c.file, c.find, c.with]).collect();
    let directory = kept::directory("conformance", &files, &texts)?;
    kept::keep(&directory, "upstream's tests", "some 6 minutes of processor time", |unfinished| {
        compile(ws, unfinished)?;
        make_images(ws, unfinished, kubernetes)
    })?;
    let own_mod = fs::read_to_string(own.join("go.mod")).context("read tests/cluster/conformance/go.mod")?;
    let versions = vec![
        ("Kubernetes", kept::version_of(KUBERNETES, &programs::mod_file(ws)?)?.to_owned()),
        ("cyclonus", kept::version_of(CYCLONUS, &own_mod)?.to_owned()),
    ];
    let images = ["agnhost.tar", "worker.tar"].map(|f| directory.join("images").join(f)).to_vec();
    Ok(Programs { directory, images, versions })
}

fn compile(ws: &Workspace, to: &Path) -> Result<()> {
    const E2E: &str = "k8s.io/kubernetes/test/e2e";
    const GINKGO: &str = "github.com/onsi/ginkgo/v2/ginkgo";
    let (kubernetes, own) = (programs::module(ws), own_module(ws));
    let flags = programs::linker_flags(&programs::mod_file(ws)?)?;
    let build = |module: &Path, verb: &[&str], overlay: Option<&Path>, package: &str, name: &str, all: usize| {
        let mut command = kept::go(ws, module, verb);
        command.args(["-v", "-trimpath", "-buildvcs=false", "-ldflags", &flags]);
        if let Some(file) = overlay {
            command.arg("-overlay").arg(file);
        }
        kept::compile(command.arg("-o").arg(to.join(name)).arg(package), all)
    };
    let all = kept::count_packages(ws, &kubernetes, &["-test", E2E])?;
    build(&kubernetes, &["build"], None, GINKGO, "ginkgo", all)?;
    let changed = overlay(ws, &kubernetes, KUBERNETES, &to.join("changed-kubernetes"))?;
    build(&kubernetes, &["test", "-c"], Some(&changed), E2E, "e2e.test", all)?;
    let changed = overlay(ws, &own, CYCLONUS, &to.join("changed-cyclonus"))?;
    let cyclonus = format!("{CYCLONUS}/cmd/cyclonus");
    let all = kept::count_packages(ws, &own, &[&cyclonus, "./worker"])?;
    build(&own, &["build"], Some(&changed), &cyclonus, "cyclonus", all)?;
    build(&own, &["build"], None, "./worker", "worker", all)
}

/// Where Go has the files of a module.
fn files_of(ws: &Workspace, module: &Path, name: &str) -> Result<PathBuf> {
    let said = run::capture(kept::go(ws, module, &["list", "-m", "-f", "{{.Dir}}"]).arg(name))?;
    Ok(PathBuf::from(said.trim()))
}

/// Writes changed files of a module into a directory, and gives the file that names them to Go's `-overlay`.
fn overlay(ws: &Workspace, module: &Path, name: &str, to: &Path) -> Result<PathBuf> {
    let from = files_of(ws, module, name)?;
    let mut replaced = serde_json::Map::new();
    for change in CHANGES.iter().filter(|c| c.module == name) {
        let (original, copy) = (from.join(change.file), to.join(change.file));
        // A file may be changed in several places.
        let source = if copy.exists() { &copy } else { &original };
        let text = fs::read_to_string(source).with_context(|| format!("read {}", source.display()))?;
        let changed = change_once(&text, change).with_context(|| format!("change {}", original.display()))?;
        let write = || {
            fs::create_dir_all(copy.parent().unwrap_or(to))?;
            fs::write(&copy, changed)
        };
        write().with_context(|| format!("write {}", copy.display()))?;
        replaced.insert(original.display().to_string(), copy.display().to_string().into());
    }
    let file = to.join("overlay.json");
    fs::write(&file, serde_json::json!({"Replace": replaced}).to_string())
        .with_context(|| format!("write {}", file.display()))?;
    Ok(file)
}

fn change_once(text: &str, change: &Change) -> Result<String> {
    match text.matches(change.find).count() {
        1 => Ok(text.replace(change.find, change.with)),
        n => bail!("`{}` stands there {n} times, not once: is this another version?", change.find.trim()),
    }
}

/// agnhost as upstream's image has it, with a shell and what the tests call by it; and cyclonus' own.
fn make_images(ws: &Workspace, directory: &Path, kubernetes: &Path) -> Result<()> {
    let agnhost = kubernetes.join("agnhost");
    let base = Dockerfile {
        entrypoint: vec!["/agnhost".to_owned()],
        command: vec!["pause".to_owned()],
        ..Dockerfile::default()
    };
    let place = |from: &Path, to: &str| (from.display().to_string(), to.to_owned());
    let mut whole = Dockerfile { copies: vec![place(&agnhost, "agnhost")], ..base };
    for (program, to) in TOOLS {
        let file = which(program).with_context(|| format!("there is no {program}"))?;
        whole.copies.push(place(&file, to));
        for library in libraries(&run::capture(ws.command(LIBRARIES_OF).arg(&file))?) {
            let copy = place(Path::new(library), library.trim_start_matches('/'));
            if !whole.copies.contains(&copy) {
                whole.copies.push(copy);
            }
        }
    }
    let version = files_of(ws, &programs::module(ws), KUBERNETES)?.join("test/images/agnhost/VERSION");
    let version = fs::read_to_string(&version).with_context(|| format!("read {}", version.display()))?;
    let worker = Dockerfile {
        copies: vec![place(&agnhost, "agnhost"), place(&directory.join("worker"), "worker")],
        entrypoint: vec!["/worker".to_owned()],
        ..Dockerfile::default()
    };
    for (name, tag, what) in [("agnhost", version.trim(), &whole), ("worker", "1", &worker)] {
        let file = directory.join("images").join(format!("{name}.tar"));
        // The paths are absolute, so that the directory does not matter.
        image::pack(what, directory, &format!("{REGISTRY}/{name}:{tag}"), false, &file)?;
    }
    Ok(())
}

/// The paths in what `ldd` says: `NAME => PATH (ADDRESS)`, or `PATH (ADDRESS)` of the loader.
fn libraries(said: &str) -> Vec<&str> {
    said.lines().filter_map(|l| l.split_ascii_whitespace().find(|w| w.starts_with('/'))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_that_does_not_fit_is_an_error() {
        let change = Change { module: "", file: "", find: "a", with: "b" };
        assert_eq!(change_once("xay", &change).unwrap(), "xby");
        assert!(change_once("xy", &change).is_err() && change_once("aa", &change).is_err());
    }

    #[test]
    fn libraries_are_read_from_what_ldd_says() {
        let said = "\tlinux-vdso.so.1 (0x7f)\n\tlibc.so.6 => /lib/libc.so.6 (0x7e)\n\t/lib64/ld.so.2 (0x7d)\n\tlibx.so => not found\n";
        assert_eq!(libraries(said), ["/lib/libc.so.6", "/lib64/ld.so.2"]);
    }
}
