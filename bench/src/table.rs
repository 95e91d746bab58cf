//! A text table for a terminal: the first two columns are aligned to the left, the figures to the right.

use std::fmt;

/// Rows of cells; each column is as wide as its widest cell.
pub(crate) struct Table {
    rows: Vec<Option<Vec<String>>>,
}

impl Table {
    /// A table with these headings.
    pub(crate) fn new(headings: &[&str]) -> Self {
        Self { rows: vec![Some(headings.iter().map(|heading| (*heading).to_owned()).collect()), None] }
    }

    /// Adds a row.
    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(Some(cells.into_iter().collect()));
    }

    /// Adds a line across.
    pub(crate) fn rule(&mut self) {
        self.rows.push(None);
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut widths = Vec::new();
        for row in self.rows.iter().flatten() {
            widths.resize(widths.len().max(row.len()), 0);
            for (width, cell) in std::iter::zip(&mut widths, row) {
                *width = cell.chars().count().max(*width);
            }
        }
        for row in &self.rows {
            let Some(row) = row else {
                writeln!(f, "{}", "-".repeat(widths.iter().sum::<usize>() + 2 * widths.len().saturating_sub(1)))?;
                continue;
            };
            let mut line = String::new();
            for (column, (cell, &width)) in std::iter::zip(row, &widths).enumerate() {
                line += &if column < 2 { format!("{cell:<width$}  ") } else { format!("{cell:>width$}  ") };
            }
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let mut table = Table::new(&["load", "way", "n"]);
        table.row(["a".into(), "longer".into(), "1".into()]);
        table.row(["b".into(), "x".into(), "1000".into()]);
        let text = table.to_string();
        assert_eq!(text, "load  way        n\n------------------\na     longer     1\nb     x       1000\n");
    }
}
