//! The thread that prints: one writer, so that lines never mix.

use std::io::{self, Write};

use tokio::sync::oneshot;
use weft_mesh::names::acts_on_terminal;

use super::{
    buffers::Entry,
    live::{Live, LiveLine, Size},
};

const RESET: &str = "\x1b[0m";
/// One for each service, in turn. A sidecar has the colour of its service, but faint.
const COLOURS: [&str; 8] = ["36", "32", "35", "33", "34", "96", "92", "95"];

/// What is printed in one go.
#[derive(Debug, Default)]
pub(super) struct Batch {
    pub(super) entries: Vec<Entry>,
    /// The new lines at the bottom of the terminal, if they change.
    pub(super) foot: Option<Vec<LiveLine>>,
    /// Notified when all of this is printed.
    pub(super) flushes: Vec<oneshot::Sender<()>>,
}

pub(super) struct Printer {
    /// By source; the last one is weft's own.
    prefixes: Vec<String>,
    has_colours: bool,
    /// None if nothing is redrawn.
    live: Option<Live>,
    foot: Vec<LiveLine>,
    size: fn() -> Size,
}

impl Printer {
    /// For processes of these names, and after them weft itself.
    pub(super) fn new(names: &[String], has_colours: bool, is_live: bool) -> Self {
        let width = names.iter().map(|name| name.chars().count()).max().unwrap_or(0).max("weft".len());
        let mut services: Vec<&str> = Vec::new();
        let mut prefixes: Vec<String> = names
            .iter()
            .map(|name| {
                let service = name.split('·').next().unwrap_or(name);
                let index = services.iter().position(|known| *known == service).unwrap_or_else(|| {
                    services.push(service);
                    services.len() - 1
                });
                let faint = if name.contains('·') { "2;" } else { "" };
                prefix(name, width, has_colours.then(|| format!("{faint}{}", COLOURS[index % COLOURS.len()])))
            })
            .collect();
        prefixes.push(prefix("weft", width, has_colours.then(|| "1".to_owned())));
        let live = is_live.then(|| Live::new(has_colours));
        Self { prefixes, has_colours, live, foot: Vec::new(), size: Size::of_stdout }
    }

    /// Prints a batch above the lines at the bottom.
    pub(super) fn print(&mut self, batch: Batch, out: &mut impl Write) -> io::Result<()> {
        if let Some(live) = &mut self.live {
            live.clear(out)?;
        }
        for entry in batch.entries {
            self.entry(entry, out)?;
        }
        if let Some(foot) = batch.foot {
            self.foot = foot;
        }
        if let Some(live) = &mut self.live {
            live.draw(&self.foot, (self.size)(), out)?;
        }
        out.flush()
    }

    fn entry(&self, Entry { source, line, dropped }: Entry, out: &mut impl Write) -> io::Result<()> {
        let prefix = self.prefixes[source].as_str();
        if dropped > 0 {
            writeln!(out, "{prefix}… {dropped} lines were dropped: they came faster than they could be printed")?;
        }
        if source + 1 < self.prefixes.len() {
            return writeln!(out, "{prefix}{}", clean(&line.text, self.has_colours));
        }
        let prefix = if line.is_bare && self.live.is_some() { "" } else { prefix };
        // They may quote others: the last lines of a program, or what a service tells.
        line.text.lines().try_for_each(|line| writeln!(out, "{prefix}{}", clean(line, self.has_colours)))
    }
}

fn prefix(name: &str, width: usize, colour: Option<String>) -> String {
    match colour {
        Some(colour) => format!("\x1b[{colour}m{name:width$} │{RESET} "),
        None => format!("{name:width$} │ "),
    }
}

/// A line without anything that acts on the terminal, except its own colours.
fn clean(line: &str, has_colours: bool) -> String {
    let mut cleaned = String::with_capacity(line.len());
    let mut is_coloured = false;
    let mut rest = line.chars().peekable();
    while let Some(c) = rest.next() {
        if c == '\x1b' && rest.peek() == Some(&'[') {
            rest.next();
            let mut sequence = String::new();
            let end = rest.by_ref().find(|c| {
                let is_end = ('@'..='~').contains(c);
                if !is_end {
                    sequence.push(*c);
                }
                is_end
            });
            // Nothing but numbers is a colour: with `>` before them it would be an order to the keyboard (XTMODKEYS).
            let is_colour = end == Some('m') && sequence.chars().all(|c| matches!(c, '0'..='9' | ';' | ':'));
            if is_colour && has_colours {
                cleaned.push_str(&format!("\x1b[{sequence}m"));
                is_coloured = true;
            }
        } else if c == '\t' || !acts_on_terminal(c) {
            cleaned.push(c);
        }
    }
    if is_coloured {
        cleaned.push_str(RESET);
    }
    cleaned
}

