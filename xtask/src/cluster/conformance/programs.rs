//! Upstream's test programs, built of the modules that tests/cluster pins, and the image that their pods run.

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

const KUBERNETES: &str = "k8s.io/kubernetes";
const CYCLONUS: &str = "github.com/mattfenwick/cyclonus";

/// The images' names begin so: they are imported on every node, and never pulled.
pub const REGISTRY: &str = "weft.test/conformance";
/// The image that cyclonus asks for.
const CYCLONUS_IMAGE: &str = "e2e-test-images/agnhost:2.43";

/// Kubernetes' NetworkPolicy suite, in its module.
const NETPOL: &str = "test/e2e/network/netpol";
/// The file of it in which words are changed.
const CHANGED: &str = "kubemanager.go";
/// The suite asks each pod under the address of a Service of its own. The cluster has no kube-proxy, nor does Weft serve Services: the pod's own address is asked instead, which
/// is known when it runs. Each of these stands in the file once, and becomes the other.
const CHANGES: [(&str, &str); 2] = [
    ("for _, createdPod := range createdPods {", "for i, createdPod := range createdPods {"),
    (
        "\t\t\treturn fmt.Errorf(\"unable to wait for pod %s/%s: %w\", createdPod.Namespace, createdPod.Name, err)\n\t\t}\n",
        "\t\t\treturn fmt.Errorf(\"unable to wait for pod %s/%s: %w\", createdPod.Namespace, createdPod.Name, err)\n\t\t}\n\
         \t\trunning, err := k.getPod(ctx, createdPod.Namespace, createdPod.Name)\n\t\tif err != nil {\n\t\t\treturn err\n\t\t}\n\
         \t\tk.allPods[i].ServiceIP = running.Status.PodIP\n",
    ),
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
}

/// The version of Kubernetes, and that of cyclonus.
pub fn versions(ws: &Workspace) -> Result<(String, String)> {
    let own_mod = fs::read_to_string(own_module(ws).join("go.mod")).context("read tests/cluster/conformance/go.mod")?;
    let kubernetes = kept::version_of(KUBERNETES, &programs::mod_file(ws)?)?.to_owned();
    Ok((kubernetes, kept::version_of(CYCLONUS, &own_mod)?.to_owned()))
}

fn own_module(ws: &Workspace) -> PathBuf {
    programs::module(ws).join("conformance")
}

/// Builds them, unless they are in the cache. `kubernetes`: the directory of Kubernetes' programs, for agnhost.
pub fn build(ws: &Workspace, kubernetes: &Path) -> Result<Programs> {
    let (above, own) = (programs::module(ws), own_module(ws));
    let mut files = ["go.mod", "go.sum", "e2e/e2e_test.go"].map(|f| above.join(f)).to_vec();
    files.extend(["go.mod", "go.sum", "cases/main.go", "worker/main.go"].map(|f| own.join(f)));
    let texts: Vec<&str> = CHANGES.iter().flat_map(|(find, with)| [*find, *with]).collect();
    let directory = kept::directory("conformance", &files, &texts)?;
    kept::keep(&directory, "upstream's tests", "some 4 minutes of processor time", |unfinished| {
        compile(ws, unfinished)?;
        make_images(ws, unfinished, kubernetes)
    })?;
    let images = fs::read_dir(directory.join("images")).context("list the images")?;
    let images = images.map(|e| Ok(e?.path())).collect::<Result<Vec<PathBuf>>>()?;
    Ok(Programs { directory, images })
}

fn compile(ws: &Workspace, to: &Path) -> Result<()> {
    const GINKGO: &str = "github.com/onsi/ginkgo/v2/ginkgo";
    let (above, own) = (programs::module(ws), own_module(ws));
    let flags = programs::linker_flags(&programs::mod_file(ws)?)?;
    let overlay = overlay(ws, &to.join("changed"))?;
    let overlay = format!("-overlay={}", overlay.display());
    for (module, verb, package, name) in [
        (&above, &["build"][..], GINKGO, "ginkgo"),
        (&above, &["test", "-c", "-vet=off", &overlay], "./e2e", "e2e.test"),
        (&own, &["build"], "./cases", "cases"),
        (&own, &["build"], "./worker", "worker"),
    ] {
        let listed: &[&str] = if name == "e2e.test" { &["-test", &overlay, package] } else { &[package] };
        let all = kept::count_packages(ws, module, listed)?;
        let mut command = kept::go(ws, module, verb);
        command.args(["-v", "-trimpath", "-buildvcs=false", "-ldflags", &flags, "-o"]).arg(to.join(name)).arg(package);
        kept::compile(&mut command, all)?;
    }
    Ok(())
}

