//! The suite `docs`: runs the commands that README.md and docs/ tell people to type.

use std::{fs, path::PathBuf, process::Command, time::Duration};

use anyhow::{Context as _, Result};

use crate::{
    libtest::Counts,
    run::{self, Ended, Read},
    ui::Stage,
    workspace::Workspace,
};

/// Commands that are not run: those of this very test, those that take as long, and those that fetch what is here.
const LEFT_OUT: [&str; 5] =
    ["cargo xtask test", "cargo xtask vm", "cargo xtask bench", "cargo xtask accept", "git clone"];
/// How long the commands of one block may take.
const LIMIT: Duration = Duration::from_secs(10 * 60);

/// A fenced block whose info string is `sh`.
#[derive(Debug, PartialEq, Eq)]
struct Block {
    /// Line of its first command, counted from 1.
    line: usize,
    /// The commands, without those that are left out.
    script: String,
}

/// Runs every block of every document, each by a bash of its own from the workspace's root; a block is a test.
pub fn run(ws: &Workspace) -> Result<Counts> {
    let mut counts = Counts::default();
    for file in documents(ws)? {
        let name = ws.show(&file).to_string();
        let text = fs::read_to_string(&file).with_context(|| format!("read {name}"))?;
        for block in blocks(&text) {
            let place = format!("{name}:{}", block.line);
            let stage = Stage::start(&place);
            for line in block.script.lines() {
                println!("    $ {line}");
            }
            let mut command: Command = ws.command("bash");
            // The caller's directory of artefacts stays in force for the commands, as for anybody who types them.
            command.args(["-euo", "pipefail", "-c", &block.script]);
            match run::stream(&mut command, Read::Both, LIMIT, |line| println!("    {line}"))? {
                Ended::Well => {
                    stage.done("");
                    counts.passed += 1;
                }
                ended => {
                    let why = match ended {
                        Ended::TimedOut => "took too long",
                        Ended::Badly(_) | Ended::Well => "ended with an error",
                    };
                    stage.failed(why);
                    counts.fail(format!("{place}: {why}"));
                }
            }
        }
    }
    Ok(counts)
}

/// README.md, then docs/*.md by name.
fn documents(ws: &Workspace) -> Result<Vec<PathBuf>> {
    let mut files: Vec<PathBuf> = fs::read_dir(ws.root.join("docs"))
        .context("list docs/")?
        .map(|e| Ok(e?.path()))
        .collect::<std::io::Result<Vec<_>>>()
        .context("list docs/")?;
    files.retain(|f| f.extension().is_some_and(|e| e == "md"));
    files.sort();
    files.insert(0, ws.root.join("README.md"));
    Ok(files)
}

fn blocks(text: &str) -> Vec<Block> {
    let mut found = Vec::new();
    let mut open: Option<(usize, bool, String)> = None;
    for (n, line) in text.lines().enumerate() {
        let fence = line.trim_start().strip_prefix("```");
        match (&mut open, fence) {
            (None, Some(info)) => open = Some((n + 2, info.trim() == "sh", String::new())),
            (Some(_), Some(_)) => {
                if let Some((line, true, script)) = open.take()
                    && !script.trim().is_empty()
                {
                    found.push(Block { line, script });
                }
                open = None;
            }
            (Some((_, true, script)), None) if !LEFT_OUT.iter().any(|c| line.trim_start().starts_with(c)) => {
                script.push_str(line);
                script.push('\n');
            }
            _ => {}
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_shell_blocks_only() {
        let text = "# Weft\n```sh\ncargo xtask lab\n```\n```sh no-run\nrm -rf x\n```\n```text\noutput\n```\n  ```sh\n  true\n  ```\n";
        let found = blocks(text);
        assert_eq!(found.iter().map(|b| b.line).collect::<Vec<_>>(), [3, 12]);
        assert_eq!(found[0].script, "cargo xtask lab\n");
    }

    #[test]
    fn leaves_out_what_would_run_the_tests_again() {
        let text = "```sh\ncargo xtask test --suite native\n```\n```sh\ngit clone somewhere\ncargo xtask lab\n```\n";
        assert_eq!(blocks(text), [Block { line: 5, script: "cargo xtask lab\n".to_owned() }]);
    }
}
