//! Kernels out of Debian's suites: which there are, which is the newest, and where its files are.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};

use crate::{
    deb::Suite,
    run,
    ui::{self, Stage},
    workspace::{self, Workspace},
};

/// A line of kernels that can be asked for.
#[derive(Debug)]
pub struct Series {
    /// What it is called.
    pub key: &'static str,
    /// Its version begins with this; empty: any.
    version: &'static [u32],
    /// Suites that have it; the newest of all is taken, and of equals that of the first suite.
    suites: &'static [&'static str],
}

/// 5.10 is the oldest that we support, 6.12 has TCX.
static SERIES: [Series; 4] = [
    Series { key: "5.10", version: &[5, 10], suites: &["bullseye-security", "bullseye"] },
    Series { key: "6.1", version: &[6, 1], suites: &["bookworm"] },
    Series { key: "6.12", version: &[6, 12], suites: &["trixie"] },
    Series { key: "newest", version: &[], suites: &["sid", "forky", "trixie-backports"] },
];

/// Packages with small kernels for virtual machines, which have all that we need.
const PREFIX: &str = "linux-image-";
const FLAVOUR: &str = "-cloud-amd64";

/// An unpacked kernel.
pub struct Kernel {
    /// Its `uname -r`.
    pub release: String,
    /// The bootable file.
    pub image: PathBuf,
    /// The directory that holds modules.dep.
    pub modules: PathBuf,
}

/// Finds a series by what it is called.
pub fn series(key: &str) -> Result<&'static Series> {
    let known = || SERIES.each_ref().map(|s| s.key).join(", ");
    SERIES.iter().find(|s| s.key == key).with_context(|| format!("no kernel `{key}`: there are {}", known()))
}

/// The keys of the named series, or of all.
pub fn choose(keys: &[String]) -> Result<Vec<&'static str>> {
    if keys.is_empty() {
        return Ok(SERIES.each_ref().map(|s| s.key).to_vec());
    }
    keys.iter().map(|k| Ok(series(k)?.key)).collect()
}

/// The kernels as a table.
pub fn list() -> String {
    let rows: Vec<Vec<String>> = SERIES
        .iter()
        .map(|s| {
            let here = dir(s).ok().and_then(|dir| here(s, &dir));
            vec![s.key.to_owned(), s.suites.join(", "), here.unwrap_or_else(|| "-".to_owned())]
        })
        .collect();
    ui::table(&["kernel", "Debian suites", "downloaded"], &rows)
}

/// Where the kernels of a series are kept, a directory each.
fn dir(series: &Series) -> Result<PathBuf> {
    Ok(workspace::cache()?.join("kernels").join(series.key))
}

/// The newest downloaded release of a series.
fn here(series: &Series, dir: &Path) -> Option<String> {
    let names = fs::read_dir(dir).ok()?.flatten();
    let packages: Vec<String> = names.map(|e| format!("{PREFIX}{}", e.file_name().to_string_lossy())).collect();
    Some(newest(packages.iter().map(String::as_str), series.version)?.1[PREFIX.len()..].to_owned())
}

/// A kernel of the series: the one that is here, else the newest that Debian has.
pub fn get(ws: &Workspace, series: &'static Series) -> Result<Kernel> {
    let dir = dir(series)?;
    let release = match here(series, &dir) {
        Some(release) => release,
        None => fetch(ws, series)?,
    };
    let root = dir.join(&release);
    let base = if root.join("usr/lib/modules").join(&release).exists() { root.join("usr") } else { root.clone() };
    let modules = base.join("lib/modules").join(&release);
    let image =
        image(&root, &release).with_context(|| format!("no kernel in {}: remove it and try again", root.display()))?;
    Ok(Kernel { release, image, modules })
}

/// From 7.x on the kernel lies beside its modules, before that in boot/.
fn image(root: &Path, release: &str) -> Option<PathBuf> {
    [
        format!("boot/vmlinuz-{release}"),
        format!("usr/lib/modules/{release}/vmlinuz"),
        format!("lib/modules/{release}/vmlinuz"),
    ]
    .into_iter()
    .map(|p| root.join(p))
    .find(|p| p.exists())
}

