//! What earlier runs have found out, so that an interrupted one can go on.

use std::{collections::BTreeMap, fs, path::PathBuf};

use anyhow::{Context as _, Result};
use sha2::{Digest as _, Sha256};

use super::{Mutant, Outcome};
use crate::workspace::Workspace;

/// Outcomes, by digests of what was tried.
pub struct Kept {
    path: PathBuf,
    outcomes: BTreeMap<String, Outcome>,
}

impl Kept {
    /// Those of a list of mistakes; of a run that begins anew there are none.
    pub fn of(ws: &Workspace, topic: &str, resume: bool) -> Result<Self> {
        let path = ws.target.join("mutants").join(format!("{topic}.json"));
        let text = fs::read_to_string(&path).ok().filter(|_| resume);
        let outcomes = match text {
            Some(text) => serde_json::from_str(&text)
                .with_context(|| format!("read {}; without --resume it is written anew", ws.show(&path)))?,
            None => BTreeMap::new(),
        };
        Ok(Self { path, outcomes })
    }

    /// What became of this mistake, if a check has noticed it and neither it nor its file has changed. One that survived is tried again: there may be
    /// a test for it by now.
    pub fn outcome(&self, ws: &Workspace, mutant: &Mutant) -> Result<Option<Outcome>> {
        let known = self.outcomes.get(&digest(ws, mutant)?);
        Ok(known.filter(|o| matches!(o, Outcome::Noticed { .. })).cloned())
    }

    /// Keeps what became of a mistake.
    pub fn keep(&mut self, ws: &Workspace, mutant: &Mutant, outcome: &Outcome) -> Result<()> {
        self.outcomes.insert(digest(ws, mutant)?, outcome.clone());
        let text = serde_json::to_string_pretty(&self.outcomes)?;
        fs::write(&self.path, text).with_context(|| format!("write {}", ws.show(&self.path)))
    }
}

fn digest(ws: &Workspace, mutant: &Mutant) -> Result<String> {
    let file = fs::read(ws.root.join(&mutant.file)).with_context(|| format!("read {}", mutant.file.display()))?;
    let mut hash = Sha256::new();
    hash.update(format!("{mutant:?}"));
    hash.update(file);
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_noticed_is_known_until_its_file_changes_and_a_survivor_is_tried_again() {
        let root = std::env::temp_dir().join(format!("weft-mutants-{}", std::process::id()));
        let ws = Workspace { root: root.clone(), target: root.join("target") };
        fs::create_dir_all(ws.target.join("mutants")).unwrap();
        fs::write(root.join("f"), "right").unwrap();
        let [one, other] = ["one", "other"].map(|name| Mutant {
            name: name.into(),
            file: "f".into(),
            from: "right".into(),
            to: "wrong".into(),
            also: Vec::new(),
        });
        let noticed = Outcome::Noticed { by: "check".into(), test: "t".into() };
        let mut kept = Kept::of(&ws, "topic", false).unwrap();
        kept.keep(&ws, &one, &noticed).unwrap();
        kept.keep(&ws, &other, &Outcome::Survived).unwrap();
        let again = Kept::of(&ws, "topic", true).unwrap();
        assert_eq!(again.outcome(&ws, &one).unwrap(), Some(noticed));
        assert_eq!(again.outcome(&ws, &other).unwrap(), None);
        let another = Mutant { to: "worse".into(), ..other };
        assert_eq!(again.outcome(&ws, &another).unwrap(), None);
        assert_eq!(Kept::of(&ws, "topic", false).unwrap().outcome(&ws, &one).unwrap(), None, "it begins anew");
        fs::write(root.join("f"), "right, in other words").unwrap();
        assert_eq!(again.outcome(&ws, &one).unwrap(), None);
        fs::remove_dir_all(root).unwrap();
    }
}
