//! Finds the programs of a project from the files of its build tool.
//!
//! These are guesses from a few lines of each file, without a real parser: the user reviews the result.

use std::path::Path;

use serde_json::Value;

use super::{Found, Tree, entries, read};

/// The programs of the project in the folder `at` under `folder`; none if there is no project.
pub(super) fn look_into(folder: &Path, at: &str, tree: &Tree) -> Vec<Found> {
    // A package.json is often there for tools only, so it comes last.
    let languages: [fn(&Place<'_>) -> Vec<Found>; 5] = [rust, go, java, python, node];
    let place = Place { folder, at, tree };
    languages.iter().map(|language| language(&place)).find(|found| !found.is_empty()).unwrap_or_default()
}

/// A folder that may be a project.
struct Place<'a> {
    /// The mesh's folder.
    folder: &'a Path,
    /// The path from there, with a `/` at the end; empty for the mesh's folder itself.
    at: &'a str,
    tree: &'a Tree,
}

impl Place<'_> {
    fn read(&self, name: &str) -> Option<String> {
        read(self.folder, &format!("{}{name}", self.at))
    }

    fn has(&self, name: &str) -> bool {
        self.folder.join(self.at).join(name).is_file()
    }

    /// The first of these files that exists.
    fn first_of<'a>(&self, names: &[&'a str]) -> Option<&'a str> {
        names.iter().copied().find(|name| self.has(name))
    }

    /// The folder as an argument: `.` for the mesh's own.
    fn argument(&self) -> &str {
        if self.at.is_empty() { "." } else { self.at.trim_end_matches('/') }
    }

    /// `flag services/users`, or nothing in the mesh's own folder.
    fn option(&self, flag: &str, file: &str) -> String {
        if self.at.is_empty() { String::new() } else { format!("{flag} {}{file} ", self.at) }
    }

    fn name(&self) -> String {
        let folder = self.folder.join(self.at);
        folder.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned())
    }

    fn found(&self, language: &str, marker: &str, name: String) -> Found {
        Found {
            name,
            from: format!("{language}, by {}{marker}", self.at),
            folder: self.at.to_owned(),
            ..Found::default()
        }
    }
}

fn rust(place: &Place<'_>) -> Vec<Found> {
    let Some(manifest) = place.read("Cargo.toml") else { return Vec::new() };
    let build = format!("cargo build --release {}", place.option("--manifest-path", "Cargo.toml"));
    let is_workspace = |manifest: &str| manifest.lines().any(|line| line.trim() == "[workspace]");
    let members: Vec<&str> = if is_workspace(&manifest) { place.tree.under(place.at).collect() } else { Vec::new() };
    let mut found = Vec::new();
    for at in std::iter::once(place.at).chain(members) {
        let member = Place { at, ..*place };
        let Some(manifest) = member.read("Cargo.toml") else { continue };
        // It is a workspace of its own, as fuzz targets often are.
        if at != place.at && is_workspace(&manifest) {
            continue;
        }
        let program = toml_text(&manifest, "[bin]", "name");
        let package = toml_text(&manifest, "package", "name").filter(|_| member.has("src/main.rs"));
        let Some(name) = program.or(package) else { continue };
        found.push(Found {
            build: vec![build.trim_end().to_owned()],
            run: format!("{}target/release/{name}", place.at),
            knows_grpc: manifest.contains("tonic") || manifest.contains("grpc"),
            ..member.found("Rust", "Cargo.toml", name)
        });
    }
    found
}

