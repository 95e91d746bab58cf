//! Links between the pages of the repository lead somewhere.

use std::{
    collections::BTreeSet,
    fs,
    path::{Component, Path, PathBuf},
};

use weft_tests::root;

use crate::page::{Page, must_be_none, prose};

/// Folders that hold no pages of ours.
const SKIPPED: &[&str] = &["target", "node_modules", "found", "corpus"];

#[test]
fn links_between_pages_lead_somewhere() {
    let mut problems = Vec::new();
    for page in pages(root()) {
        let page = Page::read(&page.display().to_string());
        for link in links(&page.text).filter(|link| !link.contains("://")) {
            problems.extend(broken(&page, link).map(|why| format!("{}: {link}: {why}", page.name)));
        }
    }
    must_be_none(&problems);
}

#[test]
fn the_index_has_each_page_of_docs() {
    let index = Page::read("docs/README.md");
    let linked: BTreeSet<&str> = links(&index.text).collect();
    let pages = pages(&root().join("docs"));
    let names = pages.iter().filter_map(|page| page.file_name()?.to_str()).filter(|name| *name != "README.md");
    let missing = names.filter(|name| !linked.contains(name));
    must_be_none(&missing.map(|name| format!("docs/README.md: there is no row for {name}")).collect::<Vec<_>>());
}

/// A newcomer reads it to the end: what is reference belongs into docs/.
#[test]
fn the_readme_is_short() {
    let lines = Page::read("README.md").text.lines().count();
    assert!(lines <= 150, "README.md has {lines} lines, 150 at most: move what is reference to docs/");
}

/// Every page below a folder, by its path from the workspace's.
fn pages(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).expect("the folder can be read") {
        let path = entry.expect("an entry").path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if path.is_dir() && !name.starts_with('.') && !SKIPPED.contains(&name) {
            found.extend(pages(&path));
        } else if path.extension().is_some_and(|extension| extension == "md") {
            found.push(path.strip_prefix(root()).expect("it is below").to_owned());
        }
    }
    found.sort();
    found
}

/// Where links in the prose of a text lead. One link may be broken over two lines.
fn links(text: &str) -> impl Iterator<Item = &str> {
    let is_prose: Vec<_> = prose(text).collect();
    text.match_indices("](").filter_map(move |(place, _)| {
        let line = is_prose.partition_point(|(start, _)| *start <= place).checked_sub(1)?;
        let (start, within) = is_prose[line];
        if place >= start + within.len() {
            return None;
        }
        text[place + 2..].split_once(')').map(|(link, _)| link)
    })
}

/// Why a link leads nowhere, if it does not.
fn broken(page: &Page, link: &str) -> Option<String> {
    let (path, anchor) = link.split_once('#').map_or((link, None), |(path, anchor)| (path, Some(anchor)));
    let target = match path {
        "" => PathBuf::from(&page.name),
        path => normal(&Path::new(&page.name).parent().unwrap_or(Path::new("")).join(path)),
    };
    if !root().join(&target).exists() {
        return Some(format!("there is no {}", target.display()));
    }
    let anchor = anchor?;
    let headings = anchors(&Page::read(&target.display().to_string()).text);
    (!headings.contains(anchor)).then(|| format!("{} has no such heading", target.display()))
}

/// A path without `..`.
fn normal(path: &Path) -> PathBuf {
    let mut normal = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => drop(normal.pop()),
            Component::CurDir => {}
            part => normal.push(part),
        }
    }
    normal
}

/// The anchors that GitHub makes of headings.
fn anchors(text: &str) -> BTreeSet<String> {
    let headings = prose(text).filter(|(_, line)| line.starts_with('#'));
    let anchor = |(_, line): (usize, &str)| {
        let title = line.trim_start_matches('#').trim().to_lowercase();
        let kept = title.chars().filter(|c| c.is_alphanumeric() || "-_ ".contains(*c));
        kept.map(|c| if c == ' ' { '-' } else { c }).collect()
    };
    headings.map(anchor).collect()
}

#[test]
fn links_and_anchors_are_found() {
    let text = "# A `b`: c-d\n[x](a.md#y) and\n```sh\n[no](b.md)\n```\n[z](../c.md)\n";
    assert_eq!(links(text).collect::<Vec<_>>(), ["a.md#y", "../c.md"]);
    assert_eq!(anchors(text), BTreeSet::from(["a-b-c-d".to_owned()]));
    assert_eq!(normal(Path::new("docs/../bench/./README.md")), Path::new("bench/README.md"));
}
