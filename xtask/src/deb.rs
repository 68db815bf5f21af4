//! Packages of other Debian suites: found, downloaded and unpacked with a package state of our own.
//!
//! Neither apt's own lists nor the installed packages are touched. Mirrors are those of this machine's configuration.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, Result, bail};

use crate::{
    run,
    workspace::{self, Workspace},
};

/// Package lists older than this are fetched again before they are used.
const LISTS_FRESH: Duration = Duration::from_secs(24 * 3600);

/// One suite, such as `bullseye-security` or `sid`.
pub struct Suite<'a> {
    ws: &'a Workspace,
    name: String,
    mirror: String,
    state: PathBuf,
}

impl<'a> Suite<'a> {
    /// Prepares to use a suite; fetches nothing yet.
    pub fn new(ws: &'a Workspace, name: &str) -> Result<Self> {
        let mirror = match std::env::var("WEFT_DEBIAN_MIRROR") {
            Ok(main) => for_suite(name, &[(main, Vec::new())]),
            Err(_) => for_suite(name, &configured()),
        };
        let Some(mirror) = mirror else {
            bail!(
                "no Debian mirror in apt's configuration: set WEFT_DEBIAN_MIRROR to the address of one (ending in /debian)"
            );
        };
        Ok(Self { ws, name: name.to_owned(), mirror, state: workspace::cache()?.join("apt").join(name) })
    }

    /// Fetches the package lists, unless they are of today.
    pub fn update(&self) -> Result<()> {
        let stamp = self.state.join("updated");
        // apt refuses to work where another apt works.
        let _alone = workspace::lock(&self.state.join("lock"))?;
        let fresh = |time: SystemTime| time.elapsed().is_ok_and(|age| age < LISTS_FRESH);
        if fs::metadata(&stamp).and_then(|m| m.modified()).is_ok_and(fresh) {
            return Ok(());
        }
        for dir in ["lists/partial", "cache/archives/partial"] {
            let dir = self.state.join(dir);
            fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
        }
        fs::write(self.state.join("status"), "").context("write an empty package state")?;
        let source = format!(
            "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] {} {} main\n",
            self.mirror, self.name
        );
        fs::write(self.state.join("sources.list"), source).context("write a package source")?;
        // `apt-get update` ends well when a suite could not be had, unless told otherwise.
        run::capture(self.apt("apt-get").args(["-q", "-o", "APT::Update::Error-Mode=any", "update"]))
            .with_context(|| format!("fetch the package lists of {}", self.name))?;
        fs::write(&stamp, "").context("note the time of the package lists")
    }

    /// Versions of a package, newest first.
    pub fn versions(&self, package: &str) -> Result<Vec<String>> {
        let text = run::capture(self.apt("apt-cache").args(["madison", package]))?;
        Ok(text.lines().filter_map(|l| l.split('|').nth(1)).map(|v| v.trim().to_owned()).collect())
    }

    /// Names of all packages that begin so.
    pub fn names(&self, prefix: &str) -> Result<Vec<String>> {
        Ok(run::capture(self.apt("apt-cache").args(["pkgnames", prefix]))?.lines().map(str::to_owned).collect())
    }

    /// Downloads packages (`name` or `name=version`) and unpacks them under a directory.
    pub fn unpack(&self, packages: &[String], to: &Path) -> Result<()> {
        let debs = to.join(".debs");
        fs::create_dir_all(&debs).with_context(|| format!("create {}", debs.display()))?;
        run::capture(
            self.apt("apt-get").args(["-q", "-o", "Acquire::Retries=3", "download"]).args(packages).current_dir(&debs),
        )
        .with_context(|| format!("download {} of {}", packages.join(" "), self.name))?;
        let files = fs::read_dir(&debs)?.map(|e| Ok(e?.path())).collect::<Result<Vec<_>>>()?;
        if files.len() < packages.len() {
            bail!("{} packages of {} were asked for, {} came", packages.len(), self.name, files.len());
        }
        for deb in &files {
            run::capture(self.ws.command("dpkg-deb").arg("-x").arg(deb).arg(to))?;
        }
        fs::remove_dir_all(&debs).with_context(|| format!("remove {}", debs.display()))
    }

    /// An apt program that works on this suite alone.
    fn apt(&self, program: &str) -> Command {
        let mut command = self.ws.command(program);
        let file = |name: &str| self.state.join(name).display().to_string();
        for option in [
            format!("Dir::Etc::sourcelist={}", file("sources.list")),
            "Dir::Etc::sourceparts=-".to_owned(),
            format!("Dir::State::Lists={}", file("lists")),
            format!("Dir::Cache={}", file("cache")),
            format!("Dir::State::status={}", file("status")),
            // The cache is ours, not of apt's own user.
            "APT::Sandbox::User=root".to_owned(),
            "Acquire::Languages=none".to_owned(),
            // A suite of the past is still signed, only its lists are called outdated.
            "Acquire::Check-Valid-Until=false".to_owned(),
        ] {
            command.arg("-o").arg(option);
        }
        command
    }
}

