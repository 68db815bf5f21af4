//! `cargo xtask verifier`: how many instructions the kernel's verifier walks for each program, and whether they grew.

use std::{collections::BTreeMap, fs, process::ExitCode, time::Duration};

use anyhow::{Context as _, Result, bail};

use crate::{
    build::{self, Profile},
    libtest,
    run::{self, Ended, Read},
    setup::{self, Need},
    test, ui, vm,
    workspace::{self, Workspace},
};

/// The committed figures, relative to the workspace's root.
const TABLE: &str = "tests/packets/verified.toml";
/// Growth that is too much, in percent.
const GROWTH: u64 = 20;

/// Print the instructions that the verifier walks, by program and kernel.
///
/// Loads every program on this kernel, and with --kernel in virtual machines too, and compares with the committed table
/// tests/packets/verified.toml: growth of more than 20 % fails. Needs root.
#[derive(clap::Args)]
pub struct Args {
    /// Also on this kernel, in a virtual machine; may be given several times
    #[arg(long, value_name = "V")]
    kernel: Vec<String>,
    /// Write the figures into the committed table
    #[arg(long)]
    bless: bool,
}

/// Figures by program, then by kernel series (`6.18`).
type Table = BTreeMap<String, BTreeMap<String, u64>>;

/// The verb.
pub fn main(ws: &Workspace, args: &Args) -> Result<ExitCode> {
    workspace::require_root("loading programs")?;
    let mut needs = vec![Need::Bpf, Need::Lab];
    if !args.kernel.is_empty() {
        needs.push(Need::Vm);
    }
    setup::ensure(ws, &needs)?;
    // The agent and its like are not needed to load programs.
    let built = build::Built { object: build::bpf_object(ws)?, bin_dir: ws.bin_dir(Profile::Release.dir()) };
    let binaries = test::test_binaries(ws, &built.object, &["packets"])?;
    let mut figures = vec![(running_kernel()?, here(ws, &built, &binaries)?)];
    for kernel in &args.kernel {
        let outcome = vm::boot(ws, kernel, &vm::Plan::Verifier, &built, &binaries)?;
        if let Some(why) = outcome.failure() {
            bail!("kernel {kernel}: {why}");
        }
        figures.push((series(&outcome.release), outcome.verified));
    }
    if figures.iter().all(|(_, f)| f.is_empty()) {
        bail!("no figures: the packet tests printed no line `verified: PROGRAM N`");
    }
    let committed = read(ws)?;
    let mut now = Table::new();
    let mut grown = Vec::new();
    for (kernel, figures) in &figures {
        if figures.is_empty() {
            ui::note(&format!("{kernel}: its verifier reports no figures"));
        }
        for (program, count) in figures {
            now.entry(program.clone()).or_default().insert(kernel.clone(), *count);
        }
        grown.extend(growth(&committed, kernel, figures));
    }
    print!("{}", show(&now, &committed));
    if args.bless {
        let mut table = committed;
        for (program, row) in now {
            table.entry(program).or_default().extend(row);
        }
        write(ws, &table)?;
        println!("verifier: {TABLE} written");
        return Ok(ExitCode::SUCCESS);
    }
    for text in &grown {
        ui::error(text);
    }
    println!("verifier: {} programs, {} grew by more than {GROWTH} %", now.len(), grown.len());
    Ok(if grown.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The running kernel's series.
pub fn running_kernel() -> Result<String> {
    Ok(series(&fs::read_to_string("/proc/sys/kernel/osrelease").context("read the kernel's release")?))
}

/// `6.18` of `6.18.44-cloud-amd64`.
pub fn series(release: &str) -> String {
    let digits = |part: &str| part.chars().take_while(char::is_ascii_digit).collect::<String>();
    release.trim().split('.').take(2).map(digits).collect::<Vec<_>>().join(".")
}

/// Compares figures with the committed table; gives a sentence for each program that grew too much.
pub fn compare(ws: &Workspace, kernel: &str, figures: &[(String, u64)]) -> Result<Vec<String>> {
    Ok(growth(&read(ws)?, kernel, figures))
}

fn growth(table: &Table, kernel: &str, figures: &[(String, u64)]) -> Vec<String> {
    let grew = |(program, now): &(String, u64)| {
        let before = *table.get(program)?.get(kernel)?;
        (*now * 100 > before * (100 + GROWTH)).then(|| {
            format!(
                "{program} on {kernel}: {now} verified instructions, {before} before, more than {GROWTH} % growth: make it \
                 smaller, or accept it by `cargo xtask verifier --bless` and say why in the commit"
            )
        })
    };
    figures.iter().filter_map(grew).collect()
}

fn here(ws: &Workspace, built: &build::Built, binaries: &[test::TestBinary]) -> Result<Vec<(String, u64)>> {
    let mut figures = Vec::new();
    for binary in binaries.iter().filter(|b| b.package == "packets") {
        let mut command = ws.command(&binary.file);
        command.args(["verified", "--show-output", "--test-threads=1"]).env("WEFT_BIN_DIR", &built.bin_dir);
        let mut log = String::new();
        let ended = run::stream(&mut command, Read::Both, Duration::from_secs(300), |line| {
            log.push_str(line);
            log.push('\n');
            figures.extend(libtest::verified(line));
        })?;
        if ended != Ended::Well {
            bail!("the packet tests could not load the programs:\n{}", run::tail(&log, 30));
        }
    }
    Ok(figures)
}

fn read(ws: &Workspace) -> Result<Table> {
    match fs::read_to_string(ws.root.join(TABLE)) {
        Ok(text) => toml::from_str(&text).with_context(|| format!("read {TABLE}")),
        // The table is written by the first `--bless`.
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Table::new()),
        Err(e) => Err(e).with_context(|| format!("read {TABLE}")),
    }
}

fn write(ws: &Workspace, table: &Table) -> Result<()> {
    let text = format!(
        "# Instructions that the verifier walks, by program and kernel. Written by `cargo xtask verifier --bless`; growth of more\n\
         # than {GROWTH} % fails `cargo xtask test` and `cargo xtask verifier`.\n\n{}",
        toml::to_string(table).context("write the table")?
    );
    fs::write(ws.root.join(TABLE), text).with_context(|| format!("write {TABLE}"))
}

/// Programs by kernels; a figure that differs from the committed one shows that one too.
fn show(now: &Table, committed: &Table) -> String {
    let mut kernels: Vec<&str> = now.values().flat_map(|row| row.keys().map(String::as_str)).collect();
    kernels.sort_unstable_by_key(|k| k.split('.').map(|n| n.parse::<u32>().unwrap_or(0)).collect::<Vec<_>>());
    kernels.dedup();
    let cell = |program: &str, kernel: &str| {
        let count = now.get(program).and_then(|row| row.get(kernel));
        let before = committed.get(program).and_then(|row| row.get(kernel));
        match (count, before) {
            (None, _) => "-".to_owned(),
            (Some(n), Some(b)) if n != b => format!("{n} (was {b})"),
            (Some(n), _) => n.to_string(),
        }
    };
    let rows: Vec<Vec<String>> =
        now.keys().map(|p| [p.clone()].into_iter().chain(kernels.iter().map(|k| cell(p, k))).collect()).collect();
    let header: Vec<&str> = ["program"].into_iter().chain(kernels.iter().copied()).collect();
    ui::table(&header, &rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(program: &str, kernel: &str, count: u64) -> Table {
        [(program.to_owned(), [(kernel.to_owned(), count)].into())].into()
    }

    #[test]
    fn takes_the_series_of_a_release() {
        assert_eq!(series("6.18.44-fc-v509\n"), "6.18");
        assert_eq!(series("5.10.0-46-cloud-amd64"), "5.10");
    }

    #[test]
    fn a_fifth_more_is_the_limit() {
        let committed = table("from_pod", "6.1", 1000);
        let grown = |n| growth(&committed, "6.1", &[("from_pod".to_owned(), n)]).len();
        assert_eq!((grown(1200), grown(1201)), (0, 1));
    }

    #[test]
    fn a_program_or_kernel_without_a_figure_does_not_grow() {
        let committed = table("from_pod", "6.1", 1000);
        assert!(growth(&committed, "6.12", &[("from_pod".to_owned(), 9000)]).is_empty());
        assert!(growth(&committed, "6.1", &[("from_host".to_owned(), 9000)]).is_empty());
    }

    #[test]
    fn shows_kernels_by_age_and_what_changed() {
        let mut now = table("from_pod", "6.18", 10);
        now.get_mut("from_pod").unwrap().insert("6.2".to_owned(), 30);
        let text = show(&now, &table("from_pod", "6.18", 9));
        assert_eq!(text.lines().next().unwrap().split_whitespace().collect::<Vec<_>>(), ["program", "6.2", "6.18"]);
        assert!(text.contains("10 (was 9)"), "{text}");
    }
}