fn go(place: &Place<'_>) -> Vec<Found> {
    let Some(module) = place.read("go.mod") else { return Vec::new() };
    let knows_grpc = module.contains("google.golang.org/grpc") || module.contains("connectrpc.com/connect");
    let module = module.lines().find_map(|line| line.strip_prefix("module ")).unwrap_or_default().trim().to_owned();
    let mut found = Vec::new();
    for at in std::iter::once(place.at).chain(place.tree.under(place.at)) {
        let program = Place { at, ..*place };
        if !has_go_main(&program) {
            continue;
        }
        let path = format!("{module}/{}", &at[place.at.len()..]);
        let name = last_telling(&path).unwrap_or_else(|| program.name());
        let package = at[place.at.len()..].trim_end_matches('/');
        let package = if package.is_empty() { ".".to_owned() } else { format!("./{package}") };
        found.push(Found {
            build: vec![format!("go build {}-o bin/{name} {package}", place.option("-C", ""))],
            run: format!("{}bin/{name}", place.at),
            knows_grpc,
            from: format!("Go, by {}go.mod", place.at),
            ..program.found("Go", "go.mod", name.clone())
        });
        // If the module's own folder is a program, programs in folders below are only its tools.
        if at == place.at {
            break;
        }
    }
    found
}

/// Whether the folder is a package `main`.
fn has_go_main(place: &Place<'_>) -> bool {
    let is_source = |name: &String| name.ends_with(".go") && !name.ends_with("_test.go");
    let sources = entries(&place.folder.join(place.at), |_| true).into_iter().filter(is_source);
    let mut packages = sources.filter_map(|name| {
        let text = place.read(&name)?;
        // Files that no build includes, such as generators, say so at the top.
        let is_ignored = text.contains("//go:build ignore");
        text.lines()
            .find_map(|line| line.strip_prefix("package "))
            .filter(|_| !is_ignored)
            .map(|name| name.trim() == "main")
    });
    packages.any(|is_main| is_main)
}

/// The last part of a path that distinguishes the program: not `cmd`, `server`, `v2` and the like.
fn last_telling(path: &str) -> Option<String> {
    let is_version = |part: &str| part.strip_prefix('v').is_some_and(|rest| rest.parse::<u32>().is_ok());
    let says_nothing =
        |part: &&str| part.is_empty() || ["cmd", "main", "server", "src"].contains(part) || is_version(part);
    path.rsplit('/').find(|part| !says_nothing(part)).map(str::to_owned)
}

fn java(place: &Place<'_>) -> Vec<Found> {
    let Some(pom) = place.read("pom.xml") else { return Vec::new() };
    let mut own = pom.clone();
    for inner in ["parent", "dependencyManagement", "dependencies", "profiles", "plugins", "extensions"] {
        own = without_element(&own, inner);
    }
    if element(&own, "packaging").is_some_and(|packaging| packaging == "pom") {
        // Its modules are projects of their own.
        return Vec::new();
    }
    let Some(artifact) = element(&own, "artifactId") else { return Vec::new() };
    let version = element(&own, "version").or_else(|| element(&pom, "version")).unwrap_or_else(|| "VERSION".to_owned());
    let jar = element(&own, "finalName").unwrap_or_else(|| format!("{artifact}-{version}"));
    vec![Found {
        build: vec![format!("mvn --quiet --batch-mode {}package", place.option("--file", "pom.xml"))],
        run: format!("java -jar {}target/{jar}.jar", place.at),
        knows_grpc: pom.contains("io.grpc") || pom.contains("quarkus-grpc"),
        ..place.found("Java", "pom.xml", artifact)
    }]
}

fn python(place: &Place<'_>) -> Vec<Found> {
    let Some(marker) = place.first_of(&["requirements.txt", "pyproject.toml", "setup.py"]) else { return Vec::new() };
    const MAINS: [&str; 6] = ["server.py", "main.py", "app.py", "src/server.py", "src/main.py", "src/app.py"];
    let Some(main) = place.first_of(&MAINS).map(str::to_owned).or_else(|| only_script(place)) else {
        return Vec::new();
    };
    let project = place.read("pyproject.toml").unwrap_or_default();
    let name = toml_text(&project, "project", "name").or_else(|| toml_text(&project, "tool.poetry", "name"));
    let what = match marker {
        "requirements.txt" => format!("--requirement {}requirements.txt", place.at),
        _ => place.argument().to_owned(),
    };
    let needs = format!("{project}{}", place.read("requirements.txt").unwrap_or_default());
    let at = place.at;
    vec![Found {
        build: vec![
            format!("python3 -m venv {at}.venv"),
            format!("{at}.venv/bin/python -m pip install --quiet --disable-pip-version-check {what}"),
        ],
        run: format!("{at}.venv/bin/python {at}{main}"),
        knows_grpc: needs.contains("grpcio") || needs.contains("grpclib"),
        ..place.found("Python", marker, name.unwrap_or_else(|| place.name()))
    }]
}

