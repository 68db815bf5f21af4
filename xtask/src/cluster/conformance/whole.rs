//! What whole runs of suites leave, of which docs/conformance.md is made: a suite that is run in parts is whole when all parts were run.

use std::{fs, io::ErrorKind, path::Path, str::FromStr};

use anyhow::{Context as _, Result};

use super::report::Case;

/// What became of a suite's cases in a run of all of them.
const WHOLE: &str = "whole.json";

/// One of some parts of a suite.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    /// Which, from 1.
    pub number: u16,
    /// Of how many.
    pub of: u16,
}

impl FromStr for Part {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const FORM: &str = "a part is such as 2/4: the second of four";
        let (number, of) = text.split_once('/').ok_or(FORM)?;
        let part = Self { number: number.parse().map_err(|_| FORM)?, of: of.parse().map_err(|_| FORM)? };
        if part.number == 0 || part.number > part.of { Err(FORM) } else { Ok(part) }
    }
}

impl Part {
    fn file(self) -> String {
        format!("part-{}-of-{}.json", self.number, self.of)
    }
}

/// Keeps the cases of a run that left none out, but those of other parts.
pub fn keep(directory: &Path, part: Option<Part>, cases: &[Case]) -> Result<()> {
    let name = part.map_or(WHOLE.to_owned(), Part::file);
    write(&directory.join(name), cases)?;
    let Some(part) = part else { return Ok(()) };
    let parts: Vec<_> = (1..=part.of).map(|number| directory.join(Part { number, ..part }.file())).collect();
    let Some(found) = parts.iter().map(|file| read(file)).collect::<Result<Option<Vec<_>>>>()? else { return Ok(()) };
    write(&directory.join(WHOLE), &found.concat())?;
    // Those of another build must not be joined with some of these.
    parts.iter().try_for_each(|file| fs::remove_file(file).with_context(|| format!("remove {}", file.display())))
}

/// What the last whole run has left; no cases if there was none.
pub fn last(directory: &Path) -> Result<Vec<Case>> {
    Ok(read(&directory.join(WHOLE))?.unwrap_or_default())
}

fn write(file: &Path, cases: &[Case]) -> Result<()> {
    fs::write(file, serde_json::to_string(cases)?).with_context(|| format!("write {}", file.display()))
}

fn read(file: &Path) -> Result<Option<Vec<Case>>> {
    match fs::read_to_string(file) {
        Ok(text) => serde_json::from_str(&text).map(Some).with_context(|| format!("read {}", file.display())),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e).with_context(|| format!("read {}", file.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::conformance::report::Outcome;

    #[test]
    fn a_part_is_a_number_of_some() {
        assert_eq!("2/4".parse(), Ok(Part { number: 2, of: 4 }));
        assert!(["0/4", "5/4", "2", "a/b"].iter().all(|text| text.parse::<Part>().is_err()));
    }

    #[test]
    fn a_suite_is_whole_when_all_its_parts_were_run() {
        let directory = std::env::temp_dir().join(format!("weft-whole-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let case = |name: &str| vec![Case { name: name.to_owned(), outcome: Outcome::Passed }];
        let part = |number| Some(Part { number, of: 2 });
        keep(&directory, part(2), &case("second")).unwrap();
        assert!(last(&directory).unwrap().is_empty());
        keep(&directory, part(1), &case("first")).unwrap();
        let names: Vec<String> = last(&directory).unwrap().into_iter().map(|c| c.name).collect();
        assert_eq!(names, ["first", "second"]);
        keep(&directory, part(1), &case("other")).unwrap();
        assert_eq!(last(&directory).unwrap().len(), 2, "of an earlier run nothing is left to be joined");
        fs::remove_dir_all(&directory).unwrap();
    }
}
