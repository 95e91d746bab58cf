//! The check itself, on small crates.

use std::{collections::BTreeMap, fs, path::PathBuf};

use tempfile::TempDir;

use crate::{
    crates::{Manifest, misdirected},
    cycles::{self, Cycle},
    judge,
    known::Known,
    modules::Crate,
};

/// The cycles of a crate with these files.
fn cycles_of(files: &[(&str, &str)]) -> Vec<Cycle> {
    let dir = TempDir::new().expect("a folder");
    for (name, text) in files {
        let file = dir.path().join(name);
        fs::create_dir_all(file.parent().expect("a folder")).expect("it can be made");
        fs::write(file, text).expect("it can be written");
    }
    cycles::find(&Crate::read(&dir.path().join("lib.rs")))
}

/// For each cycle: its module, its members, and the chain through the first member.
fn found(files: &[(&str, &str)]) -> Vec<(String, Vec<String>, String)> {
    let told = |cycle: &Cycle| (cycle.within.clone(), cycle.members.clone(), cycle.chain_through(&cycle.members[0]));
    cycles_of(files).iter().map(told).collect()
}

#[test]
fn a_cycle_of_files_is_reported_as_a_chain() {
    let files = [
        ("lib.rs", "mod a; mod b; mod c; mod d;"),
        ("a.rs", "use crate::{b::{B as Other, self}, d};"),
        ("b.rs", "fn f() -> Vec<u8> { super::c::C::new() }"),
        ("c.rs", "pub(in crate::d) use super::a::A;"),
        ("d.rs", "//! Needs nobody: crate::a is only named.\nconst TEXT: &str = \"crate::a::A\";"),
    ];
    let chain =
        "  a.rs uses crate::b::B of b.rs\n  b.rs uses super::c::C::new of c.rs\n  c.rs uses super::a::A of a.rs";
    let members = ["a", "b", "c"].map(str::to_owned).to_vec();
    assert_eq!(found(&files), [(String::new(), members, chain.to_owned())]);
}

#[test]
fn a_cycle_of_folders_is_found_through_any_of_their_files() {
    let files = [
        ("lib.rs", "mod one; mod two;"),
        ("one.rs", "mod a; mod b;"),
        ("one/a.rs", "use crate::two;"),
        ("one/b.rs", ""),
        ("two/mod.rs", "mod inner { mod deep; }"),
        ("two/inner/deep.rs", "type T = crate::one::b::B;"),
    ];
    let chain = "  one/a.rs uses crate::two of two/mod.rs\n  two/inner/deep.rs uses crate::one::b::B of one/b.rs";
    assert_eq!(found(&files), [(String::new(), vec!["one".to_owned(), "two".to_owned()], chain.to_owned())]);
}

#[test]
fn a_file_and_its_folder_count_as_one() {
    let files = [
        ("lib.rs", "mod a;"),
        ("a.rs", "mod x; mod y; use x::X; pub use y::Y;"),
        // `super::Y` is a re-export of `y`, so `x` imports `y`, which imports `x`.
        ("a/x.rs", "use super::Y; use super::Own;"),
        ("a/y.rs", "use super::x::X;"),
    ];
    let chain = "  a/x.rs uses super::Y of a/y.rs\n  a/y.rs uses super::x::X of a/x.rs";
    assert_eq!(found(&files), [("a".to_owned(), vec!["x".to_owned(), "y".to_owned()], chain.to_owned())]);
    let files = [files[0], files[1], ("a/x.rs", "use super::Own;"), files[3]];
    assert_eq!(found(&files), []);
}

#[test]
fn names_from_globs_and_aliases_are_followed() {
    let by = |uses: &str| {
        let a = format!("{uses} fn f() {{ b::g() }}");
        found(&[("lib.rs", "mod a; mod b;"), ("a.rs", a.as_str()), ("b.rs", "use crate::a;")]).len()
    };
    assert_eq!((by("use super::*;"), by("use crate as top; use top::b;"), by("")), (1, 1, 0));
}

#[test]
fn test_code_does_not_count() {
    let b = "use crate::a;";
    for a in [
        "#[cfg(test)] use crate::b;",
        "#[cfg(test)] mod tests { use crate::b; }",
        "#[cfg(all(test, unix))] pub(crate) fn f() { crate::b::g() }",
        "#[cfg(test)]\nmod tests;",
    ] {
        let files = [("lib.rs", "mod a; mod b;"), ("a.rs", a), ("b.rs", b), ("a/tests.rs", "use crate::b;")];
        assert_eq!(found(&files), [], "{a}");
        // Code after it counts.
        let after = format!("{a} fn g() {{ crate::b::g() }}");
        assert_eq!(found(&[files[0], ("a.rs", &after), files[2], files[3]]).len(), 1, "{after}");
    }
}

#[test]
fn the_list_of_known_cycles_may_only_get_shorter() {
    let files =
        [("lib.rs", "mod a; mod b; mod c;"), ("a.rs", "use crate::b;"), ("b.rs", "use crate::a;"), ("c.rs", "")];
    let found = cycles_of(&files);
    let judged =
        |members: &'static [&'static str]| judge("lib.rs", &found, &[Known { root: "lib.rs", within: "", members }]);
    assert_eq!(judged(&["a", "b"]), [""; 0]);
    assert_eq!(judge("other.rs", &[], &[Known { root: "lib.rs", within: "", members: &["a"] }]), [""; 0]);
    let new = judged(&["a"]).remove(0);
    assert!(
        new.starts_with("lib.rs: b is in a cycle of imports, which joins a cycle that is known:\n  b.rs uses"),
        "{new}"
    );
    let gone = judged(&["a", "b", "c"]).remove(0);
    assert!(gone.starts_with("lib.rs: c is in no cycle any more: take it off the list"), "{gone}");
    let all_new = judged(&[]);
    assert!(all_new.len() == 1 && all_new[0].starts_with("lib.rs: a is in a cycle of imports:\n"), "{all_new:?}");
}

#[test]
fn a_crate_with_a_forbidden_dependency_is_reported() {
    let of = |text: &str| {
        let manifests = BTreeMap::from([(PathBuf::from("x/Cargo.toml"), Manifest::read(text))]);
        misdirected(&manifests)
    };
    let wire = "[package]\nname = \"weft-wire\"\n[dependencies]\nbytes.workspace = true\n";
    assert_eq!(of(wire), [""; 0]);
    let expected = ["x/Cargo.toml: weft-wire must not depend on weft-mesh"];
    for section in ["dependencies", "dev-dependencies", "target.'cfg(unix)'.dependencies"] {
        for dependency in ["weft-mesh.workspace = true", "weft-mesh = { workspace = true }"] {
            assert_eq!(of(&format!("[package]\nname = \"weft-wire\"\n[{section}]\n{dependency}\n")), expected);
        }
    }
    assert!(of("[package]\nname = \"weft-new\"\n")[0].contains("does not say what weft-new may depend on"));
    let targets = Manifest::read("[package]\nname = \"shop-a\"\n[lib]\npath = \"x.rs\"\n[[bin]]\npath = \"y.rs\"\n");
    assert_eq!(targets.roots, ["x.rs", "y.rs"]);
}
