//! Columns of text, aligned.
use std::fmt::{self, Display, Formatter};

/// A table: a head and rows. The last column is not padded.
#[derive(Clone, Debug)]
pub struct Table {
    head: Vec<&'static str>,
    rows: Vec<Vec<String>>,
    right: Vec<bool>,
}
impl Table {
    /// With these column names; a name that begins with `>` makes a column of numbers, aligned to the right.
    pub fn new<const N: usize>(head: [&'static str; N]) -> Self {
        let right = head.iter().map(|name| name.starts_with('>')).collect();
        Self { head: head.iter().map(|name| name.trim_start_matches('>')).collect(), rows: Vec::new(), right }
    }
    /// Adds a row; an empty cell shows as a dash.
    pub fn row<const N: usize>(&mut self, cells: [String; N]) {
        self.rows.push(cells.map(|cell| if cell.is_empty() { "-".to_owned() } else { cell }).into());
    }
    /// Whether it has no rows.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }
}
impl Display for Table {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let head: Vec<String> = self.head.iter().map(|name| (*name).to_owned()).collect();
        let lines = || std::iter::once(&head).chain(&self.rows);
        let widths: Vec<usize> = (0..head.len())
            .map(|column| lines().filter_map(|line| line.get(column)).map(|c| c.chars().count()).max().unwrap_or(0))
            .collect();
        for line in lines() {
            let mut text = String::new();
            for ((cell, width), right) in line.iter().zip(&widths).zip(&self.right) {
                let width = *width;
                text.push_str(&if *right { format!("{cell:>width$}  ") } else { format!("{cell:<width$}  ") });
            }
            writeln!(f, "{}", text.trim_end())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let mut table = Table::new(["NAME", ">PACKETS", "WHY"]);
        table.row(["größer".into(), "7".into(), "because".into()]);
        table.row(["a".into(), "12345678".into(), String::new()]);
        let expected = "\
NAME     PACKETS  WHY
größer         7  because
a       12345678  -
";
        assert_eq!(table.to_string(), expected);
    }
}
