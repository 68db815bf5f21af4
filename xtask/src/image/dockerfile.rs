//! The few words of a Dockerfile that an image of static programs needs: what `docker build` makes of the file, we make too.

use anyhow::{Context as _, Result, bail};

/// What an image is made of.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Dockerfile {
    /// Files: where they are in the context, and in the image, without a leading slash.
    pub copies: Vec<(String, String)>,
    /// The environment of its programs, as `NAME=VALUE`.
    pub environment: Vec<String>,
    /// The program and its first arguments.
    pub entrypoint: Vec<String>,
    /// Arguments that whoever runs it may replace.
    pub command: Vec<String>,
}

impl Dockerfile {
    /// Reads one. What is not understood is an error: an image that differs from Docker's would be worse than none.
    pub fn parse(text: &str) -> Result<Self> {
        let mut found = Self::default();
        let mut from_scratch = false;
        for line in text.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#')) {
            let (word, rest) = line.split_once(' ').with_context(|| format!("`{line}` has no argument"))?;
            match word {
                "FROM" if rest == "scratch" => from_scratch = true,
                "COPY" => found.copy(rest)?,
                "ENV" => found.environment.push(rest.to_owned()),
                "ENTRYPOINT" => found.entrypoint = list(rest)?,
                "CMD" => found.command = list(rest)?,
                _ => bail!("`{line}` is not among what is understood: FROM scratch, COPY, ENV, ENTRYPOINT, CMD"),
            }
        }
        if !from_scratch {
            bail!("it must begin FROM scratch");
        }
        Ok(found)
    }

    /// `COPY FILE… DIRECTORY/` or `COPY FILE PLACE`.
    fn copy(&mut self, rest: &str) -> Result<()> {
        let words: Vec<&str> = rest.split_ascii_whitespace().collect();
        let (to, files) = words.split_last().context("COPY needs a place")?;
        for file in files {
            let name = file.rsplit('/').next().unwrap_or(file);
            let place = if to.ends_with('/') { format!("{to}{name}") } else { (*to).to_owned() };
            self.copies.push(((*file).to_owned(), place.trim_start_matches('/').to_owned()));
        }
        Ok(())
    }
}

fn list(text: &str) -> Result<Vec<String>> {
    serde_json::from_str(text).with_context(|| format!("`{text}` is no list as in [\"a\", \"b\"]"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_an_image_of_static_programs_needs() {
        let text = "# why\nFROM scratch\nCOPY a b/c /bin/\nENV PATH=/bin\nENTRYPOINT [\"/bin/a\"]\nCMD [\"run\"]\n";
        let found = Dockerfile::parse(text).unwrap();
        let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
        assert_eq!(found.copies, [pair("a", "bin/a"), pair("b/c", "bin/c")]);
        assert_eq!((found.entrypoint, found.command), (vec!["/bin/a".to_owned()], vec!["run".to_owned()]));
    }

    #[test]
    fn what_it_does_not_know_is_an_error() {
        for text in ["FROM debian", "FROM scratch\nRUN make", "FROM scratch\nCMD run", "COPY a /a"] {
            assert!(Dockerfile::parse(text).is_err(), "{text}");
        }
    }
}
