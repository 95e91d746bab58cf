//! A `mesh.yaml` with what was found in a folder, in which every key is explained.

use super::guess::{Found, Guess};
use crate::terminal;

/// The whole file.
pub(super) fn mesh_file(guess: &Guess) -> String {
    let mut text = HEAD.to_owned();
    match &guess.namespace {
        Some(namespace) => text += &format!("{NAMESPACE}namespace: {}\n", scalar(namespace)),
        None => text += &format!("{NAMESPACE}# namespace: shop\n"),
    }
    text += BUILD;
    match &guess.build[..] {
        [] => text += "# build: make\n",
        [one] => text += &format!("build: {}\n", scalar(one)),
        several => {
            text += "build:\n";
            text.extend(several.iter().map(|command| format!("  - {}\n", scalar(command))));
        }
    }
    text += MIDDLE;
    match &guess.services[..] {
        [] => text += NOTHING_FOUND,
        services => {
            for (index, found) in services.iter().enumerate() {
                if index > 0 {
                    text.push('\n');
                }
                text += &service(found, &guess.proto_path, index == 0);
            }
        }
    }
    if !guess.notes.is_empty() {
        text += "\n# What `weft init` could not find out:\n";
        text.extend(guess.notes.iter().map(|note| format!("#   {}\n", comment(&note.replace('\n', " ")))));
    }
    text
}

const HEAD: &str = "\
# The mesh of this folder. `weft init` guessed it from the files here: please check it.
#
#   weft check     says what is wrong with this file, and starts nothing
#   weft up        builds and starts everything; Ctrl-C stops it
#
# Paths are relative to this file. `weft up` keeps its state in the folder .weft beside it.

";

const NAMESPACE: &str =
    "# The full names of the services end with it: users.shop. Allowed: 1 to 63 characters of a-z, 0-9 and -.\n";

const BUILD: &str = "
# What to run before the start, in this folder: a command line, or a list of them. They run without a shell; if you need
# one, write sh -c '...'.
";

const MIDDLE: &str = "
# The ports for you, all on 127.0.0.1: for your calls into the mesh, the dashboard, the control plane. These are the
# defaults; 0 takes any free port.
# ports: { outbound: 15001, dashboard: 15080, control: 15010 }

# The share of calls that are traced, 1.0 by default; and an OTLP/gRPC receiver, such as Jaeger, that gets the traces too.
# traces: { sample: 1.0, otlp: http://127.0.0.1:4317 }

services:
";

const NOTHING_FOUND: &str = "  \
  # The service's name: others call it by this name.
  my-service:
    # The command line, split as a shell would but run without a shell. The program must listen at $WEFT_LISTEN, which is
    # 127.0.0.1:$PORT. The line may contain ${PORT} and ${NAME} (my-service-1). The program calls other services through
    # its sidecar, at $WEFT_OUTBOUND.
    run: ./my-service --port ${PORT}
    # The contracts that it implements, if it speaks gRPC. Timeouts, retries and breakers are options in these files.
    # protos: [proto/my/v1/service.proto]
    # protocol: grpc     # or http1, or tcp for anything else
    # replicas: 1        # calls are spread over all replicas
";

/// A service; only the first one explains the keys.
fn service(found: &Found, proto_path: &[String], is_first: bool) -> String {
    let mut text = String::new();
    let explain = |lines: &[&str], text: &mut String| {
        if is_first {
            text.extend(lines.iter().map(|line| format!("    # {line}\n")));
        }
    };
    text += &format!("  # {}\n  {}:\n", comment(&found.from), scalar(&found.name));
    explain(
        &[
            "The command line, split as a shell would but run without a shell. The program must listen at $WEFT_LISTEN,",
            "which is 127.0.0.1:$PORT. The line may contain ${PORT} and ${NAME}, such as users-1. The program calls other",
            "services through its sidecar, at $WEFT_OUTBOUND.",
        ],
        &mut text,
    );
    text += &format!("    run: {}\n", scalar(&found.run));
    if found.protos.is_empty() {
        if found.speaks_grpc() {
            explain(&[PROTOS], &mut text);
            text += "    # protos: [proto/my/v1/service.proto]\n";
        }
    } else {
        explain(&[PROTOS], &mut text);
        text += &format!("    protos: {}\n", list(&found.protos));
        if !proto_path.is_empty() {
            explain(
                &["The folders that imports in these files start from; the default is proto, or else this folder."],
                &mut text,
            );
            text += &format!("    proto_path: {}\n", list(proto_path));
        }
    }
    explain(&["What its port speaks: grpc (the default), http1, or tcp for anything else."], &mut text);
    text += if found.speaks_grpc() { "    protocol: grpc\n" } else { "    protocol: http1\n" };
    if is_first {
        text += REST;
    }
    text
}

