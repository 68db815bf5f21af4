//! Weft's table of nftables, by which the node's stack masquerades what it has translated for pods.
use tracing::{debug, info, warn};

use crate::{
    error_chain,
    netlink::nftables::own::{self, Rule, Table, TableError},
};

/// What the kernel has of it.
#[derive(Debug, Default)]
pub struct Stack {
    /// The rules that are in force; `None`: not known, or not taken.
    believed: Option<Vec<Rule>>,
    /// Why they are not those that are asked for.
    problem: Option<String>,
    /// What the kernel will not take, however often it is asked.
    refused: Option<Vec<Rule>>,
}

impl Stack {
    /// Makes the table hold these rules; without any there is none. `again`: also what was refused for good. Whether it is worth another try soon.
    ///
    /// A former agent's that holds them stays as it is.
    pub fn follow(&mut self, wanted: &[Rule], again: bool) -> bool {
        let is = |rules: &Option<Vec<Rule>>| rules.as_deref() == Some(wanted);
        if is(&self.believed) || is(&self.refused) && !again {
            return false;
        }
        let Err(e) = write(wanted) else {
            *self = Self { believed: Some(wanted.to_vec()), ..Self::default() };
            return false;
        };
        let error = error_chain(&e);
        let problem = if wanted.is_empty() {
            // Nobody asks for it.
            debug!(error, "cannot take away a table of nftables that a former agent may have left");
            None
        } else {
            if self.problem.as_ref() != Some(&error) {
                warn!(
                    error,
                    "pods reach no Service that others than pods are behind: the node does not masquerade what its stack has translated"
                );
            }
            Some(error)
        };
        let refused = e.lasts().then(|| wanted.to_vec());
        let soon = refused.is_none();
        *self = Self { believed: None, problem, refused };
        soon
    }

    /// Nothing is known yet, or it has to be asked for again.
    pub fn is_open(&self) -> bool {
        self.believed.is_none() && self.refused.is_none()
    }

    /// Writes what is in force once more.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn mend(&mut self) -> Result<(), String> {
        let Some(rules) = self.believed.clone() else { return Ok(()) };
        write(&rules).map_err(|e| {
            // The next pass begins anew.
            self.believed = None;
            error_chain(&e)
        })
    }

    /// The rules in force.
    pub fn believed(&self) -> Option<&[Rule]> {
        self.believed.as_deref()
    }

    /// Why there are not those that are asked for.
    pub fn problem(&self) -> Option<&str> {
        self.problem.as_deref()
    }
}

fn write(wanted: &[Rule]) -> Result<(), TableError> {
    let there = own::read()?;
    if let Some(chain) = there.as_ref().and_then(Table::foreign) {
        // Nothing of ours is there.
        return if wanted.is_empty() { Ok(()) } else { Err(TableError::Foreign { chain: chain.to_owned() }) };
    }
    match (there, wanted) {
        (None, []) => {}
        (Some(_), []) => {
            own::delete()?;
            info!(table = own::FULL_NAME, "the node no longer masquerades what its stack has translated");
        }
        (Some(there), _) if there == Table::of(wanted) => {}
        _ => {
            own::replace(wanted)?;
            info!(
                table = own::FULL_NAME,
                rules = wanted.len(),
                "the node masquerades what its stack has translated for pods"
            );
        }
    }
    Ok(())
}
