//! The crates of the workspace, and which may depend on which.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

/// The crates of the workspace that a crate may depend on. `*` at the end stands for any ending.
const ALLOWED: &[(&str, &[&str])] = &[
    ("weft-contracts", &[]),
    ("weft-wire", &[]),
    ("weft-mesh", &["weft-contracts"]),
    ("weft-sidecar", &["weft-contracts", "weft-mesh", "weft-wire"]),
    ("weft-control", &["weft-contracts", "weft-mesh"]),
    ("weft-kit", &["weft-contracts", "weft-mesh"]),
    ("shop-*", &["weft-contracts", "weft-kit"]),
    ("weft-cli", &["weft-contracts", "weft-mesh", "weft-sidecar", "weft-control"]),
    ("weft-bench", &["weft-contracts", "weft-mesh"]),
    ("weft-tests", &["weft-contracts", "weft-mesh", "weft-wire", "weft-control"]),
];

/// The parts of a crate's manifest that matter here.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Manifest {
    pub(crate) name: String,
    pub(crate) depends_on: Vec<String>,
    /// The root files that it names with `path`.
    pub(crate) roots: Vec<String>,
}

impl Manifest {
    /// Reads from a manifest `name`, the dependencies on crates of the workspace, and the paths of targets.
    pub(crate) fn read(text: &str) -> Self {
        let (mut manifest, mut section) = (Self::default(), "");
        for line in text.lines().map(str::trim) {
            if line.starts_with('[') {
                section = line.trim_matches(['[', ']']);
                continue;
            }
            let Some((key, value)) = line.split_once('=') else { continue };
            let (key, value) = (key.trim().trim_end_matches(".workspace"), value.trim().trim_matches('"').to_owned());
            match section {
                "package" if key == "name" => manifest.name = value,
                "lib" | "bin" | "test" if key == "path" => manifest.roots.push(value),
                "workspace.dependencies" => {}
                _ if section.ends_with("dependencies") && ALLOWED.iter().any(|(name, _)| is_named(key, name)) => {
                    manifest.depends_on.push(key.to_owned());
                }
                _ => {}
            }
        }
        manifest
    }
}

fn is_named(name: &str, pattern: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(start) => name.starts_with(start),
        None => name == pattern,
    }
}

/// A line for each crate that depends on one that it may not depend on.
pub(crate) fn misdirected<'m>(manifests: impl IntoIterator<Item = (&'m PathBuf, &'m Manifest)>) -> Vec<String> {
    let mut problems = Vec::new();
    for (file, manifest) in manifests {
        let Some((_, allowed)) = ALLOWED.iter().find(|(pattern, _)| is_named(&manifest.name, pattern)) else {
            problems.push(format!(
                "{}: tests/imports/crates.rs does not say what {} may depend on",
                file.display(),
                manifest.name
            ));
            continue;
        };
        for other in manifest.depends_on.iter().filter(|other| !allowed.contains(&other.as_str())) {
            problems.push(format!("{}: {} must not depend on {other}", file.display(), manifest.name));
        }
    }
    problems
}

pub(crate) fn workspace() -> &'static Path {
    weft_tests::root()
}

/// The manifests of all crates of the workspace, by their paths in it.
pub(crate) fn manifests() -> BTreeMap<PathBuf, Manifest> {
    let read = |place: PathBuf| {
        let text = fs::read_to_string(workspace().join(&place)).unwrap_or_else(|e| panic!("{}: {e}", place.display()));
        let manifest = Manifest::read(&text);
        (place, manifest)
    };
    std::iter::once(PathBuf::new()).chain(members()).map(|folder| read(folder.join("Cargo.toml"))).collect()
}

/// The folders that the workspace's `members` name; `x/*` is each folder in `x`.
fn members() -> Vec<PathBuf> {
    let text = fs::read_to_string(workspace().join("Cargo.toml")).expect("the workspace has a manifest");
    let list =
        text.lines().find_map(|line| line.strip_prefix("members = [")?.strip_suffix(']')).expect("a line of members");
    let entries = list.split(',').map(|entry| entry.trim().trim_matches('"'));
    let mut members = Vec::new();
    for entry in entries {
        let Some(parent) = entry.strip_suffix("/*") else {
            members.push(PathBuf::from(entry));
            continue;
        };
        let folders = fs::read_dir(workspace().join(parent)).expect("the folder is there");
        members.extend(folders.map(|folder| Path::new(parent).join(folder.expect("it can be read").file_name())));
    }
    members
}

/// The root files of libraries, programs and test programs, by their paths in the workspace.
pub(crate) fn roots() -> Vec<String> {
    let mut roots = Vec::new();
    for (place, manifest) in manifests() {
        let folder = place.parent().expect("a file lies in a folder");
        let usual = ["src/lib.rs", "src/main.rs"].map(str::to_owned);
        for root in usual.iter().chain(&manifest.roots) {
            let root = folder.join(root);
            if workspace().join(&root).is_file() {
                roots.push(root.display().to_string());
            }
        }
    }
    roots
}
