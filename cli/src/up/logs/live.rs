//! Lines at the bottom of a terminal that are redrawn in place.

use std::io::{self, Write};

use weft_mesh::names::acts_on_terminal;

const RESET: &str = "\x1b[0m";

/// A line that is redrawn.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LiveLine {
    pub(crate) text: String,
    pub(crate) tone: Tone,
}

/// How a line looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tone {
    Plain,
    /// Nothing has happened yet.
    Faint,
    Good,
    Bad,
}

impl Tone {
    fn colour(self) -> &'static str {
        match self {
            Self::Plain => "",
            Self::Faint => "\x1b[2m",
            Self::Good => "\x1b[32m",
            Self::Bad => "\x1b[31m",
        }
    }
}

/// The size of a terminal, in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Size {
    pub(crate) columns: usize,
    pub(crate) rows: usize,
}

impl Size {
    /// The size that is assumed for a terminal that does not report one.
    const USUAL: Self = Self { columns: 80, rows: 24 };

    /// The size of the terminal that is standard output.
    pub(crate) fn of_stdout() -> Self {
        match rustix::termios::tcgetwinsize(io::stdout()) {
            Ok(size) if size.ws_col > 0 && size.ws_row > 0 => {
                Self { columns: size.ws_col.into(), rows: size.ws_row.into() }
            }
            _ => Self::USUAL,
        }
    }
}

/// The lines that are drawn at present. The cursor is always at the start of the line below them.
#[derive(Debug, Default)]
pub(crate) struct Live {
    drawn: usize,
    has_colours: bool,
}

impl Live {
    pub(crate) fn new(has_colours: bool) -> Self {
        Self { drawn: 0, has_colours }
    }

    /// Erases what is drawn.
    pub(crate) fn clear(&mut self, out: &mut impl Write) -> io::Result<()> {
        match std::mem::take(&mut self.drawn) {
            0 => Ok(()),
            // Move up to the first line and erase everything from there on.
            lines => write!(out, "\x1b[{lines}A\x1b[J"),
        }
    }

    /// Draws these lines in place of those that are drawn.
    pub(crate) fn draw(&mut self, lines: &[LiveLine], size: Size, out: &mut impl Write) -> io::Result<()> {
        self.clear(out)?;
        for line in fit(lines, size) {
            match line.tone.colour() {
                colour if self.has_colours && !colour.is_empty() => writeln!(out, "{colour}{}{RESET}", line.text)?,
                _ => writeln!(out, "{}", line.text)?,
            }
            self.drawn += 1;
        }
        Ok(())
    }
}

/// The lines that fit: a line that wraps, or that has scrolled out at the top, could not be redrawn.
fn fit(lines: &[LiveLine], size: Size) -> Vec<LiveLine> {
    // The cursor needs a line of its own.
    let room = size.rows.saturating_sub(1).max(1);
    let shown = if lines.len() > room { room - 1 } else { lines.len() };
    let mut fitting: Vec<LiveLine> =
        lines[..shown].iter().map(|line| LiveLine { text: cut(&line.text, size.columns), tone: line.tone }).collect();
    if shown < lines.len() {
        let text = cut(&format!("… and {} more", lines.len() - shown), size.columns);
        fitting.push(LiveLine { text, tone: Tone::Faint });
    }
    fitting
}

/// At most this many characters, and none that acts on the terminal.
fn cut(text: &str, columns: usize) -> String {
    let clean: String = text.chars().filter(|c| !acts_on_terminal(*c)).collect();
    if clean.chars().count() <= columns {
        return clean;
    }
    clean.chars().take(columns.saturating_sub(1)).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: Size = Size { columns: 10, rows: 4 };

    fn lines(texts: &[&str]) -> Vec<LiveLine> {
        texts.iter().map(|text| LiveLine { text: (*text).to_owned(), tone: Tone::Plain }).collect()
    }

    fn drawn(live: &mut Live, lines: &[LiveLine]) -> String {
        let mut out = Vec::new();
        live.draw(lines, SIZE, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn lines_are_drawn_in_the_place_of_those_before() {
        let mut live = Live::new(false);
        assert_eq!(drawn(&mut live, &lines(&["a", "b"])), "a\nb\n");
        assert_eq!(drawn(&mut live, &lines(&["c"])), "\x1b[2A\x1b[Jc\n");
        assert_eq!(drawn(&mut live, &[]), "\x1b[1A\x1b[J");
        assert_eq!(drawn(&mut live, &[]), "", "nothing is left to take away");
    }

    #[test]
    fn what_does_not_fit_the_terminal_is_cut() {
        let mut live = Live::new(false);
        assert_eq!(
            drawn(&mut live, &lines(&["0123456789", "0123456789a", "c\x1b[2Jd"])),
            "0123456789\n012345678…\nc[2Jd\n"
        );
        let told = drawn(&mut live, &lines(&["a", "b", "c", "d", "e"]));
        assert_eq!(told, "\x1b[3A\x1b[Ja\nb\n… and 3 m…\n");
    }

    #[test]
    fn a_tone_is_a_colour_where_there_are_colours() {
        let line = LiveLine { text: "up".to_owned(), tone: Tone::Good };
        assert_eq!(drawn(&mut Live::new(true), std::slice::from_ref(&line)), "\x1b[32mup\x1b[0m\n");
        assert_eq!(drawn(&mut Live::new(false), &[line]), "up\n");
    }
}
