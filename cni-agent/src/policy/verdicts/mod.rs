//! `weft policy verdicts`: a cluster's policies, judged without a cluster.
//!
//! | file | what changes it |
//! |---|---|
//! | `case` | the form of the input |
//! | `world` | the cluster of a case, and the agents of its nodes |
//! | `matrix` | who asks whom, and the form of the answer |
//! | `explain` | the words for one flow |
pub mod case;
mod explain;
mod frames;
pub(crate) mod matrix;
pub mod programs;
pub(crate) mod world;

use std::convert::Infallible;

use cni_ebpf::policy::SOURCES;
use serde::Serialize;
use sha2::{Digest, Sha256};

pub use self::{
    case::{BadCase, Case},
    explain::Question,
    matrix::Matrix,
    programs::{Programs, ProgramsError},
    world::{Mode, World},
};

/// What is answered to a case.
#[derive(Clone, Debug, Serialize)]
pub struct Answer {
    schema: &'static str,
    id: String,
    engine: EngineInfo,
    /// One for each step.
    pub steps: Vec<Matrix>,
    /// How much it took.
    pub stats: Stats,
    /// What in the policies was not as it should be; such a part matches nothing, such an object changes nothing.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<String>,
}

#[derive(Clone, Debug, Serialize)]
struct EngineInfo {
    version: &'static str,
    lookup: &'static str,
    lookup_source_sha256: String,
}

/// Of the node with the most, after the last step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Stats {
    map_entries: usize,
    max_entries_per_endpoint: usize,
    identities: usize,
}

/// Judges a case, natively.
///
/// # Errors
/// When it says what it cannot.
pub fn judge(case: &Case, mode: Mode) -> Result<Answer, BadCase> {
    let mut world = World::new(case, mode)?;
    let mut steps = Vec::new();
    for step in &case.steps {
        world.step(&step.ops)?;
        let matrix = matrix::matrix(&world, case, |src, dst, probe| Ok(matrix::sides(&world, src, dst, probe)));
        steps.push(matrix.unwrap_or_else(|never: Infallible| match never {}));
    }
    Ok(answer(&world, case, "native", steps))
}

/// Judges a case by the loaded programs.
///
/// # Errors
/// When it says what it cannot, or the programs cannot be asked.
pub fn judge_by(programs: &mut Programs, case: &Case, mode: Mode) -> Result<Answer, JudgeError> {
    let mut world = World::new(case, mode)?;
    world.record();
    programs.begin(case)?;
    let mut steps = Vec::new();
    for step in &case.steps {
        world.step(&step.ops)?;
        programs.follow(&mut world)?;
        steps.push(matrix::matrix(&world, case, |src, dst, probe| programs.sides(&world, src, dst, probe))?);
    }
    Ok(answer(&world, case, "bpf", steps))
}

/// Why a case was not judged by the programs.
#[derive(Debug, thiserror::Error)]
pub enum JudgeError {
    /// It is the case's fault.
    #[error(transparent)]
    Case(#[from] BadCase),
    /// Theirs, or the kernel's.
    #[error(transparent)]
    Programs(#[from] ProgramsError),
}

fn answer(world: &World, case: &Case, lookup: &'static str, steps: Vec<Matrix>) -> Answer {
    let sizes = world.sizes();
    let of = |part: fn(&crate::policy::engine::Sizes) -> usize| sizes.iter().map(part).max().unwrap_or_default();
    Answer {
        schema: "netpol-verdict-result/1",
        id: case.id.clone(),
        engine: EngineInfo { version: env!("CARGO_PKG_VERSION"), lookup, lookup_source_sha256: sources_digest() },
        steps,
        stats: Stats {
            map_entries: of(|s| s.entries),
            max_entries_per_endpoint: of(|s| s.most_of_endpoint),
            identities: of(|s| s.identities),
        },
        problems: world.problems().to_vec(),
    }
}

/// Says in words why a flow of a case may pass or not.
///
/// # Errors
/// When the case has no such step, endpoint or probe.
pub fn explain(case: &Case, mode: Mode, question: &Question) -> Result<String, BadCase> {
    let mut world = World::new(case, mode)?;
    let steps = case
        .steps
        .get(..=question.step)
        .ok_or_else(|| BadCase::new("--explain", format!("the case has {} steps, counted from 0", case.steps.len())))?;
    for step in steps {
        world.step(&step.ops)?;
    }
    explain::explain(&world, case, question)
}

/// Which look-up it was.
fn sources_digest() -> String {
    let mut hash = Sha256::new();
    SOURCES.iter().for_each(|text| hash.update(text.as_bytes()));
    hash.finalize().iter().map(|b| format!("{b:02x}")).collect()
}