#[cfg(test)]
mod tests {
    use super::{
        super::{buffers::Line, live::Tone},
        *,
    };

    const OWN: usize = 3;

    fn printer(has_colours: bool, is_live: bool) -> Printer {
        let names = ["control", "users-1", "users-1·sidecar"].map(str::to_owned);
        let size = || Size { columns: 80, rows: 24 };
        Printer { size, ..Printer::new(&names, has_colours, is_live) }
    }

    fn printed(printer: &mut Printer, entries: Vec<Entry>, foot: Option<&str>) -> String {
        let line = |text: &str| vec![LiveLine { text: text.to_owned(), tone: Tone::Plain }];
        let mut out = Vec::new();
        printer.print(Batch { entries, foot: foot.map(line), flushes: Vec::new() }, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    fn line(source: usize, text: &str) -> Entry {
        Entry { source, line: Line { text: text.to_owned(), is_bare: false }, dropped: 0 }
    }

    #[test]
    fn each_line_starts_with_its_process_s_name() {
        let entries = vec![line(OWN, "ready\nnow"), line(1, "early"), line(2, "late")];
        assert_eq!(
            printed(&mut printer(false, false), entries, None),
            "weft            │ ready\nweft            │ now\nusers-1         │ early\nusers-1·sidecar │ late\n"
        );
    }

    #[test]
    fn dropped_lines_are_reported() {
        let dropped = Entry { dropped: 7, ..line(0, "x") };
        assert_eq!(
            printed(&mut printer(false, false), vec![dropped], None),
            "control         │ … 7 lines were dropped: they came faster than they could be printed\ncontrol         │ x\n"
        );
    }

    #[test]
    fn a_sidecar_has_its_service_s_colour_but_faint() {
        let told = printed(&mut printer(true, false), vec![line(1, "a"), line(2, "b")], None);
        assert_eq!(told, "\x1b[32musers-1         │\x1b[0m a\n\x1b[2;32musers-1·sidecar │\x1b[0m b\n");
    }

    #[test]
    fn lines_are_printed_above_those_that_are_redrawn() {
        let mut printer = printer(false, true);
        assert_eq!(printed(&mut printer, vec![], Some("starting")), "starting\n");
        let told = printed(&mut printer, vec![line(1, "hello")], None);
        assert_eq!(told, "\x1b[1A\x1b[Jusers-1         │ hello\nstarting\n");
        let table = || Entry { line: Line { text: "a table".to_owned(), is_bare: true }, ..line(OWN, "") };
        let ended = Batch { entries: vec![table()], foot: Some(Vec::new()), flushes: Vec::new() };
        let mut out = Vec::new();
        printer.print(ended, &mut out).unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), "\x1b[1A\x1b[Ja table\n");
    }

    #[test]
    fn without_a_terminal_nothing_is_redrawn_and_each_line_has_its_name() {
        let mut printer = printer(false, false);
        let table = Entry { line: Line { text: "a table".to_owned(), is_bare: true }, ..line(OWN, "") };
        assert_eq!(printed(&mut printer, vec![table], Some("starting")), "weft            │ a table\n");
    }

    #[test]
    fn a_line_can_colour_itself_and_nothing_else() {
        let line = "\x1b[2J\x1b[31mred\x07\ttab\x1b]0;title\x07";
        assert_eq!(clean(line, true), "\x1b[31mred\ttab]0;title\x1b[0m");
        assert_eq!(clean(line, false), "red\ttab]0;title");
        let disguised = "\x1b[>4;2ma\x1b[\x07\u{9b}2mb\u{9b}2Jc\u{202e}d\x1b[38:5:1m";
        assert_eq!(clean(disguised, true), "ab2Jcd\x1b[38:5:1m\x1b[0m");
    }

    #[test]
    fn what_weft_quotes_does_not_act_on_the_terminal() {
        let quoted = vec![line(OWN, "its last lines:\n  \x1b[2J\u{9b}Hgone")];
        let expected = "weft            │ its last lines:\nweft            │   Hgone\n";
        assert_eq!(printed(&mut printer(false, false), quoted, None), expected);
    }
}
