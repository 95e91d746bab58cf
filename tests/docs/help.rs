//! The flags and commands of `weft`, as `--help` prints them.

use std::process::Command;

use weft_tests::binary;

/// One flag of a command.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Flag {
    /// `--file`
    pub(crate) long: String,
    /// `-f`
    pub(crate) short: Option<String>,
    /// `WEFT_OUTBOUND`
    pub(crate) variable: Option<String>,
    /// As it is printed: a value, or words that say what is used instead.
    pub(crate) default: Option<String>,
}

/// What `weft COMMAND --help` prints.
pub(crate) fn of(command: &[&str]) -> String {
    let output = Command::new(binary("weft")).args(command).arg("--help").output().expect("weft starts");
    assert!(output.status.success(), "weft {} --help: {output:?}", command.join(" "));
    String::from_utf8(output.stdout).expect("help is text")
}

/// The flags in a help text, but for those that each command has.
pub(crate) fn flags(help: &str) -> Vec<Flag> {
    let (_, options) = help.split_once("\nOptions:\n").expect("a command has options");
    let mut entries: Vec<String> = Vec::new();
    for line in options.lines().take_while(|line| line.is_empty() || line.starts_with(' ')) {
        let text = line.trim();
        // `- go: Go` is one of the values of a flag.
        let begins = text.starts_with('-') && !text.starts_with("- ");
        match entries.last_mut() {
            _ if begins => entries.push(text.to_owned()),
            Some(entry) => *entry += &format!("\n{text}"),
            None => {}
        }
    }
    let flags = entries.iter().map(|entry| Flag::read(entry));
    flags.filter(|flag| !["--help", "--version"].contains(&flag.long.as_str())).collect()
}

impl Flag {
    fn read(entry: &str) -> Self {
        let mut names = entry.split([' ', ',', '\n']).filter(|word| !word.is_empty());
        let first = names.next().unwrap_or_default().to_owned();
        let (short, long) = match first.starts_with("--") {
            true => (None, first),
            false => (Some(first), names.next().unwrap_or_default().to_owned()),
        };
        let note = |name: &str| {
            let (_, rest) = entry.rsplit_once(&format!("[{name}: "))?;
            Some(rest.split_once(']')?.0.to_owned())
        };
        let variable = note("env").map(|text| text.split('=').next().unwrap_or_default().to_owned());
        Self { long, short, variable, default: note("default") }
    }
}

/// The commands in a help text, but for `help`.
pub(crate) fn commands(help: &str) -> Vec<String> {
    let (_, commands) = help.split_once("\nCommands:\n").expect("it has commands");
    let lines = commands.lines().take_while(|line| line.starts_with("  "));
    let names = lines.filter_map(|line| line.split_whitespace().next());
    names.filter(|name| *name != "help").map(str::to_owned).collect()
}