/// The only file of the folder that has a `__main__` block.
fn only_script(place: &Place<'_>) -> Option<String> {
    let mut names =
        entries(&place.folder.join(place.at), |entry| entry.path().extension().is_some_and(|end| end == "py"));
    names.retain(|name| place.read(name).is_some_and(|text| text.contains("__name__ == \"__main__\"")));
    if names.len() == 1 { names.pop() } else { None }
}

fn node(place: &Place<'_>) -> Vec<Found> {
    let Some(text) = place.read("package.json") else { return Vec::new() };
    let Ok(package) = serde_json::from_str::<Value>(&text) else { return Vec::new() };
    let script = |name: &str| package["scripts"][name].as_str();
    let main = package["main"].as_str().filter(|main| place.has(main));
    const MAINS: [&str; 7] =
        ["server.js", "index.js", "app.js", "main.js", "server.mjs", "src/server.js", "src/index.js"];
    let start = script("start");
    let run = match (start.and_then(|start| start.strip_prefix("node ")), main.or_else(|| place.first_of(&MAINS))) {
        // It runs in the mesh's folder. Words before the file are flags of node.
        (Some(rest), _) if place.at.is_empty() => format!("node {rest}"),
        (_, Some(main)) => format!("node {}{}", place.at, main.trim_start_matches("./")),
        _ if start.is_some() => format!("npm {}start", place.option("--prefix", "")),
        _ => return Vec::new(),
    };
    let mut build = vec![format!("npm install {}--no-audit --no-fund", place.option("--prefix", ""))];
    if script("build").is_some() {
        build.push(format!("npm {}run build", place.option("--prefix", "")));
    }
    let name = package["name"].as_str().and_then(|name| name.rsplit('/').next()).map(str::to_owned);
    let needs = package["dependencies"].as_object();
    let knows_grpc = needs.is_some_and(|needs| needs.keys().any(|name| name.contains("grpc")));
    let found = place.found("Node", "package.json", name.unwrap_or_else(|| place.name()));
    vec![Found { build, run, knows_grpc, ..found }]
}

/// A string of a TOML table: `name = "users"` below `[package]`.
fn toml_text(text: &str, table: &str, key: &str) -> Option<String> {
    let header = format!("[{table}]");
    let lines = text.lines().map(str::trim).skip_while(|line| *line != header).skip(1);
    let mut values = lines.take_while(|line| !line.starts_with('[')).filter_map(|line| {
        let value = line.strip_prefix(key)?.trim_start().strip_prefix('=')?.trim_start();
        let quote = value.chars().next().filter(|c| ['"', '\''].contains(c))?;
        value[1..].split(quote).next().map(str::to_owned)
    });
    values.next()
}

/// The text of the first element of that name.
fn element(xml: &str, name: &str) -> Option<String> {
    let (_, rest) = xml.split_once(&format!("<{name}>"))?;
    rest.split_once(&format!("</{name}>")).map(|(text, _)| text.trim().to_owned())
}

/// XML without the elements of that name, which must not be nested.
fn without_element(xml: &str, name: &str) -> String {
    let (start, end) = (format!("<{name}>"), format!("</{name}>"));
    let mut kept = String::new();
    let mut rest = xml;
    // Each round consumes at least one end tag.
    while let Some((before, inside)) = rest.split_once(&start) {
        kept.push_str(before);
        let Some((_, after)) = inside.split_once(&end) else { return kept };
        rest = after;
    }
    kept + rest
}
