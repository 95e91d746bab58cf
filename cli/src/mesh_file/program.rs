//! Finds the program of a line such as `run: target/release/users --port ${PORT}`.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use weft_mesh::{config::Reader, names::closest};

use super::Located;

/// The variables that a command line may contain.
const VARIABLES: &[&str] = &["PORT", "NAME"];

/// A program and its arguments, in which `${PORT}` and `${NAME}` are not replaced yet.
#[derive(Debug, Clone)]
pub(crate) struct CommandLine {
    /// As in the file.
    pub(crate) text: String,
    /// Where the program is, or will be once it is built.
    pub(crate) program: PathBuf,
    /// Its arguments.
    pub(crate) arguments: Vec<String>,
}

impl CommandLine {
    /// The arguments with their variables replaced.
    pub(crate) fn arguments_with(&self, port: u16, name: &str) -> Vec<String> {
        self.arguments.iter().map(|a| a.replace("${PORT}", &port.to_string()).replace("${NAME}", name)).collect()
    }
}

/// Splits a line and finds its program.
pub(super) fn command_line(
    reader: &mut Reader<'_>,
    field: &str,
    text: &Located<String>,
    folder: &Path,
    must_exist: bool,
) -> Option<CommandLine> {
    let Some(mut words) = shlex::split(&text.value).filter(|words| !words.is_empty()) else {
        let found = format!("found {:?}; allowed: a command line whose quotes are closed", text.value);
        reader.problem(text.line, field, found);
        return None;
    };
    for name in words.iter().flat_map(|word| unknown_variables(word)) {
        let allowed = VARIABLES.map_braces();
        reader.problem(text.line, field, format!("unknown variable `${{{name}}}`; allowed: {allowed}"));
    }
    let name = words.remove(0);
    let program = match find(&name, folder) {
        Ok(program) => program,
        Err(Missing { looked_at, .. }) if !must_exist && name.contains('/') => looked_at,
        Err(missing) => {
            reader.problem(text.line, field, missing.message);
            return None;
        }
    };
    Some(CommandLine { text: text.value.clone(), program, arguments: words })
}

trait Braces {
    fn map_braces(&self) -> String;
}

impl Braces for [&str] {
    fn map_braces(&self) -> String {
        self.iter().map(|name| format!("${{{name}}}")).collect::<Vec<_>>().join(", ")
    }
}

/// The name `X` of each unknown variable `${X}`.
fn unknown_variables(word: &str) -> Vec<&str> {
    word.split("${")
        .skip(1)
        .filter_map(|rest| rest.split_once('}').map(|(name, _)| name))
        .filter(|name| !VARIABLES.contains(name))
        .collect()
}

struct Missing {
    looked_at: PathBuf,
    message: String,
}

/// A name with a slash is a path from the mesh file's folder; any other is looked up in `PATH`.
fn find(name: &str, folder: &Path) -> Result<PathBuf, Missing> {
    if !name.contains('/') {
        let found = env::var_os("PATH")
            .and_then(|path| env::split_paths(&path).map(|dir| dir.join(name)).find(|p| is_executable(p)));
        return found.ok_or_else(|| Missing {
            looked_at: folder.join(name),
            message: format!(
                "no program `{name}` in PATH; allowed: a program in PATH, or a path with a / relative to the mesh file"
            ),
        });
    }
    let path = folder.join(name);
    if is_executable(&path) {
        return Ok(path);
    }
    let why = match fs::metadata(&path) {
        Ok(meta) if meta.is_dir() => format!("{} is a folder", path.display()),
        Ok(_) => format!("{} is not executable", path.display()),
        Err(_) => format!("no program {}{}", path.display(), like_it(&path, folder)),
    };
    Err(Missing { looked_at: path, message: format!("{why}; allowed: an executable file, relative to the mesh file") })
}

fn like_it(path: &Path, folder: &Path) -> String {
    let near = || {
        let (dir, name) = (path.parent()?, path.file_name()?.to_str()?);
        let names: Vec<String> = fs::read_dir(dir)
            .ok()?
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .filter(|name| is_executable(&dir.join(name)))
            .collect();
        let near = dir.join(closest(name, names.iter().map(String::as_str))?);
        Some(near.strip_prefix(folder).unwrap_or(&near).display().to_string())
    };
    near().map_or_else(String::new, |near| format!(" (did you mean `{near}`?)"))
}

#[cfg(unix)]
fn is_executable(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    fs::metadata(path).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

#[cfg(not(unix))]
fn is_executable(path: &Path) -> bool {
    path.is_file()
}
