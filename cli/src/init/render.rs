//! A `mesh.yaml` with what was found in a folder, in which every key is explained.

use super::guess::{Found, Guess};

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
        text += "\n# What could not be told from what is in the folder:\n";
        text.extend(guess.notes.iter().map(|note| format!("#   {}\n", note.replace('\n', " "))));
    }
    text
}

const HEAD: &str = "\
# The mesh of this folder, as `weft init` guessed it from what is there: look it over.
#
#   weft check     says what is wrong with this file, and starts nothing
#   weft up        builds and starts everything; Ctrl-C ends it
#
# Paths are relative to this file. What `weft up` keeps is in .weft beside it.

";

const NAMESPACE: &str = "# The services' full names end in it: users.shop. 1 to 63 of a-z, 0-9 and -.\n";

const BUILD: &str = "
# Run before the start, in this folder, one after the other: a command line or a list of them. There is no shell: for one,
# write sh -c '...'.
";

const MIDDLE: &str = "
# What you need to know from outside, all on 127.0.0.1: where you call in, the dashboard, the control plane. These are the
# defaults; 0 takes any free port.
# ports: { outbound: 15001, dashboard: 15080, control: 15010 }

# The share of calls that are traced, 1.0 by default; and an OTLP/gRPC receiver, such as Jaeger, that gets the traces too.
# traces: { sample: 1.0, otlp: http://127.0.0.1:4317 }

services:
";

const NOTHING_FOUND: &str = "  \
  # The service's name: others call it by that.
  my-service:
    # The program, split as a shell does. It has to listen at $WEFT_LISTEN, which is 127.0.0.1:$PORT; ${PORT} and ${NAME}
    # (my-service-1) may also stand in the line. It calls other services through its sidecar, at $WEFT_OUTBOUND.
    run: ./my-service --port ${PORT}
    # What it implements, if it speaks gRPC; its timeouts, retries and breakers are options in these files.
    # protos: [proto/my/v1/service.proto]
    # protocol: grpc     # or http1, or tcp for anything else
    # replicas: 1        # calls are spread over all
";

/// A service; only the first one explains the keys.
fn service(found: &Found, proto_path: &[String], is_first: bool) -> String {
    let mut text = String::new();
    let explain = |lines: &[&str], text: &mut String| {
        if is_first {
            text.extend(lines.iter().map(|line| format!("    # {line}\n")));
        }
    };
    text += &format!("  # {}\n  {}:\n", found.from, scalar(&found.name));
    explain(
        &[
            "The program, split as a shell does. It has to listen at $WEFT_LISTEN, which is 127.0.0.1:$PORT; ${PORT} and",
            "${NAME}, such as NAME-1, may also stand in the line. It calls others through its sidecar, at $WEFT_OUTBOUND.",
        ],
        &mut text,
    );
    text += &format!("    run: {}\n", scalar(&found.run));
    if found.protos.is_empty() {
        if found.speaks_grpc() {
            explain(&["What it implements; its timeouts, retries and breakers are options in these files."], &mut text);
            text += "    # protos: [proto/my/v1/service.proto]\n";
        }
    } else {
        explain(&["What it implements; its timeouts, retries and breakers are options in these files."], &mut text);
        text += &format!("    protos: {}\n", list(&found.protos));
        if !proto_path.is_empty() {
            explain(
                &["Where the imports of these files start; the default is the folder proto, or else this one."],
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

const REST: &str = "    \
    # How its sidecar asks whether it is up: grpc, the default of grpc; tcp, the default of the others; or http:/path.
    # health: tcp
    # How many of it are started. Calls are spread over all.
    # replicas: 1
    # Its port, where it has to be this one; the default is any that is free, which it hears in $PORT.
    # port: 9000
    # Added to its environment.
    # env: { LOG_LEVEL: debug }
";

fn list(texts: &[String]) -> String {
    format!("[{}]", texts.iter().map(|text| scalar(text)).collect::<Vec<_>>().join(", "))
}

/// A text as YAML: in quotes unless it can be taken for nothing else.
fn scalar(text: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "_-./= ".contains(c);
    // Not `.5` and `.inf`, which are numbers.
    let is_path = text.starts_with(['.', '/']) && text[1..].contains('/');
    let starts_plain = text.starts_with(|c: char| c.is_ascii_lowercase()) || is_path;
    // Words of YAML that are no texts.
    let is_word = ["null", "true", "false", "yes", "no", "on", "off", "y", "n"].contains(&text);
    if starts_plain && !is_word && text.chars().all(is_plain) && !text.ends_with(' ') {
        return text.to_owned();
    }
    // JSON's strings are YAML's, too.
    serde_json::Value::from(text).to_string()
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
}