const PROTOS: &str = "The contracts that it implements. Timeouts, retries and breakers are options in these files.";

const REST: &str = "    \
    # How its sidecar checks its health: grpc (the default for grpc), tcp (the default for the others), or http:/path.
    # health: tcp
    # How many replicas are started. Calls are spread over all of them.
    # replicas: 1
    # A fixed port, if it needs one. By default it gets any free port, in $PORT.
    # port: 9000
    # Variables that are added to its environment.
    # env: { LOG_LEVEL: debug }
";

fn list(texts: &[String]) -> String {
    format!("[{}]", texts.iter().map(|text| scalar(text)).collect::<Vec<_>>().join(", "))
}

/// A text for a comment. It may contain the name of a folder or a file, and these may contain newlines: what follows one
/// would not be a comment but a part of the file, such as a command to run.
fn comment(text: &str) -> String {
    terminal::line(text)
}

/// A string as YAML: in quotes, unless it can't be read as anything else.
fn scalar(text: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "_-./= ".contains(c);
    // Not `.5` and `.inf`, which are numbers.
    let is_path = text.starts_with(['.', '/']) && text[1..].contains('/');
    let starts_plain = text.starts_with(|c: char| c.is_ascii_lowercase()) || is_path;
    // Words that YAML may not read as strings.
    let is_word = ["null", "true", "false", "yes", "no", "on", "off", "y", "n"].contains(&text);
    if starts_plain && !is_word && text.chars().all(is_plain) && !text.ends_with(' ') {
        return text.to_owned();
    }
    // Every JSON string is a YAML string, too. YAML reads some characters as line breaks that JSON does not.
    terminal::json(&serde_json::Value::from(text).to_string())
}

#[cfg(test)]
mod tests {
    use weft_mesh::config::Node;

    use super::*;

    #[test]
    fn texts_come_back_as_they_were() {
        let texts = [
            "cargo build --release",
            "sh -c 'a && b'",
            "bin/x ${NAME}",
            "null",
            "007",
            ".5",
            "a: b",
            "a #b",
            "\"x\"",
            "@scope/x",
            "ä",
            "-x",
            ".venv/bin/python main.py",
            "a\nb\u{85}\u{2028}\u{7f}c",
        ];
        for text in texts {
            for yaml in [format!("a: {}\n", scalar(text)), format!("a: {}\n", list(&[text.to_owned()]))] {
                let node = Node::parse("mesh.yaml", &yaml).unwrap();
                let mut reader = weft_mesh::config::Reader { file: "mesh.yaml", problems: Vec::new() };
                let table = reader.table("", &node, &["a"]).unwrap();
                let read = reader.texts(&table, "a", "a text").unwrap();
                let read: Vec<&str> = read.iter().map(|text| text.value.as_str()).collect();
                assert_eq!((&read[..], &reader.problems[..]), (&[text][..], &[][..]), "{yaml}");
            }
        }
    }

    #[test]
    fn a_name_with_newlines_stays_in_its_comment() {
        let hostile = "Go, by a\nx\r\u{85}\u{2028}/go.mod\n    run: reboot\n  evil:\x1b[2J";
        let found =
            |name: &str| Found { name: name.into(), from: hostile.into(), run: "bin/x".into(), ..Found::default() };
        let services = vec![found("users"), found("web")];
        let guess = Guess { services, notes: vec![format!("note {hostile}")], ..Guess::default() };
        let text = mesh_file(&guess);
        let breaks = |c: char| c != '\n' && weft_mesh::names::acts_on_terminal(c);
        assert!(!text.contains(breaks), "{text:?}");
        // Every line that the names have got into is a comment.
        let with_it: Vec<&str> = text.lines().filter(|line| line.contains("reboot") || line.contains("evil")).collect();
        assert_eq!(with_it.len(), 3, "{with_it:?}");
        assert!(with_it.iter().all(|line| line.trim_start().starts_with('#')), "{with_it:?}");
        let root = Node::parse("mesh.yaml", &text).unwrap();
        let mut reader = weft_mesh::config::Reader { file: "mesh.yaml", problems: Vec::new() };
        let table = reader.table("", &root, &["services"]).unwrap();
        let services = reader.open_table("services", table.get("services").unwrap(), "a table").unwrap();
        let names: Vec<String> = services.entries().iter().map(|entry| entry.key.to_string()).collect();
        assert_eq!(names, ["users", "web"]);
    }
}
