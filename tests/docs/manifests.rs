//! `k8s/` has what `weft install` prints: `UPDATE_DOCS=1 cargo test -p weft-tests --test docs` writes it anew. The values
//! are on their page, and the images have the version of this build.

use std::{env, fs};

use weft_control::kubernetes::install::{self, KEYS, Part, Values};
use weft_tests::root;

use crate::page::{Page, Row, differences, must_be_none};

const VERSION: &str = env!("CARGO_PKG_VERSION");
const DEV: &str = "k8s/overlays/dev";

#[test]
fn the_manifests_are_those_that_install_prints() {
    let base = install::parts(&Values::default());
    let mut problems: Vec<String> = base.iter().filter_map(|part| difference("k8s/base", part)).collect();
    let kustomization = Page::read("k8s/base/kustomization.yaml").text;
    let listed: Vec<&str> = kustomization.lines().filter_map(|line| line.strip_prefix("  - ")).collect();
    assert_eq!(listed, base.iter().map(|part| part.name).collect::<Vec<_>>(), "k8s/base/kustomization.yaml");

    let file = format!("{DEV}/values.yaml");
    let text = Page::read(&file).text;
    let values = Values::read(&[(file, text)], &[]).unwrap_or_else(|problems| panic!("{problems}"));
    let changed = install::parts(&values).into_iter().filter(|part| !base.contains(part));
    let changed: Vec<Part> = changed.collect();
    problems.extend(changed.iter().filter_map(|part| difference(DEV, part)));
    let kustomization = Page::read(&format!("{DEV}/kustomization.yaml")).text;
    for part in &changed {
        assert!(kustomization.contains(&format!("  - path: {}\n", part.name)), "{DEV} does not patch {}", part.name);
    }
    must_be_none(&problems);
}

/// Whether a file has another text than the part; with `UPDATE_DOCS` it gets the right one.
fn difference(folder: &str, part: &Part) -> Option<String> {
    let path = root().join(folder).join(part.name);
    if env::var_os("UPDATE_DOCS").is_some() {
        fs::write(&path, &part.text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }
    let found = fs::read_to_string(&path).unwrap_or_default();
    (found != part.text)
        .then(|| format!("{folder}/{} is not what `weft install` prints; UPDATE_DOCS=1 writes it", part.name))
}

#[test]
fn values_of_the_installation_are_on_their_page() {
    let rows: Vec<Row> = KEYS
        .iter()
        .map(|(key, default, what)| Row::new(*key).says("default", *default).says("what it is", *what))
        .collect();
    let page = Page::read("docs/kubernetes.md");
    must_be_none(&differences(&page.name, &page.table("Values", "key"), &rows));
}

#[test]
fn images_have_this_version() {
    let mut problems = Vec::new();
    let mut files = vec![root().join("Dockerfile")];
    let shop = fs::read_dir(root().join("k8s/shop")).expect("the shop's manifests are there");
    files.extend(shop.map(|entry| entry.expect("an entry").path()));
    let mut images = 0;
    for path in files {
        let text = fs::read_to_string(&path).expect("a file of text");
        for word in text.split_whitespace() {
            let version = match word.strip_prefix("weft/") {
                Some(image) => image.split_once(':').map(|(_, version)| version),
                None => word.strip_prefix("VERSION="),
            };
            let Some(version) = version else { continue };
            images += 1;
            if version != VERSION {
                problems.push(format!("{}: `{word}` is not of version {VERSION}", path.display()));
            }
        }
    }
    assert!(images > 8, "{images}");
    must_be_none(&problems);
}
