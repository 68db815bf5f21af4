//! `cargo xtask image`: Weft's container image, made without a Docker daemon out of what deploy/Dockerfile says.

mod dockerfile;
mod oci;
mod tar;

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context as _, Result, bail};

pub use self::dockerfile::Dockerfile;
use crate::{
    build::{self, Profile},
    setup::{self, Need},
    ui::{self, Stage},
    workspace::Workspace,
};

/// The largest image that we ship, in bytes: every node loads it before it has a network.
const LIMIT: u64 = 25 << 20;

/// Build Weft's container image.
///
/// Builds the programs and packs what deploy/Dockerfile says into target/image/weft.tar: an OCI image that `ctr images import`,
/// `podman load`, `docker load` and `skopeo copy oci-archive:…` take. There is no shell in it, only the static programs. The same programs give the same
/// bytes. An image of more than 25 MiB is an error.
#[derive(clap::Args)]
pub struct Args {
    /// The image's name [default: weft.test/weft:VERSION]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
}

/// The verb.
pub fn main(ws: &Workspace, args: &Args) -> Result<ExitCode> {
    setup::ensure(ws, &[Need::Bpf])?;
    let built = build::all(ws, Profile::Release)?;
    let file = weft(ws, &built.bin_dir, args.name.as_deref())?;
    let bytes = fs::metadata(&file).with_context(|| format!("look at {}", file.display()))?.len();
    let row = vec![ws.show(&file).to_string(), format!("{} KiB", bytes.div_ceil(1024)), oci::digest_of(&file)?];
    print!("{}", ui::table(&["image", "size", "sha256"], &[row]));
    Ok(ExitCode::SUCCESS)
}

/// Packs Weft's image and gives its file.
pub fn weft(ws: &Workspace, bin_dir: &Path, name: Option<&str>) -> Result<PathBuf> {
    let text = fs::read_to_string(ws.root.join("deploy/Dockerfile")).context("read deploy/Dockerfile")?;
    let dockerfile = Dockerfile::parse(&text).context("deploy/Dockerfile")?;
    let own = format!("weft.test/weft:{}", env!("CARGO_PKG_VERSION"));
    let file = ws.target.join("image/weft.tar");
    let stage = Stage::start("image");
    let bytes = pack(&dockerfile, bin_dir, name.unwrap_or(&own), true, &file)?;
    if bytes > LIMIT {
        bail!("the image has {bytes} bytes, and may have {LIMIT}: `cargo xtask build` shows what each program has");
    }
    stage.done(&format!("{} KiB", bytes.div_ceil(1024)));
    Ok(file)
}

/// Packs an image of files in `context` and gives its size in bytes.
pub fn pack(dockerfile: &Dockerfile, context: &Path, name: &str, compressed: bool, to: &Path) -> Result<u64> {
    let dir = to.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(dir).with_context(|| format!("make {}", dir.display()))?;
    let mut layer = tar::Archive::default();
    for (from, place) in &dockerfile.copies {
        let file = context.join(from);
        layer.file(place, 0o755, fs::read(&file).with_context(|| format!("read {}", file.display()))?);
    }
    let archive = oci::image(name, dockerfile, &layer.bytes()?, compressed)?;
    // Beside it first: somebody may read it at this moment.
    let staged = to.with_extension("new");
    fs::write(&staged, &archive)
        .and_then(|()| fs::rename(&staged, to))
        .with_context(|| format!("write {}", to.display()))?;
    Ok(archive.len() as u64)
}