/// The release that this machine has, such as `bookworm`.
pub fn codename() -> Option<String> {
    Some(codename_of(&fs::read_to_string("/etc/os-release").ok()?)?.to_owned())
}

fn codename_of(release: &str) -> Option<&str> {
    release.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME=")).map(|name| name.trim_matches('"'))
}

/// Mirrors (address, suites) of this machine's apt configuration.
fn configured() -> Vec<(String, Vec<String>)> {
    let mut files = vec![PathBuf::from("/etc/apt/sources.list")];
    if let Ok(dir) = fs::read_dir("/etc/apt/sources.list.d") {
        files.extend(
            dir.flatten().map(|e| e.path()).filter(|p| p.extension().is_some_and(|e| e == "list" || e == "sources")),
        );
    }
    files.sort();
    files.iter().filter_map(|f| fs::read_to_string(f).ok()).flat_map(|text| parse_sources(&text)).collect()
}

/// Reads both forms of apt's source files; only Debian's own archives (by their path) are given.
fn parse_sources(text: &str) -> Vec<(String, Vec<String>)> {
    let mut found = Vec::new();
    let (mut uris, mut suites): (Vec<String>, Vec<String>) = (Vec::new(), Vec::new());
    let words = |s: &str| s.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    for line in text.lines().chain([""]) {
        let line = line.trim();
        if line.starts_with('#') {
            continue;
        }
        if let Some(rest) = line.strip_prefix("URIs:") {
            uris = words(rest);
        } else if let Some(rest) = line.strip_prefix("Suites:") {
            suites = words(rest);
        } else if let Some(rest) = line.strip_prefix("deb ") {
            let rest = rest.trim_start();
            let rest = if rest.starts_with('[') { rest.split_once(']').map_or("", |(_, r)| r) } else { rest };
            let mut parts = rest.split_whitespace();
            if let (Some(uri), Some(suite)) = (parts.next(), parts.next()) {
                found.push((uri.to_owned(), vec![suite.to_owned()]));
            }
        } else if line.is_empty() {
            found.extend(uris.drain(..).map(|uri| (uri, suites.clone())));
            suites.clear();
        }
    }
    for (uri, _) in &mut found {
        *uri = uri.trim_end_matches('/').to_owned();
    }
    found.retain(|(uri, _)| uri.ends_with("/debian") || uri.ends_with("/debian-security"));
    found
}

/// The mirror that has a suite: security suites live in an archive of their own, beside the main one.
fn for_suite(suite: &str, mirrors: &[(String, Vec<String>)]) -> Option<String> {
    let (own, other) =
        if suite.ends_with("-security") { ("/debian-security", "/debian") } else { ("/debian", "/debian-security") };
    let by_path = |path: &str| mirrors.iter().map(|(uri, _)| uri).find(|uri| uri.ends_with(path));
    by_path(own)
        .cloned()
        .or_else(|| by_path(other).and_then(|uri| uri.strip_suffix(other)).map(|base| format!("{base}{own}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_both_forms_of_source_files() {
        let deb822 = "Types: deb\n# URIs: http://old/debian\nURIs: http://m.test/debian/\nSuites: bookworm bookworm-updates\n\n\
                      Types: deb\nURIs: http://m.test/debian-security\nSuites: bookworm-security\n";
        let one_line = "deb [arch=amd64 signed-by=/k] http://x.test/debian bookworm main\ndeb http://other.test/tools stable main\n";
        assert_eq!(
            parse_sources(deb822).iter().map(|(u, s)| (u.as_str(), s.len())).collect::<Vec<_>>(),
            [("http://m.test/debian", 2), ("http://m.test/debian-security", 1)]
        );
        assert_eq!(parse_sources(one_line), [("http://x.test/debian".to_owned(), vec!["bookworm".to_owned()])]);
    }

    #[test]
    fn the_release_stands_in_os_release() {
        assert_eq!(codename_of("NAME=\"Debian\"\nVERSION_CODENAME=bookworm\n"), Some("bookworm"));
        assert_eq!(codename_of("ID=arch\nVERSION_CODENAME=\"x\""), Some("x"));
        assert_eq!(codename_of("ID=arch"), None);
    }

    #[test]
    fn finds_the_security_archive_beside_the_main_one() {
        let main = [("http://m.test/debian".to_owned(), Vec::new())];
        assert_eq!(for_suite("bullseye-security", &main).as_deref(), Some("http://m.test/debian-security"));
        assert_eq!(for_suite("sid", &main).as_deref(), Some("http://m.test/debian"));
        assert_eq!(for_suite("sid", &[]), None);
    }
}
