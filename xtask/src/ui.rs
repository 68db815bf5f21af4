//! What the verbs write for people: stages with their times, notes, tables. Standard output is left to results.

use std::{
    fmt::Write as _,
    io::{self, IsTerminal as _},
    time::{Duration, Instant},
};

/// The few colours in use; they are left out where standard error is not a terminal or NO_COLOR is set.
#[derive(Clone, Copy)]
enum Colour {
    Green = 32,
    Red = 31,
    Yellow = 33,
    Bold = 1,
}

fn paint(colour: Colour, text: &str) -> String {
    if io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none() {
        format!("\x1b[{}m{text}\x1b[0m", colour as u8)
    } else {
        text.to_owned()
    }
}

/// Seconds as people read them: `0.3 s`, `2 min 05 s`.
pub fn seconds(time: Duration) -> String {
    if time < Duration::from_secs(100) {
        format!("{:.1} s", time.as_secs_f64())
    } else {
        format!("{} min {:02} s", time.as_secs() / 60, time.as_secs() % 60)
    }
}

/// A piece of work that takes noticeable time: one line when it starts, one when it ends.
pub struct Stage {
    title: String,
    started: Instant,
}

impl Stage {
    /// Announces the work.
    pub fn start(title: impl Into<String>) -> Self {
        let title = title.into();
        eprintln!("{} {title}", paint(Colour::Bold, "-->"));
        Self { title, started: Instant::now() }
    }

    /// Time since the start.
    pub fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// Ends the work well; `note` says what came out, and may be empty.
    pub fn done(self, note: &str) {
        let note = if note.is_empty() { String::new() } else { format!(" ({note})") };
        eprintln!("{}  {}{note}: {}", paint(Colour::Green, "ok"), self.title, seconds(self.elapsed()));
    }

    /// Ends the work badly.
    pub fn failed(self, why: &str) {
        eprintln!("{} {}: {why}: {}", paint(Colour::Red, "FAILED"), self.title, seconds(self.elapsed()));
    }
}

/// A remark that is neither progress nor an error.
pub fn note(text: &str) {
    eprintln!("{} {text}", paint(Colour::Yellow, "note:"));
}

/// An error, cause first and cure last.
pub fn error(text: &str) {
    eprintln!("{} {text}", paint(Colour::Red, "error:"));
}

/// A table of text with columns as wide as their widest cell; columns of figures are set to the right.
pub fn table(header: &[&str], rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        rows.iter()
            .filter_map(|row| row.get(column))
            .map(|cell| cell.chars().count())
            .chain([header[column].chars().count()])
            .max()
            .unwrap_or(0)
    };
    let figures = |column: usize| {
        let mut cells = rows.iter().filter_map(|row| row.get(column)).filter(|c| !c.is_empty() && *c != "-").peekable();
        cells.peek().is_some() && cells.all(|c| c.starts_with(|ch: char| ch.is_ascii_digit()))
    };
    let columns: Vec<(usize, bool)> = (0..header.len()).map(|c| (width(c), figures(c))).collect();
    let mut out = String::new();
    let mut line = |cells: &mut dyn Iterator<Item = &str>| {
        let mut text = String::new();
        for (cell, (width, right)) in cells.zip(&columns) {
            let pad = " ".repeat(width.saturating_sub(cell.chars().count()));
            let cell = if *right { format!("{pad}{cell}") } else { format!("{cell}{pad}") };
            text.push_str(if text.is_empty() { "" } else { "  " });
            text.push_str(&cell);
        }
        // Writing to a String cannot fail.
        let _unfailing = writeln!(out, "{}", text.trim_end());
    };
    line(&mut header.iter().copied());
    for row in rows {
        line(&mut row.iter().map(String::as_str));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_figures_right_and_words_left() {
        let rows = [vec!["native".to_owned(), "7".to_owned()], vec!["vm".to_owned(), "120".to_owned()]];
        assert_eq!(table(&["suite", "passed"], &rows), "suite   passed\nnative       7\nvm         120\n");
    }

    #[test]
    fn says_minutes_for_long_times() {
        assert_eq!(seconds(Duration::from_millis(1_250)), "1.2 s");
        assert_eq!(seconds(Duration::from_secs(125)), "2 min 05 s");
    }
}
