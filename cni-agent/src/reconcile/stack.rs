//! Weft's table of nftables, by which the node's stack masquerades what it has translated for pods.
use tracing::{debug, info, warn};

use crate::{
    error_chain,
    netlink::nftables::own::{self, Rule, Table, TableError},
};

/// Who keeps the table.
pub trait Keeper {
    /// What is there, if anything.
    fn read(&mut self) -> Result<Option<Table>, TableError>;
    /// Puts these rules in the place of what is there, all at once.
    fn replace(&mut self, rules: &[Rule]) -> Result<(), TableError>;
    /// Takes it away.
    fn delete(&mut self) -> Result<(), TableError>;
}

/// Of this node, or of the namespace of the thread.
pub struct Kernel;
impl Keeper for Kernel {
    fn read(&mut self) -> Result<Option<Table>, TableError> {
        own::read()
    }
    fn replace(&mut self, rules: &[Rule]) -> Result<(), TableError> {
        own::replace(rules)
    }
    fn delete(&mut self) -> Result<(), TableError> {
        own::delete()
    }
}

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
    pub fn follow(&mut self, wanted: &[Rule], again: bool, keeper: &mut impl Keeper) -> bool {
        let is = |rules: &Option<Vec<Rule>>| rules.as_deref() == Some(wanted);
        if is(&self.believed) || is(&self.refused) && !again {
            return false;
        }
        let Err(e) = write(wanted, keeper) else {
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
    pub fn mend(&mut self, keeper: &mut impl Keeper) -> Result<(), String> {
        let Some(rules) = self.believed.clone() else { return Ok(()) };
        write(&rules, keeper).map_err(|e| {
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

fn write(wanted: &[Rule], keeper: &mut impl Keeper) -> Result<(), TableError> {
    let there = keeper.read()?;
    if let Some(chain) = there.as_ref().and_then(Table::foreign) {
        // Nothing of ours is there.
        return if wanted.is_empty() { Ok(()) } else { Err(TableError::Foreign { chain: chain.to_owned() }) };
    }
    match (there, wanted) {
        (None, []) => {}
        (Some(_), []) => {
            keeper.delete()?;
            info!(table = own::FULL_NAME, "the node no longer masquerades what its stack has translated");
        }
        (Some(there), _) if there == Table::of(wanted) => {}
        _ => {
            keeper.replace(wanted)?;
            info!(
                table = own::FULL_NAME,
                rules = wanted.len(),
                "the node masquerades what its stack has translated for pods"
            );
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use nix::errno::Errno;

    use super::*;

    /// Keeps it in memory, and refuses the next writes so.
    #[derive(Default)]
    struct Memory {
        table: Option<Table>,
        refusals: Vec<TableError>,
        writes: usize,
    }
    impl Memory {
        fn write(&mut self, table: Option<Table>) -> Result<(), TableError> {
            self.writes += 1;
            self.refusals.pop().map_or(Ok(()), Err)?;
            self.table = table;
            Ok(())
        }
    }
    impl Keeper for Memory {
        fn read(&mut self) -> Result<Option<Table>, TableError> {
            Ok(self.table.clone())
        }
        fn replace(&mut self, rules: &[Rule]) -> Result<(), TableError> {
            self.write(Some(Table::of(rules)))
        }
        fn delete(&mut self) -> Result<(), TableError> {
            self.write(None)
        }
    }

    fn rules(from: &[&str]) -> Vec<Rule> {
        let rule = |from: &&str| Rule::Masquerade { from: from.parse().expect("a CIDR"), to: None, ports: None };
        from.iter().map(rule).collect()
    }
    fn busy() -> TableError {
        TableError::Refused { what: "write the table", errno: Errno::EBUSY }
    }

    #[test]
    fn a_change_of_the_rules_is_one_write_and_none_without_a_change() {
        let (mut stack, mut kernel) = (Stack::default(), Memory::default());
        let (one, two) = (rules(&["10.1.0.0/24"]), rules(&["10.1.0.0/24", "fd10:1::/64"]));
        for (wanted, writes) in [(&one, 1), (&one, 1), (&two, 2), (&two, 2)] {
            assert!(!stack.follow(wanted, true, &mut kernel));
            assert_eq!((kernel.writes, kernel.table.as_ref()), (writes, Some(&Table::of(wanted))));
        }
        assert!(!stack.follow(&[], false, &mut kernel));
        assert_eq!((kernel.writes, kernel.table), (3, None));
        assert_eq!(stack.believed(), Some(&[][..]));
    }

    #[test]
    fn what_a_former_agent_left_stays_if_it_is_what_is_asked_for_and_goes_if_nothing_is() {
        let wanted = rules(&["10.1.0.0/24"]);
        let mut kernel = Memory { table: Some(Table::of(&wanted)), ..Memory::default() };
        assert!(!Stack::default().follow(&wanted, false, &mut kernel));
        assert_eq!(kernel.writes, 0);
        assert!(!Stack::default().follow(&[], false, &mut kernel));
        assert_eq!((kernel.writes, kernel.table), (1, None));
        // Where there never was one, nothing is done.
        let mut empty = Memory::default();
        assert!(!Stack::default().follow(&[], false, &mut empty));
        assert_eq!(empty.writes, 0);
    }

    #[test]
    fn what_fails_is_tried_again_soon_and_what_is_refused_for_good_only_now_and_then() {
        let wanted = rules(&["10.1.0.0/24"]);
        let lacks = TableError::Unsupported { lacks: "CONFIG_NFT_MASQ" };
        let (mut stack, mut kernel) = (Stack::default(), Memory { refusals: vec![lacks, busy()], ..Memory::default() });
        assert!(stack.follow(&wanted, false, &mut kernel), "soon");
        assert!(stack.is_open() && stack.problem().is_some());
        assert!(!stack.follow(&wanted, false, &mut kernel), "the kernel has not what it takes");
        assert!(!stack.is_open() && stack.problem().is_some_and(|p| p.contains("CONFIG_NFT_MASQ")));
        assert!(!stack.follow(&wanted, false, &mut kernel));
        assert_eq!(kernel.writes, 2, "not asked with every pass");
        assert!(!stack.follow(&wanted, true, &mut kernel));
        assert_eq!((kernel.writes, stack.problem(), stack.believed()), (3, None, Some(&*wanted)));
    }

    #[test]
    fn what_somebody_took_away_is_mended_by_one_write_and_what_cannot_be_is_open_again() {
        let wanted = rules(&["10.1.0.0/24"]);
        let (mut stack, mut kernel) = (Stack::default(), Memory::default());
        assert!(stack.mend(&mut kernel).is_ok(), "nothing is in force");
        stack.follow(&wanted, false, &mut kernel);
        kernel.table = None;
        assert!(stack.mend(&mut kernel).is_ok());
        assert_eq!((kernel.writes, kernel.table.take()), (2, Some(Table::of(&wanted))));
        kernel.refusals.push(busy());
        assert!(stack.mend(&mut kernel).is_err());
        assert!(stack.is_open());
    }
}
