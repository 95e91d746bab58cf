//! Lists the contracts and methods that can be called.

use std::io::Write;

use anyhow::bail;
use weft_mesh::{
    names::closest,
    reflection::{Method, Reflection},
};

use crate::terminal;

/// Prints all contracts of the mesh with their methods, or only one contract.
pub(super) async fn print(reflection: &mut Reflection, only: Option<&str>) -> anyhow::Result<()> {
    let only = only.map(|name| name.trim_matches('/'));
    let contracts = reflection.services().await?;
    let chosen: Vec<&String> = contracts.iter().filter(|name| only.is_none_or(|only| *name == only)).collect();
    if chosen.is_empty() {
        match only {
            Some(name) => {
                let near = super::hint(closest(name, contracts.iter().map(String::as_str)));
                bail!("the mesh has no contract `{name}`{near}; `weft call` lists the contracts")
            }
            None => bail!("the mesh has no contract yet; are its services up?"),
        }
    }
    let mut text = String::new();
    for (index, contract) in chosen.into_iter().enumerate() {
        if index > 0 {
            text.push('\n');
        }
        match reflection.fetch_symbol(contract).await {
            // A contract that has gone in the meantime has no methods to print.
            Ok(_) => text.push_str(&described(contract, &reflection.methods(contract))),
            Err(error) if only.is_some() => return Err(error.into()),
            // Whoever tells a contract can make it too large. The others are listed all the same.
            Err(error) => {
                let (contract, why) = (terminal::line(contract), terminal::line(&error.to_string()));
                text.push_str(&format!("{contract}\n  its methods can't be listed: {why}\n"));
                reflection.forget();
            }
        }
    }
    // A closed pipe, as with `weft call | head`, is not an error.
    let _ = std::io::stdout().write_all(text.as_bytes());
    Ok(())
}

/// A contract and its methods, one line each.
fn described(contract: &str, methods: &[Method]) -> String {
    let mut text = format!("{}\n", terminal::line(contract));
    let names: Vec<String> = methods.iter().map(|method| terminal::line(&method.name)).collect();
    let width = names.iter().map(|name| name.chars().count()).max().unwrap_or(0);
    for (name, method) in names.iter().zip(methods) {
        text.push_str(&format!("  {name:width$}  {}\n", terminal::line(&shape(method, contract))));
    }
    text
}

/// `CreateRequest → stream Event`. Types of the contract's own package are shown without the package's name.
fn shape(method: &Method, contract: &str) -> String {
    let package = contract.rsplit_once('.').map_or("", |(package, _)| package);
    let kind = |name: &str, is_stream: bool| {
        let own = name.strip_prefix(package).and_then(|rest| rest.strip_prefix('.')).filter(|rest| !rest.contains('.'));
        format!("{}{}", if is_stream { "stream " } else { "" }, own.unwrap_or(name))
    };
    format!("{} → {}", kind(&method.input, method.client_streaming), kind(&method.output, method.server_streaming))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn watch() -> Method {
        Method {
            name: "Watch".to_owned(),
            path: "/a.v1.B/Watch".parse().unwrap(),
            input: "google.protobuf.Empty".to_owned(),
            output: "a.v1.Event".to_owned(),
            client_streaming: false,
            server_streaming: true,
        }
    }

    #[test]
    fn the_shape_of_a_method_is_short() {
        assert_eq!(shape(&watch(), "a.v1.B"), "google.protobuf.Empty → stream Event");
    }

    #[test]
    fn names_do_not_act_on_the_terminal() {
        let hostile = Method { name: "G\x1b[2J".to_owned(), output: "a.v1.E\u{9b}2J".to_owned(), ..watch() };
        let expected = "a.v1.B\\r\n  Watch       google.protobuf.Empty → stream Event\n  \
                        G\\u{1b}[2J  google.protobuf.Empty → stream E\\u{9b}2J\n";
        assert_eq!(described("a.v1.B\r", &[watch(), hostile]), expected);
    }
}