/// Downloads the newest kernel of a series, unless it is here, and gives its release.
pub fn fetch(ws: &Workspace, series: &'static Series) -> Result<String> {
    let stage = Stage::start(format!("look for kernel {} in {}", series.key, series.suites.join(", ")));
    let mut found: Option<(Vec<u32>, String, Suite<'_>)> = None;
    let mut troubles = Vec::new();
    for name in series.suites {
        let suite = Suite::new(ws, name)?;
        match suite.update().and_then(|()| suite.names(PREFIX)) {
            // One suite of several may be gone from the mirror; the others still serve.
            Err(e) => troubles.push(format!("{name}: {e:#}")),
            Ok(names) => {
                let best = newest(names.iter().map(String::as_str), series.version);
                if let Some((version, package)) = best
                    && found.as_ref().is_none_or(|(v, _, _)| version > *v)
                {
                    found = Some((version, package.to_owned(), suite));
                }
            }
        }
    }
    for trouble in &troubles {
        ui::note(trouble);
    }
    let Some((_, package, suite)) = found else {
        bail!(
            "no package {PREFIX}…{FLAVOUR} of kernel {} in {}: check the mirror",
            series.key,
            series.suites.join(", ")
        );
    };
    let release = package[PREFIX.len()..].to_owned();
    stage.done(&release);
    let dir = dir(series)?;
    // Other runs may want the same kernel at this moment. A kernel has its name only once it is complete.
    let _alone = workspace::lock(&dir.join(".lock"))?;
    let kept = dir.join(&release);
    if kept.exists() {
        return Ok(release);
    }
    let stage = Stage::start(format!("download kernel {release}"));
    let root = dir.join(".unfinished");
    if root.exists() {
        fs::remove_dir_all(&root).with_context(|| format!("remove {}", root.display()))?;
    }
    suite.unpack(&[package], &root)?;
    if image(&root, &release).is_none() {
        suite.unpack(&[format!("linux-binary-{release}"), format!("linux-modules-{release}")], &root)?;
    }
    if image(&root, &release).is_none() {
        bail!("the packages of kernel {release} hold no vmlinuz where we know it");
    }
    let base = if root.join("usr/lib/modules").join(&release).exists() { root.join("usr") } else { root.clone() };
    run::capture(ws.command("depmod").arg("-b").arg(&base).arg(&release)).context("find what the modules need")?;
    fs::rename(&root, &kept).with_context(|| format!("keep {}", kept.display()))?;
    stage.done("");
    Ok(release)
}

/// The newest kernel among package names, of the versions that begin with `series`.
fn newest<'a>(names: impl Iterator<Item = &'a str>, series: &[u32]) -> Option<(Vec<u32>, &'a str)> {
    names.filter_map(|n| Some((version(n)?, n))).filter(|(v, _)| v.starts_with(series)).max()
}

/// `[5, 10, 0, 46]` of `linux-image-5.10.0-46-cloud-amd64`, `[7, 3, 4]` of `linux-image-7.3.4+deb14-cloud-amd64`.
fn version(package: &str) -> Option<Vec<u32>> {
    let release = package.strip_prefix(PREFIX)?.strip_suffix(FLAVOUR)?;
    let upstream = release.split('+').next()?;
    upstream.split(['.', '-']).map(|part| part.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMES: [&str; 8] = [
        "linux-image-5.10.0-9-cloud-amd64",
        "linux-image-5.10.0-46-cloud-amd64",
        "linux-image-5.10.0-46-amd64",
        "linux-image-5.10.0-47-rt-amd64",
        "linux-image-6.1.0-0.deb11.21-cloud-amd64",
        "linux-image-cloud-amd64",
        "linux-image-7.3.4+deb14-cloud-amd64",
        "linux-image-7.3.10+deb14-cloud-amd64",
    ];

    #[test]
    fn compares_versions_as_numbers() {
        let pick = |series: &[u32]| newest(NAMES.into_iter(), series).map(|(_, n)| n);
        assert_eq!(pick(&[5, 10]), Some("linux-image-5.10.0-46-cloud-amd64"));
        assert_eq!(pick(&[]), Some("linux-image-7.3.10+deb14-cloud-amd64"));
        assert_eq!(pick(&[6, 12]), None);
    }

    #[test]
    fn a_series_is_not_the_beginning_of_another() {
        assert_eq!(newest(["linux-image-6.12.1+deb13-cloud-amd64"].into_iter(), &[6, 1]), None);
    }

    #[test]
    fn an_unknown_kernel_is_refused_with_those_there_are() {
        let text = format!("{:#}", series("4.19").unwrap_err());
        assert!(text.contains("5.10") && text.contains("newest"), "{text}");
    }
}
