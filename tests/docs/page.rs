//! The tables of a page in Markdown, and how they are compared with the code.

use std::{collections::BTreeSet, fs};

use weft_tests::root;

/// A page, by its path from the workspace's folder.
pub(crate) struct Page {
    pub(crate) name: String,
    pub(crate) text: String,
}

/// One table of a page.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Table {
    /// Without backticks.
    pub(crate) header: Vec<String>,
    pub(crate) rows: Vec<Vec<String>>,
}

impl Page {
    pub(crate) fn read(name: &str) -> Self {
        let text = fs::read_to_string(root().join(name)).unwrap_or_else(|e| panic!("{name}: {e}"));
        Self { name: name.to_owned(), text }
    }

    /// The text under a heading, with that of the headings below it.
    pub(crate) fn section(&self, heading: &str) -> &str {
        let level = |line: &str| line.bytes().take_while(|byte| *byte == b'#').count();
        let is_it = |line: &str| level(line) > 0 && line.trim_start_matches('#').trim().replace('`', "") == heading;
        let mut lines = prose(&self.text).filter(|(_, line)| level(line) > 0);
        let (start, first) = lines
            .find(|(_, line)| is_it(line))
            .unwrap_or_else(|| panic!("{}: there is no heading `{heading}`", self.name));
        let end = lines.find(|(_, line)| level(line) <= level(first)).map_or(self.text.len(), |(place, _)| place);
        &self.text[start..end]
    }

    /// The rows of all tables in a section whose first column has this name, as one table of the columns of the first.
    pub(crate) fn table(&self, heading: &str, first: &str) -> Table {
        let mut all = tables(self.section(heading)).into_iter().filter(|table| table.header[0] == first);
        let mut table = all
            .next()
            .unwrap_or_else(|| panic!("{}: `{heading}` has no table whose first column is `{first}`", self.name));
        table.rows.extend(all.flat_map(|further| further.rows));
        table
    }
}

/// The lines outside code blocks, with their places.
pub(crate) fn prose(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let (mut place, mut is_code) = (0, false);
    text.split_inclusive('\n').filter_map(move |line| {
        let start = place;
        place += line.len();
        let is_fence = line.trim_start().starts_with("```");
        is_code ^= is_fence;
        (!is_code && !is_fence).then(|| (start, line.trim_end()))
    })
}

/// The tables of a text.
pub(crate) fn tables(text: &str) -> Vec<Table> {
    let mut tables = Vec::new();
    let mut open: Option<Table> = None;
    for (_, line) in prose(text) {
        let Some(inner) = line.strip_prefix('|') else {
            tables.extend(open.take());
            continue;
        };
        let cells: Vec<String> = inner.trim_end_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect();
        match &mut open {
            None => {
                let header = cells.iter().map(|cell| cell.replace('`', "")).collect();
                open = Some(Table { header, rows: Vec::new() });
            }
            Some(_) if cells.iter().all(|cell| cell.bytes().all(|byte| b"-: ".contains(&byte))) => {}
            Some(table) => table.rows.push(cells),
        }
    }
    tables.extend(open);
    tables
}

/// The texts between backticks.
pub(crate) fn code(cell: &str) -> Vec<&str> {
    cell.split('`').skip(1).step_by(2).collect()
}

/// A row that a page has to have: what its first cell names, and what other columns say, by the column's name.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) key: String,
    pub(crate) cells: Vec<(&'static str, String)>,
}

impl Row {
    pub(crate) fn new(key: impl Into<String>) -> Self {
        Self { key: key.into(), cells: Vec::new() }
    }

    pub(crate) fn says(mut self, column: &'static str, text: impl Into<String>) -> Self {
        self.cells.push((column, text.into()));
        self
    }
}

/// What differs between a table and the rows that the code has. Backticks do not count.
pub(crate) fn differences(page: &str, table: &Table, expected: &[Row]) -> Vec<String> {
    let key = |row: &Vec<String>| code(&row[0]).first().map_or_else(|| row[0].clone(), |key| (*key).to_owned());
    let mut problems = Vec::new();
    let mut seen = BTreeSet::new();
    for row in &table.rows {
        let key = key(row);
        if !seen.insert(key.clone()) {
            problems.push(format!("{page}: `{key}` has two rows"));
        } else if !expected.iter().any(|row| row.key == key) {
            problems.push(format!("{page}: the code has no `{key}`, take its row out"));
        }
    }
    for Row { key: wanted, cells } in expected {
        let Some(row) = table.rows.iter().find(|row| key(row) == *wanted) else {
            problems.push(format!("{page}: there is no row for `{wanted}`"));
            continue;
        };
        for (column, text) in cells {
            let place = table.header.iter().position(|name| name == column);
            let place = place.unwrap_or_else(|| panic!("{page}: no column `{column}` in {:?}", table.header));
            let found = row.get(place).map(|cell| cell.replace('`', "")).unwrap_or_default();
            if found != text.replace('`', "") {
                problems.push(format!("{page}: `{wanted}`, {column}: the page says `{found}`, the code `{text}`"));
            }
        }
    }
    problems
}

/// Fails with every problem on a line of its own.
pub(crate) fn must_be_none(problems: &[String]) {
    assert!(problems.is_empty(), "\n{}", problems.join("\n"));
}
