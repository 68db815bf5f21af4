//! `cargo xtask verifier`: what the kernels' verifiers say of each program, and whether the programs grew.

use std::{collections::BTreeMap, fmt::Write as _, fs, process::ExitCode, time::Duration};

use anyhow::{Context as _, Result, bail};

use crate::{
    build::{self, Profile},
    libtest::{self, Verified},
    run::{self, Ended, Read},
    setup::{self, Need},
    test, ui, vm,
    workspace::{self, Workspace},
};

/// The committed figures, relative to the workspace's root: for people, and read back for comparison.
const TABLE: &str = "docs/verifier.md";
/// Growth that is too much, in percent.
const GROWTH: u64 = 20;
/// Instructions that the verifier may walk in a program, on any kernel. The kernel itself gives up at a million.
const LIMIT: u64 = 100_000;
/// What `--kernel` calls the kernel that runs here.
const HERE: &str = "host";

/// Load each program on each kernel, and show what the verifiers say: instructions, sizes, stack, time.
///
/// The kernels are this one and those of `cargo xtask vm`, in virtual machines. The committed figures are docs/verifier.md.
/// Needs root.
#[derive(clap::Args)]
pub struct Args {
    /// Only on these kernels: `host` is this one, the others run in virtual machines
    #[arg(long, value_name = "V", value_delimiter = ',')]
    kernel: Vec<String>,
    /// Fail when a program grew by more than 20 % against docs/verifier.md, or passes 100,000 verified instructions
    #[arg(long, conflicts_with = "bless")]
    check: bool,
    /// Write the figures into docs/verifier.md
    #[arg(long)]
    bless: bool,
}

/// A program's figures on a kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Row {
    figures: Verified,
    /// The time is that of an emulated machine.
    emulated: bool,
}

/// Figures by program, then by kernel series (`6.18`).
type Table = BTreeMap<String, BTreeMap<Series, Row>>;

/// A kernel's series, to be sorted by age.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Series(u32, u32);

impl Series {
    fn parse(text: &str) -> Option<Self> {
        let (major, minor) = text.split_once('.')?;
        Some(Self(major.parse().ok()?, minor.parse().ok()?))
    }
}

impl std::fmt::Display for Series {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.0, self.1)
    }
}

