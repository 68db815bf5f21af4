//! Images in the form of the OCI image specification (image-layout, v1.1), as one archive. The archive has Docker's own list as
//! well, for a `docker load` that knows no other.

use std::{
    fs,
    io::Write as _,
    path::Path,
    process::{Command, Stdio},
    thread,
};

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::{Dockerfile, tar::Archive};

/// Where programs are looked for in a container that says nothing else.
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// SHA-256 of a file, in hexadecimal.
pub fn digest_of(file: &Path) -> Result<String> {
    Ok(digest(&fs::read(file).with_context(|| format!("read {}", file.display()))?))
}

/// SHA-256, in hexadecimal.
pub fn digest(data: &[u8]) -> String {
    Sha256::digest(data).iter().map(|b| format!("{b:02x}")).collect()
}

/// An image of one layer.
pub fn image(name: &str, what: &Dockerfile, layer: &[u8], compressed: bool) -> Result<Vec<u8>> {
    let Some((_, tag)) = name.rsplit_once(':').filter(|(_, tag)| !tag.contains('/')) else {
        bail!("`{name}` has no tag: say NAME:TAG");
    };
    let unpacked = digest(layer);
    let (layer, kind) = if compressed { (gzip(layer)?, "tar+gzip") } else { (layer.to_vec(), "tar") };
    let mut archive = Archive::default();
    let mut blob = |data: Vec<u8>, kind: &str| {
        let (size, digest) = (data.len(), digest(&data));
        archive.file(&format!("blobs/sha256/{digest}"), 0o644, data);
        json!({"mediaType": format!("application/vnd.oci.image.{kind}"), "digest": format!("sha256:{digest}"), "size": size})
    };
    let mut environment = vec![PATH.to_owned()];
    environment.extend(what.environment.clone());
    let config = json!({
        "architecture": "amd64",
        "os": "linux",
        "config": {"Env": environment, "Entrypoint": what.entrypoint, "Cmd": what.command},
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{unpacked}")]},
        "history": [{"created_by": "cargo xtask image"}],
    });
    let layer = blob(layer, &format!("layer.v1.{kind}"));
    let config = blob(config.to_string().into_bytes(), "config.v1+json");
    let manifest = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json", "config": config, "layers": [layer],
    });
    let mut manifest = blob(manifest.to_string().into_bytes(), "manifest.v1+json");
    manifest["annotations"] = json!({"io.containerd.image.name": name, "org.opencontainers.image.ref.name": tag});
    let index =
        json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [manifest]});
    let file = |of: &Value| of["digest"].as_str().map(|d| format!("blobs/{}", d.replace(':', "/")));
    let docker = json!([{"Config": file(&config), "RepoTags": [name], "Layers": [file(&layer)]}]);
    for (name, text) in [
        ("index.json", index.to_string()),
        ("manifest.json", docker.to_string()),
        ("oci-layout", json!({"imageLayoutVersion": "1.0.0"}).to_string()),
    ] {
        archive.file(name, 0o644, text.into_bytes());
    }
    archive.bytes()
}

/// Compressed, without a name or a time in it.
fn gzip(data: &[u8]) -> Result<Vec<u8>> {
    let mut child = Command::new("gzip")
        .args(["-9", "--no-name", "--stdout"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("start gzip")?;
    let mut input = child.stdin.take().context("gzip's input")?;
    let output = thread::scope(|scope| {
        // Beside the reading of what comes out, or both would wait for each other.
        let writer = scope.spawn(move || input.write_all(data));
        let output = child.wait_with_output().context("wait for gzip")?;
        writer.join().map_err(|_| anyhow::anyhow!("the writer has panicked"))?.context("write to gzip")?;
        anyhow::Ok(output)
    })?;
    if !output.status.success() {
        bail!("gzip failed ({})", output.status);
    }
    Ok(output.stdout)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> Vec<u8> {
        let mut layer = Archive::default();
        layer.file("bin/a", 0o755, b"program".to_vec());
        let what = Dockerfile { entrypoint: vec!["/bin/a".to_owned()], ..Dockerfile::default() };
        image("weft.test/a:1", &what, &layer.bytes().unwrap(), true).unwrap()
    }

    #[test]
    fn the_same_files_give_the_same_bytes() {
        assert_eq!(digest(&example()), digest(&example()));
    }

    #[test]
    fn a_digest_is_that_of_sha256sum() {
        // FIPS 180-2, appendix B.1.
        assert_eq!(digest(b"abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }

    #[test]
    fn a_name_without_a_tag_is_refused() {
        let of = |name| image(name, &Dockerfile::default(), &[], false);
        assert!(of("weft.test:5000/a").is_err() && of("weft.test:5000/a:1").is_ok());
    }
}