/// Where Go has the files of Kubernetes' module.
fn kubernetes_files(ws: &Workspace) -> Result<PathBuf> {
    let said = run::capture(kept::go(ws, &programs::module(ws), &["list", "-m", "-f", "{{.Dir}}"]).arg(KUBERNETES))?;
    Ok(PathBuf::from(said.trim()))
}

/// Makes upstream's NetworkPolicy suite the package `netpol` of our module, with one file changed, for Go's `-overlay`: a module's own files
/// can not be replaced. Gives the file that says so; the changed one goes into `to`.
fn overlay(ws: &Workspace, to: &Path) -> Result<PathBuf> {
    let (from, package) = (kubernetes_files(ws)?.join(NETPOL), programs::module(ws).join("netpol"));
    fs::create_dir_all(to).with_context(|| format!("make {}", to.display()))?;
    let changed = to.join(CHANGED);
    let text =
        fs::read_to_string(from.join(CHANGED)).with_context(|| format!("read {}", from.join(CHANGED).display()))?;
    let text = CHANGES.iter().try_fold(text, |text, (find, with)| change_once(&text, find, with));
    fs::write(&changed, text.with_context(|| format!("change {NETPOL}/{CHANGED}"))?)
        .with_context(|| format!("write {}", changed.display()))?;
    let mut files = serde_json::Map::new();
    for entry in fs::read_dir(&from).with_context(|| format!("list {}", from.display()))? {
        let file = entry.with_context(|| format!("list {}", from.display()))?.path();
        let Some(name) = file.file_name().filter(|n| n.to_string_lossy().ends_with(".go")) else { continue };
        let is = if name == CHANGED { &changed } else { &file };
        files.insert(package.join(name).display().to_string(), is.display().to_string().into());
    }
    let file = to.join("overlay.json");
    fs::write(&file, serde_json::json!({"Replace": files}).to_string())
        .with_context(|| format!("write {}", file.display()))?;
    Ok(file)
}

fn change_once(text: &str, find: &str, with: &str) -> Result<String> {
    match text.matches(find).count() {
        1 => Ok(text.replace(find, with)),
        n => bail!("`{}` stands there {n} times, not once: is this another version?", find.trim()),
    }
}

/// agnhost as upstream's image has it: with a shell, what the tests call by it, and cyclonus' worker. Under two names.
fn make_images(ws: &Workspace, directory: &Path, kubernetes: &Path) -> Result<()> {
    // The paths are absolute, so that the image's context does not matter.
    let place = |from: &Path, to: &str| (from.display().to_string(), to.to_owned());
    let mut copies = vec![place(&kubernetes.join("agnhost"), "agnhost"), place(&directory.join("worker"), "worker")];
    for (program, to) in TOOLS {
        let file = which(program).with_context(|| format!("there is no {program}"))?;
        copies.push(place(&file, to));
        for library in libraries(&run::capture(ws.command(LIBRARIES_OF).arg(&file))?) {
            let copy = place(Path::new(library), library.trim_start_matches('/'));
            if !copies.contains(&copy) {
                copies.push(copy);
            }
        }
    }
    let what = Dockerfile {
        copies,
        entrypoint: vec!["/agnhost".to_owned()],
        command: vec!["pause".to_owned()],
        ..Dockerfile::default()
    };
    let version = kubernetes_files(ws)?.join("test/images/agnhost/VERSION");
    let version = fs::read_to_string(&version).with_context(|| format!("read {}", version.display()))?;
    let names = [("kubernetes", format!("agnhost:{}", version.trim())), ("cyclonus", CYCLONUS_IMAGE.to_owned())];
    for (file, name) in names {
        let file = directory.join("images").join(format!("conformance-{file}.tar"));
        image::pack(&what, directory, &format!("{REGISTRY}/{name}"), false, &file)?;
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
        assert_eq!(change_once("xay", "a", "b").unwrap(), "xby");
        assert!(change_once("xy", "a", "b").is_err() && change_once("aa", "a", "b").is_err());
    }

    #[test]
    fn libraries_are_read_from_what_ldd_says() {
        let said = "\tlinux-vdso.so.1 (0x7f)\n\tlibc.so.6 => /lib/libc.so.6 (0x7e)\n\t/lib64/ld.so.2 (0x7d)\n\tlibx.so => not found\n";
        assert_eq!(libraries(said), ["/lib/libc.so.6", "/lib64/ld.so.2"]);
    }
}
