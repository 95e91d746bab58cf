//! A flame graph: each frame is as wide as its share of the time, and the frames that it called are below it.

use std::{collections::BTreeMap, fmt::Write};

use super::stacks::Stacks;

const WIDTH: f64 = 1200.0;
const ROW: f64 = 17.0;
const MARGIN: f64 = 30.0;
/// Narrower frames are left out: they could not be seen.
const LEAST_WIDTH: f64 = 0.4;
/// The average width of a letter.
const LETTER: f64 = 6.6;

/// A frame and what it called.
#[derive(Default)]
struct Node<'a> {
    count: u64,
    called: BTreeMap<&'a str, Node<'a>>,
}

impl<'a> Node<'a> {
    fn add(&mut self, stack: &'a [String], count: u64) {
        self.count += count;
        if let Some((first, rest)) = stack.split_first() {
            self.called.entry(first).or_default().add(rest, count);
        }
    }

    fn depth(&self) -> usize {
        1 + self.called.values().map(Node::depth).max().unwrap_or_default()
    }
}

/// An SVG without scripts: a tooltip shows a frame's full name and share.
pub(super) fn graph(stacks: &Stacks) -> String {
    let mut root = Node::default();
    stacks.iter().for_each(|(stack, count)| root.add(stack, *count));
    let height = MARGIN + ROW * root.depth() as f64;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" font-family=\"ui-monospace,monospace\" \
         font-size=\"11\"><rect width=\"100%\" height=\"100%\" fill=\"#fff\"/><text x=\"4\" y=\"18\" font-size=\"13\">\
         {} samples; Weft's own functions are orange</text>\n",
        root.count
    );
    if root.count > 0 {
        let scale = WIDTH / root.count as f64;
        draw(&mut svg, "all threads", &root, (0.0, MARGIN), scale, root.count);
    }
    svg + "</svg>\n"
}

fn draw(svg: &mut String, name: &str, node: &Node<'_>, (x, y): (f64, f64), scale: f64, all: u64) {
    let width = node.count as f64 * scale;
    if width < LEAST_WIDTH {
        return;
    }
    let letters = ((width - 4.0) / LETTER).max(0.0) as usize;
    let share = 100.0 * node.count as f64 / all as f64;
    // Writing to a String can't fail.
    let _ = writeln!(
        svg,
        "<g><title>{} ({share:.1} %, {} samples)</title><rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{}\" \
         fill=\"{}\"/><text x=\"{:.1}\" y=\"{:.1}\">{}</text></g>",
        escaped(name),
        node.count,
        (width - 0.5).max(0.3),
        ROW - 1.0,
        colour(name),
        x + 2.0,
        y + 12.0,
        escaped(&shortened(name, letters)),
    );
    let mut x = x;
    for (name, called) in &node.called {
        draw(svg, name, called, (x, y + ROW), scale, all);
        x += called.count as f64 * scale;
    }
}

fn colour(name: &str) -> &'static str {
    let begins = |prefix: &str| name.trim_start_matches('<').starts_with(prefix);
    match name {
        _ if begins("weft_") => "#f4a259",
        _ if begins("std::") || begins("core::") || begins("alloc::") => "#d9dde3",
        _ => "#a9c5e2",
    }
}

/// Keeps the end of a name, which says more than its start.
fn shortened(name: &str, letters: usize) -> String {
    let count = name.chars().count();
    match letters {
        0..3 => String::new(),
        _ if count <= letters => name.to_owned(),
        _ => std::iter::once('…').chain(name.chars().skip(count + 1 - letters)).collect(),
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_as_wide_as_its_share() {
        let stack = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let stacks = Stacks::from([
            (stack(&["worker-0", "weft_sidecar::run", "<T as weft_wire::X>::go"]), 3),
            (stack(&["worker-0", "weft_sidecar::run"]), 1),
        ]);
        let svg = graph(&stacks);
        assert!(svg.contains("<title>weft_sidecar::run (100.0 %, 4 samples)</title>"), "{svg}");
        assert!(svg.contains("<title>&lt;T as weft_wire::X&gt;::go (75.0 %, 3 samples)</title>"), "{svg}");
        assert!(svg.contains("width=\"899.5\""), "{svg}");
    }

    #[test]
    fn a_long_name_keeps_its_end() {
        assert_eq!(shortened("weft_sidecar::call", 7), "…::call");
        assert_eq!(shortened("abc", 3), "abc");
    }
}
