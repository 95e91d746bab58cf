//! The thread that prints: one writer, so that lines never mix.

use std::{collections::VecDeque, io::Write};

use tokio::sync::{mpsc, oneshot};

/// Lines that are held back until the table was shown.
const HELD: usize = 2_000;

const RESET: &str = "\x1b[0m";
/// One for each service, in turn; a sidecar has its service's, but faint.
const COLOURS: [&str; 8] = ["36", "32", "35", "33", "34", "96", "92", "95"];

/// What the thread is told.
pub(super) enum Message {
    /// A line of a process, and how many were dropped before it.
    Line { source: usize, line: String, dropped: u64 },
    /// A line of weft's own.
    Say(String),
    /// From now on everything as it comes.
    Release,
    /// Answer when everything before was printed.
    Flush(oneshot::Sender<()>),
}

pub(super) struct Printer {
    prefixes: Vec<String>,
    own_prefix: String,
    has_colours: bool,
    /// `None` once released.
    held: Option<VecDeque<(usize, String)>>,
    held_dropped: u64,
}

impl Printer {
    pub(super) fn new(names: &[String], has_colours: bool) -> Self {
        let width = names.iter().map(|name| name.chars().count()).max().unwrap_or(0).max("weft".len());
        let mut services: Vec<&str> = Vec::new();
        let prefixes = names
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
        let own_prefix = prefix("weft", width, has_colours.then(|| "1".to_owned()));
        Self { prefixes, own_prefix, has_colours, held: Some(VecDeque::new()), held_dropped: 0 }
    }

    pub(super) fn run(mut self, mut messages: mpsc::Receiver<Message>, out: impl Write) {
        let mut out = std::io::BufWriter::new(out);
        while let Some(message) = messages.blocking_recv() {
            self.take(message, &mut out);
            // What is there already goes out in one write.
            while let Ok(message) = messages.try_recv() {
                self.take(message, &mut out);
            }
            // Nobody reads any more: the mesh goes on, its lines have nowhere to go.
            let _ = out.flush();
        }
    }

    fn take(&mut self, message: Message, out: &mut impl Write) {
        match message {
            Message::Say(text) => {
                for line in text.lines() {
                    let _ = writeln!(out, "{}{line}", self.own_prefix);
                }
            }
            Message::Line { source, line, dropped } => {
                if dropped > 0 {
                    self.line(
                        source,
                        format!("… {dropped} lines were dropped: they came faster than they could be printed"),
                        out,
                    );
                }
                self.line(source, line, out);
            }
            Message::Release => {
                if self.held_dropped > 0 {
                    let _ = writeln!(out, "{}… {} earlier lines left out", self.own_prefix, self.held_dropped);
                }
                for (source, line) in self.held.take().unwrap_or_default() {
                    self.line(source, line, out);
                }
            }
            Message::Flush(done) => {
                let _ = out.flush();
                let _ = done.send(());
            }
        }
    }

    fn line(&mut self, source: usize, line: String, out: &mut impl Write) {
        match &mut self.held {
            Some(held) => {
                if held.len() == HELD {
                    held.pop_front();
                    self.held_dropped += 1;
                }
                held.push_back((source, line));
            }
            None => {
                let _ = writeln!(out, "{}{}", self.prefixes[source], clean(&line, self.has_colours));
            }
        }
    }
}

fn prefix(name: &str, width: usize, colour: Option<String>) -> String {
    match colour {
        Some(colour) => format!("\x1b[{colour}m{name:width$} │{RESET} "),
        None => format!("{name:width$} │ "),
    }
}

/// A line that cannot do anything to the terminal but colour itself.
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
            if end == Some('m') && has_colours {
                cleaned.push_str(&format!("\x1b[{sequence}m"));
                is_coloured = true;
            }
        } else if c == '\t' || !c.is_control() {
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
    use super::*;

    fn printed(has_colours: bool, messages: Vec<Message>) -> String {
        let names = ["control", "users-1", "users-1·sidecar"].map(str::to_owned);
        let mut printer = Printer::new(&names, has_colours);
        let mut out = Vec::new();
        for message in messages {
            printer.take(message, &mut out);
        }
        String::from_utf8(out).unwrap()
    }

    fn line(source: usize, line: &str) -> Message {
        Message::Line { source, line: line.to_owned(), dropped: 0 }
    }

    #[test]
    fn lines_stand_behind_their_process_s_name_once_they_are_released() {
        let messages = vec![line(1, "early"), Message::Say("ready\nnow".to_owned()), Message::Release, line(2, "late")];
        assert_eq!(
            printed(false, messages),
            "weft            │ ready\nweft            │ now\nusers-1         │ early\nusers-1·sidecar │ late\n"
        );
    }

    #[test]
    fn what_was_dropped_is_told() {
        let dropped = Message::Line { source: 0, line: "x".to_owned(), dropped: 7 };
        assert_eq!(
            printed(false, vec![Message::Release, dropped]),
            "control         │ … 7 lines were dropped: they came faster than they could be printed\ncontrol         │ x\n"
        );
    }

    #[test]
    fn a_sidecar_has_its_service_s_colour_but_faint() {
        let told = printed(true, vec![Message::Release, line(1, "a"), line(2, "b")]);
        assert_eq!(told, "\x1b[32musers-1         │\x1b[0m a\n\x1b[2;32musers-1·sidecar │\x1b[0m b\n");
    }

    #[test]
    fn a_line_can_colour_itself_and_nothing_else() {
        let line = "\x1b[2J\x1b[31mred\x07\ttab\x1b]0;title\x07";
        assert_eq!(clean(line, true), "\x1b[31mred\ttab]0;title\x1b[0m");
        assert_eq!(clean(line, false), "red\ttab]0;title");
    }
}