/// The verb.
pub fn main(ws: &Workspace, args: &Args) -> Result<ExitCode> {
    let all = args.kernel.is_empty();
    let (here_too, named): (Vec<_>, Vec<_>) = args.kernel.iter().cloned().partition(|k| k == HERE);
    let machines = if all || !named.is_empty() { vm::kernels(&named)? } else { Vec::new() };
    workspace::require_root("loading programs")?;
    setup::ensure(ws, &[Need::Bpf, Need::Lab])?;
    if !machines.is_empty() {
        setup::ensure(ws, &[Need::Vm])?;
    }
    // The agent and its like are not needed to load programs.
    let built = build::Built { object: build::bpf_object(ws)?, bin_dir: ws.bin_dir(Profile::Release.dir()) };
    let binaries = test::test_binaries_of(ws, &built.object, &["verified"])?;
    let mut kernels = Vec::new();
    if all || !here_too.is_empty() {
        kernels.push((running_kernel()?, false, here(ws, &built, &binaries)?));
    }
    if !machines.is_empty() {
        let order = vm::Order { kernels: machines, plan: vm::Plan::Verifier, jobs: None, accel: vm::Wish::Auto };
        for outcome in vm::run(ws, &order, &built, &binaries)? {
            if let Some(why) = outcome.failure() {
                bail!("kernel {}: {why}", outcome.name);
            }
            kernels.push((series(&outcome.release), outcome.emulated, outcome.verified));
        }
    }
    let committed = read(ws)?;
    let mut now = Table::new();
    let mut wrong = Vec::new();
    for (kernel, emulated, figures) in kernels {
        let kernel = parse_series(&kernel)?;
        if figures.is_empty() {
            bail!("kernel {kernel}: no figures: the packet tests printed no line `verified: PROGRAM ...`");
        }
        if !committed.values().any(|row| row.contains_key(&kernel)) {
            ui::note(&format!("{TABLE} has no figures of kernel {kernel}: nothing to compare with"));
        }
        wrong.extend(too_much(&committed, kernel, &figures));
        wrong.extend(gone(&committed, kernel, &figures));
        for figures in figures {
            now.entry(figures.program.clone()).or_default().insert(kernel, Row { figures, emulated });
        }
    }
    print!("{}", show(&now, &committed));
    let programs = now.len();
    if args.bless {
        let blessed = if all { now } else { replace(committed, now) };
        fs::write(ws.root.join(TABLE), render(&blessed)).with_context(|| format!("write {TABLE}"))?;
        println!("verifier: {programs} programs, {TABLE} written");
        return Ok(ExitCode::SUCCESS);
    }
    for text in &wrong {
        ui::error(text);
    }
    println!("verifier: {programs} programs, {} findings against {TABLE}", wrong.len());
    Ok(if args.check && !wrong.is_empty() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
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

/// Compares figures with the committed table; gives a sentence for each program that is too large or grew too much.
pub fn compare(ws: &Workspace, kernel: &str, figures: &[Verified]) -> Result<Vec<String>> {
    Ok(too_much(&read(ws)?, parse_series(kernel)?, figures))
}

fn parse_series(text: &str) -> Result<Series> {
    Series::parse(text).with_context(|| format!("`{text}` is no kernel's series"))
}

const BLESS: &str = "accept it by `cargo xtask verifier --bless` and say why in the commit";

fn too_much(table: &Table, kernel: Series, figures: &[Verified]) -> Vec<String> {
    let known = table.values().any(|row| row.contains_key(&kernel));
    let mut wrong = Vec::new();
    for now in figures {
        let name = &now.program;
        if now.insns > LIMIT {
            wrong.push(format!(
                "{name} on {kernel}: {} verified instructions, more than {LIMIT}: bound its loops, or split it",
                now.insns
            ));
        }
        match table.get(name).and_then(|row| row.get(&kernel)) {
            Some(Row { figures: before, .. }) => {
                let pairs = [("verified instructions", now.insns, before.insns), ("bytes", now.xlated, before.xlated)];
                wrong.extend(pairs.iter().filter(|(_, now, before)| now * 100 > before * (100 + GROWTH)).map(
                    |(what, now, before)| {
                        format!(
                            "{name} on {kernel}: {now} {what}, {before} before, more than {GROWTH} % growth: make it smaller, or \
                             {BLESS}"
                        )
                    },
                ));
            }
            None if known => wrong.push(format!("{name} on {kernel}: is not in {TABLE}: {BLESS}")),
            None => {}
        }
    }
    wrong
}

/// A sentence for each program that the table has and the kernel was not given.
fn gone(table: &Table, kernel: Series, figures: &[Verified]) -> Vec<String> {
    let rows =
        table.iter().filter(|(name, row)| row.contains_key(&kernel) && !figures.iter().any(|f| f.program == **name));
    rows.map(|(name, _)| format!("{name} on {kernel}: is in {TABLE} and was not loaded: {BLESS}")).collect()
}

/// The table with new figures for the kernels that were asked, and the old ones for the others.
fn replace(mut table: Table, now: Table) -> Table {
    let asked: Vec<Series> = now.values().flat_map(|row| row.keys().copied()).collect();
    table.values_mut().for_each(|row| row.retain(|kernel, _| !asked.contains(kernel)));
    for (program, row) in now {
        table.entry(program).or_default().extend(row);
    }
    table.retain(|_, row| !row.is_empty());
    table
}

fn here(ws: &Workspace, built: &build::Built, binaries: &[test::TestBinary]) -> Result<Vec<Verified>> {
    let mut figures = Vec::new();
    for binary in binaries {
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
        Ok(text) => parse(&text),
        // The table is written by the first `--bless`.
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Table::new()),
        Err(e) => Err(e).with_context(|| format!("read {TABLE}")),
    }
}

/// Above the table.
const HEAD: &str = "\
# What the verifiers say of the programs

<!-- Generated by `cargo xtask verifier --bless`, and read back by `--check`: do not edit. -->

Each program, loaded as it ships on each kernel that is tested. `cargo xtask verifier --check` fails when a program grows by more than
20 % against this table, in verified instructions or bytes, or passes 100,000 verified instructions on any kernel.

* **verified**: instructions that the verifier walked; it gives up at a million.
* **xlated**, **jited**: bytes of BPF instructions after the verifier, and of machine code.
* **stack**: bytes along the deepest chain of calls, function by function. The kernel allows 512, and counts each function in steps
  of up to 32.
* **load**: milliseconds of `BPF_PROG_LOAD`, the middle one of five; shown, never compared. *Emulated*: in a virtual machine without
  KVM, 10 to 30 times slower than the same kernel on hardware.

| program | kernel | verified | xlated | jited | stack | load |
| --- | --- | ---: | ---: | ---: | --- | --- |
";

fn render(table: &Table) -> String {
    let mut text = HEAD.to_owned();
    for (program, row) in table {
        for (kernel, Row { figures: f, emulated }) in row {
            let sum: u64 = f.stack.split('+').filter_map(|n| n.parse::<u64>().ok()).sum();
            let load =
                format!("{}.{:03}{}", f.load_us / 1000, f.load_us % 1000, if *emulated { " emulated" } else { "" });
            // Writing to a String cannot fail.
            let _unfailing = writeln!(
                text,
                "| `{program}` | {kernel} | {} | {} | {} | {sum} = {} | {load} |",
                f.insns, f.xlated, f.jited, f.stack
            );
        }
    }
    text
}

fn parse(text: &str) -> Result<Table> {
    let mut table = Table::new();
    for line in text.lines().filter(|l| l.starts_with("| `")) {
        let (kernel, row) = parse_row(line).with_context(|| format!("{TABLE}: cannot read the row `{line}`"))?;
        table.entry(row.figures.program.clone()).or_default().insert(kernel, row);
    }
    Ok(table)
}

fn parse_row(line: &str) -> Option<(Series, Row)> {
    let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
    let [program, kernel, insns, xlated, jited, stack, load] = cells.as_slice() else { return None };
    let (time, emulated) = load.strip_suffix(" emulated").map_or((*load, false), |time| (time, true));
    let (ms, us) = time.split_once('.')?;
    let figures = Verified {
        program: program.trim_matches('`').to_owned(),
        insns: insns.parse().ok()?,
        xlated: xlated.parse().ok()?,
        jited: jited.parse().ok()?,
        stack: stack.split_once(" = ")?.1.to_owned(),
        load_us: ms.parse::<u64>().ok()? * 1000 + us.parse::<u64>().ok()?,
    };
    Some((Series::parse(kernel)?, Row { figures, emulated }))
}

/// The figures for a terminal; what differs from the committed table shows that figure too.
fn show(now: &Table, committed: &Table) -> String {
    let mut rows = Vec::new();
    for (program, row) in now {
        for (kernel, Row { figures, emulated }) in row {
            let before = committed.get(program).and_then(|row| row.get(kernel)).map(|row| &row.figures);
            let cell = |of: fn(&Verified) -> u64| match before.map(of) {
                Some(b) if b != of(figures) => format!("{} (was {b})", of(figures)),
                _ => of(figures).to_string(),
            };
            let load = format!("{:.1}{}", figures.load_us as f64 / 1e3, if *emulated { " emulated" } else { "" });
            let sizes = [cell(|f| f.insns), cell(|f| f.xlated), cell(|f| f.jited), figures.stack.clone(), load];
            rows.push([program.clone(), kernel.to_string()].into_iter().chain(sizes).collect());
        }
    }
    ui::table(&["program", "kernel", "verified", "xlated", "jited", "stack", "load ms"], &rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: Series = Series(6, 1);
    const NEW: Series = Series(6, 18);

    fn figures(program: &str, insns: u64) -> Verified {
        let stack = "96+16+0".to_owned();
        Verified { program: program.to_owned(), insns, xlated: 800, jited: 500, stack, load_us: 24_005 }
    }

    fn table(rows: &[(Series, Verified)]) -> Table {
        let mut table = Table::new();
        for (kernel, figures) in rows {
            let row = Row { figures: figures.clone(), emulated: *kernel == OLD };
            table.entry(figures.program.clone()).or_default().insert(*kernel, row);
        }
        table
    }

    #[test]
    fn takes_the_series_of_a_release() {
        assert_eq!(series("6.18.44-fc-v509\n"), "6.18");
        assert_eq!(series("5.10.0-46-cloud-amd64"), "5.10");
    }

    #[test]
    fn a_fifth_more_is_the_limit() {
        let committed = table(&[(OLD, figures("from_pod", 1000))]);
        let grown = |n| too_much(&committed, OLD, &[figures("from_pod", n)]).len();
        assert_eq!((grown(1200), grown(1201)), (0, 1));
        let larger = |xlated| too_much(&committed, OLD, &[Verified { xlated, ..figures("from_pod", 1000) }]).len();
        assert_eq!((larger(960), larger(961)), (0, 1));
    }

    #[test]
    fn a_hundred_thousand_instructions_are_the_limit_even_where_they_were_there_before() {
        let committed = table(&[(OLD, figures("from_pod", 100_001))]);
        let found = |kernel, n| too_much(&committed, kernel, &[figures("from_pod", n)]).len();
        assert_eq!((found(OLD, 100_000), found(OLD, 100_001)), (0, 1));
        assert_eq!(found(NEW, 100_001), 1, "a kernel that the table does not have");
    }

    #[test]
    fn a_kernel_without_figures_is_not_compared() {
        let committed = table(&[(OLD, figures("from_pod", 1000))]);
        assert!(too_much(&committed, NEW, &[figures("from_pod", 9000), figures("from_host", 1)]).is_empty());
        assert!(gone(&committed, NEW, &[]).is_empty());
    }

    #[test]
    fn a_program_that_the_table_lacks_or_that_is_gone_is_found() {
        let committed = table(&[(OLD, figures("from_pod", 1000))]);
        let found = too_much(&committed, OLD, &[figures("from_pod", 1000), figures("from_host", 1)]);
        assert!(found.len() == 1 && found[0].starts_with("from_host on 6.1: is not in"), "{found:?}");
        let found = gone(&committed, OLD, &[figures("from_host", 1)]);
        assert!(found.len() == 1 && found[0].starts_with("from_pod on 6.1: is in"), "{found:?}");
    }

    #[test]
    fn what_is_written_is_read_back() {
        let written = table(&[(OLD, figures("from_pod", 1000)), (NEW, figures("from_pod", 900))]);
        let text = render(&written);
        assert!(
            text.contains("\n| `from_pod` | 6.1 | 1000 | 800 | 500 | 112 = 96+16+0 | 24.005 emulated |\n"),
            "{text}"
        );
        assert_eq!(parse(&text).unwrap(), written);
        assert!(parse(&text.replace("| 900 |", "| many |")).is_err());
    }

    #[test]
    fn new_figures_of_one_kernel_leave_the_others_and_drop_what_is_gone() {
        let before = [(OLD, figures("from_pod", 1)), (NEW, figures("from_pod", 2)), (NEW, figures("gone", 3))];
        let after = replace(table(&before), table(&[(NEW, figures("from_pod", 4))]));
        assert_eq!(after, table(&[(OLD, figures("from_pod", 1)), (NEW, figures("from_pod", 4))]));
    }

    #[test]
    fn shows_kernels_by_age_and_what_changed() {
        let now = table(&[(NEW, figures("from_pod", 10)), (Series(6, 2), figures("from_pod", 30))]);
        let text = show(&now, &table(&[(NEW, figures("from_pod", 9))]));
        let kernels: Vec<&str> = text.lines().filter_map(|l| l.split_whitespace().nth(1)).collect();
        assert_eq!(kernels, ["kernel", "6.2", "6.18"]);
        assert!(text.contains("10 (was 9)"), "{text}");
    }
}
