//! Finds what in a folder could be a service.
//!
//! A folder with a file that a build tool knows (`Cargo.toml`, `go.mod`, …) is a project; [`languages`] finds the
//! programs in it. If the folder itself is not a project, or has no program, its subfolders are searched. [`contracts`]
//! finds the contracts in all of these folders; each goes to the service that most likely implements it.

mod contracts;
mod languages;
#[cfg(test)]
mod tests;

use std::{
    fs,
    path::{Path, PathBuf},
};

use weft_mesh::names::is_label;

use self::contracts::Contract;
use crate::mesh_file::model::KEYBOARD;

/// How deep projects and contracts are looked for.
const DEPTH: usize = 6;
/// How many folders are searched at most: a home folder can have very many.
const FOLDERS: usize = 2_000;
/// How many services are written to the file at most.
const SERVICES: usize = 20;

/// What was found.
#[derive(Debug, Default)]
pub(super) struct Guess {
    /// The namespace, from the folder's name.
    pub(super) namespace: Option<String>,
    /// The build commands, in this order.
    pub(super) build: Vec<String>,
    /// At most [`SERVICES`].
    pub(super) services: Vec<Found>,
    /// The folders that imports start from, if they are not the default.
    pub(super) proto_path: Vec<String>,
    /// For the user: what could not be decided.
    pub(super) notes: Vec<String>,
}

/// A program that could be a service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Found {
    /// Its name in the mesh.
    pub(super) name: String,
    /// How it was recognized: "Go, by go.mod".
    pub(super) from: String,
    /// The path of its project's folder from the mesh's folder; empty if they are the same.
    pub(super) folder: String,
    /// The commands that build it, run in the mesh's folder.
    pub(super) build: Vec<String>,
    /// The command that starts it, run in the mesh's folder.
    pub(super) run: String,
    /// Its project depends on a gRPC library.
    pub(super) knows_grpc: bool,
    /// The paths of its contracts from the mesh's folder.
    pub(super) protos: Vec<String>,
}

impl Found {
    /// Whether its port most likely speaks gRPC.
    pub(super) fn speaks_grpc(&self) -> bool {
        self.knows_grpc || !self.protos.is_empty()
    }
}

/// Searches a folder.
pub(super) fn look_into(folder: &Path) -> Guess {
    let tree = Tree::read(folder);
    let mut guess =
        Guess { namespace: folder.file_name().and_then(|name| to_label(name.to_str()?)), ..Guess::default() };
    let mut services = languages::look_into(folder, "", &tree);
    if services.is_empty() {
        services = in_subfolders(folder, &tree);
    }
    if services.len() > SERVICES {
        guess.notes.push(format!("only the first {SERVICES} of {} programs are in the file", services.len()));
        services.truncate(SERVICES);
    }
    name_apart(&mut services);
    for command in services.iter().flat_map(|service| &service.build) {
        if !guess.build.contains(command) {
            guess.build.push(command.clone());
        }
    }
    guess.services = services;
    let (contracts, unread) = contracts::find(folder, &tree);
    guess.notes.extend(unread);
    guess.proto_path = contracts::proto_path(folder, &contracts);
    assign(&mut guess, contracts);
    guess
}

/// The paths of the folders to search, from the mesh's folder and with a `/` at the end. The first is the mesh's folder
/// itself, "".
#[derive(Debug, Default)]
struct Tree(Vec<String>);

impl Tree {
    fn read(folder: &Path) -> Self {
        let mut tree = Self(vec![String::new()]);
        let mut next = 0;
        // Breadth first, so that near folders are found in a large tree, too. The loop ends, as the list is bounded.
        while next < tree.0.len() {
            let at = tree.0[next].clone();
            next += 1;
            if at.matches('/').count() >= DEPTH {
                continue;
            }
            let mut names = entries(&folder.join(&at), |entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
            names.retain(|name| !is_passed_over(name));
            let room = FOLDERS.saturating_sub(tree.0.len());
            tree.0.extend(names.into_iter().take(room).map(|name| format!("{at}{name}/")));
        }
        tree
    }

    /// All folders below one.
    fn under<'a>(&'a self, folder: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().map(String::as_str).filter(move |at| at.starts_with(folder) && *at != folder)
    }
}

/// Whether a folder is of no interest: it has tools, tests, others' code, or the output of a build.
fn is_passed_over(name: &str) -> bool {
    const NAMES: &[&str] = &[
        "__pycache__",
        "build",
        "dist",
        "docs",
        "examples",
        "node_modules",
        "site-packages",
        "target",
        "test",
        "testdata",
        "tests",
        "third_party",
        "vendor",
        "venv",
    ];
    name.starts_with('.') || NAMES.contains(&name)
}

/// The names in a folder, sorted; names that are not UTF-8 are left out.
fn entries(folder: &Path, is_wanted: impl Fn(&fs::DirEntry) -> bool) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten().filter(is_wanted);
    let mut names: Vec<String> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    names
}

/// The programs of the projects below the folder. What is below a project is part of that project.
fn in_subfolders(folder: &Path, tree: &Tree) -> Vec<Found> {
    let mut found: Vec<Found> = Vec::new();
    for at in &tree.0[1..] {
        if !found.iter().any(|project| at.starts_with(&project.folder)) {
            found.extend(languages::look_into(folder, at, tree));
        }
    }
    found.sort_by(|one, other| one.folder.cmp(&other.folder));
    found
}

/// Makes a valid name of a service or a namespace from any name.
fn to_label(name: &str) -> Option<String> {
    let mut label = String::new();
    for c in name.to_lowercase().chars() {
        match c {
            'a'..='z' | '0'..='9' => label.push(c),
            _ if label.ends_with('-') => {}
            _ => label.push('-'),
        }
    }
    label.truncate(63);
    let label = label.trim_matches('-').to_owned();
    is_label(&label).then_some(label)
}

/// Gives each service a unique and valid name.
fn name_apart(services: &mut [Found]) {
    let mut taken = vec![KEYBOARD.to_owned()];
    for service in services {
        // A label is ASCII, so it can be cut after any byte.
        let label = to_label(&service.name).unwrap_or_else(|| "service".to_owned());
        let others = (2..).map(|number| format!("{}-{number}", &label[..label.len().min(58)]));
        let name = std::iter::once(label.clone()).chain(others).find(|name| !taken.contains(name));
        service.name = name.unwrap_or(label);
        taken.push(service.name.clone());
    }
}

/// Gives each contract to the service that most likely implements it.
fn assign(guess: &mut Guess, contracts: Vec<Contract>) {
    let services = &mut guess.services;
    for contract in contracts {
        let names: Vec<&str> = services.iter().map(|service| service.name.as_str()).collect();
        let is_in = |service: &Found| !service.folder.is_empty() && contract.file.starts_with(&service.folder);
        let owner = match services.len() {
            1 => Some(0),
            _ => services.iter().position(is_in).or_else(|| contract.owner(&names)),
        };
        match owner {
            Some(owner) => services[owner].protos.push(contract.file),
            None => guess.notes.push(format!(
                "{} ({}): add it to the `protos` of the service that implements it",
                contract.file,
                contract.services.join(", ")
            )),
        }
    }
}

/// The text of a file of a project, if it exists and is not unusually large.
fn read(folder: &Path, name: &str) -> Option<String> {
    const BYTES: u64 = 1 << 20;
    let path: PathBuf = folder.join(name);
    let is_small = fs::metadata(&path).is_ok_and(|meta| meta.is_file() && meta.len() <= BYTES);
    is_small.then(|| fs::read_to_string(path).ok()).flatten()
}
