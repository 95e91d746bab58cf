//! Cycles of imports between files and folders that lie side by side in a crate.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::modules::{Crate, Module};

/// Files and folders of one level that need each other.
pub(crate) struct Cycle {
    /// The module that contains them; empty for the crate itself.
    pub(crate) within: String,
    pub(crate) members: Vec<String>,
    imports: Level,
}

/// An import: the file that names a path, the path, and the file that it leads to.
#[derive(Clone)]
struct Import {
    from: String,
    path: String,
    to: String,
}

/// The imports between the parts of a module: one for each pair.
type Level = BTreeMap<String, BTreeMap<String, Import>>;

/// How many re-exports a name is followed through: they may form a circle.
const MOST_STEPS: usize = 8;

/// All cycles of a crate.
pub(crate) fn find(modules: &Crate) -> Vec<Cycle> {
    let mut cycles = Vec::new();
    for (within, imports) in levels(modules) {
        let reached: BTreeMap<&String, BTreeSet<&String>> =
            imports.keys().map(|part| (part, reachable(&imports, part))).collect();
        let is_cyclic = |part: &&String| reached[*part].contains(*part);
        let mut left: BTreeSet<&String> = imports.keys().filter(is_cyclic).collect();
        while let Some(part) = left.pop_first() {
            let with = reached[part].iter().filter(|other| reached.get(**other).is_some_and(|of| of.contains(part)));
            let members: Vec<String> = with.map(|other| (*other).clone()).collect();
            left.retain(|other| !members.contains(other));
            cycles.push(Cycle { within: within.clone(), members, imports: imports.clone() });
        }
    }
    cycles
}

impl Cycle {
    /// The shortest path from a member back to itself, with a line for each import.
    pub(crate) fn chain_through(&self, member: &str) -> String {
        let mut came_from: BTreeMap<&str, &str> = BTreeMap::new();
        let mut queue = VecDeque::from([member]);
        while let Some(part) = queue.pop_front() {
            for next in self.imports.get(part).into_iter().flat_map(BTreeMap::keys) {
                if came_from.contains_key(next.as_str()) {
                    continue;
                }
                came_from.insert(next, part);
                queue.push_back(next);
            }
        }
        let (mut lines, mut at) = (Vec::new(), member);
        while let Some(before) = came_from.get(at) {
            let Import { from, path, to } = &self.imports[*before][at];
            lines.push(format!("  {from} uses {path} of {to}"));
            at = before;
            if at == member {
                break;
            }
        }
        lines.reverse();
        lines.join("\n")
    }
}

fn reachable<'l>(imports: &'l Level, from: &str) -> BTreeSet<&'l String> {
    let mut reached = BTreeSet::new();
    let mut queue = vec![from];
    while let Some(part) = queue.pop() {
        for next in imports.get(part).into_iter().flat_map(BTreeMap::keys) {
            if reached.insert(next) {
                queue.push(next);
            }
        }
    }
    reached
}

/// The imports between the parts of each module.
fn levels(modules: &Crate) -> BTreeMap<String, Level> {
    let mut levels: BTreeMap<String, Level> = BTreeMap::new();
    for (index, module) in modules.0.iter().enumerate() {
        let imports = module.uses.iter().map(|brought| &brought.path).chain(&module.paths);
        for path in imports {
            let Some(target) = resolve(modules, index, path, MOST_STEPS) else { continue };
            let target = &modules.0[target];
            let (from, to) = (&module.path, &target.path);
            let shared = from.iter().zip(to).take_while(|(a, b)| a == b).count();
            // One contains the other.
            let (Some(from), Some(to)) = (from.get(shared), to.get(shared)) else { continue };
            let level = levels.entry(module.path[..shared].join("::")).or_default();
            let import = Import { from: shown(modules, module), path: path.join("::"), to: shown(modules, target) };
            level.entry(from.clone()).or_default().entry(to.clone()).or_insert(import);
        }
    }
    levels
}

/// A module's file, seen from the crate's root.
fn shown(modules: &Crate, module: &Module) -> String {
    let folder = modules.0[0].file.parent().expect("a file lies in a folder");
    module.file.strip_prefix(folder).unwrap_or(&module.file).display().to_string()
}

/// The module that defines what a path names; `None` if another crate does.
fn resolve(modules: &Crate, module: usize, path: &[String], steps: usize) -> Option<usize> {
    let steps = steps.checked_sub(1)?;
    let (first, mut rest) = path.split_first()?;
    let mut at = match first.as_str() {
        "crate" => 0,
        "self" => module,
        "super" => {
            let mut at = modules.0[module].parent?;
            while let Some(("super", more)) = rest.split_first().map(|(word, more)| (word.as_str(), more)) {
                (at, rest) = (modules.0[at].parent?, more);
            }
            at
        }
        name => {
            return match modules.0[module].children.get(name) {
                Some(child) => Some(within(modules, *child, rest, steps)),
                None => brought(modules, module, name, rest, steps),
            };
        }
    };
    at = within(modules, at, rest, steps);
    Some(at)
}

/// Follows a path from a module down to the module that defines what it names.
fn within(modules: &Crate, mut at: usize, mut rest: &[String], steps: usize) -> usize {
    while let Some((name, more)) = rest.split_first() {
        match modules.0[at].children.get(name) {
            Some(child) => (at, rest) = (*child, more),
            // A name that a module re-exports belongs to another one.
            None => return brought(modules, at, name, more, steps).unwrap_or(at),
        }
    }
    at
}

/// Follows a name that a `use` has brought into a module.
fn brought(modules: &Crate, module: usize, name: &str, rest: &[String], steps: usize) -> Option<usize> {
    let uses = &modules.0[module].uses;
    let mut by_name = uses.iter().filter(|brought| brought.name == name && brought.path != [name]);
    if let Some(found) =
        by_name.find_map(|brought| resolve(modules, module, &[&brought.path[..], rest].concat(), steps))
    {
        return Some(found);
    }
    let mut by_star = uses.iter().filter(|brought| brought.name == "*");
    by_star.find_map(|brought| {
        let from = resolve(modules, module, &brought.path, steps)?;
        let child = modules.0[from].children.get(name)?;
        Some(within(modules, *child, rest, steps))
    })
}
