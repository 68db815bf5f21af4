//! What `weft observe` says of a node.
use std::{
    io::{BufRead as _, BufReader},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::{Lab, pause};

impl Lab {
    /// The first line that it says on a node, asked for it with these words, while something is done again and again: nobody knows when it listens.
    ///
    /// # Errors
    /// When it says nothing within 20 seconds, or can not be started.
    pub fn observed(&self, node: &str, words: &[&str], act: impl Fn()) -> Result<Value> {
        let mut weft = Command::new(self.bin_dir().join("weft"))
            .args(["observe", "--json", "--count", "1", "--timeout", "20"])
            .args(words)
            .arg("--socket")
            .arg(self.node(node)?.paths().api_socket())
            .stdout(Stdio::piped())
            .spawn()
            .context("start weft observe")?;
        let mut lines = BufReader::new(weft.stdout.take().context("a pipe")?).lines();
        let line = std::thread::scope(|scope| {
            let heard = scope.spawn(|| lines.next());
            while !heard.is_finished() {
                act();
                pause();
            }
            heard.join().ok().flatten()
        });
        let ended = weft.wait().context("wait for weft observe")?;
        let line = line.with_context(|| format!("weft observe {words:?} has said nothing"))??;
        ensure!(ended.success(), "weft observe {words:?}: {ended}");
        serde_json::from_str(&line).with_context(|| format!("not JSON: {line}"))
    }
}
