//! The picture: CPU per call of each proxy as a ratio to the floor, a panel for each load.
//!
//! Readable on a light and on a dark background: it follows the viewer's colour scheme. It has no scripts and no fonts.

use std::fmt::Write;

use anyhow::Result;

use crate::{
    bed::{FLOOR, WEFT},
    report::{CaseReport, Report},
};

const WIDTH: f64 = 880.0;
const MARGIN: f64 = 12.0;
const COLUMNS: usize = 2;
const PANEL_WIDTH: f64 = (WIDTH - 3.0 * MARGIN) / COLUMNS as f64;
/// The space left of the bars for labels, and right of the longest bar for its figure.
const LABEL_WIDTH: f64 = 108.0;
const VALUE_WIDTH: f64 = 44.0;
const ROW: f64 = 17.0;
const BAR: f64 = 12.0;
const HEADING: f64 = 26.0;
const PANEL_GAP: f64 = 18.0;
const TITLE: f64 = 52.0;
/// A longer bar is cut off here, so that the short ones can still be compared.
const LONGEST_RATIO: f64 = 8.0;

const STYLE: &str = "\
text{font:12px system-ui,-apple-system,'Segoe UI',Helvetica,Arial,sans-serif;fill:#1f2328}\
.title{font-size:15px;font-weight:600}.load{font-weight:600}.note{fill:#59636e}.end{text-anchor:end}\
.weft{fill:#0969da}.also{fill:#54aeff}.other{fill:#afb8c1}.floor{stroke:#cf222e;stroke-dasharray:3 2}\
.mark{fill:#cf222e}\
@media(prefers-color-scheme:dark){text{fill:#e6edf3}.note{fill:#9198a1}.weft{fill:#4493f8}.also{fill:#1f6feb}\
.other{fill:#57606a}.floor{stroke:#ff7b72}.mark{fill:#ff7b72}}";

/// One bar.
struct Bar {
    name: &'static str,
    ratio: f64,
}

struct Panel {
    title: &'static str,
    bars: Vec<Bar>,
}

/// The picture of a report, as the text of an SVG file.
pub(crate) fn draw(report: &Report) -> Result<String> {
    draw_panels(&report.cases.iter().map(panel).filter(|panel| !panel.bars.is_empty()).collect::<Vec<_>>())
}

fn panel(case: &CaseReport) -> Panel {
    let bar = |way: &crate::report::WayReport| Some(Bar { name: way.name, ratio: way.ratio()? });
    let bars = case.ways.iter().filter(|way| way.name != FLOOR).filter_map(bar).collect();
    Panel { title: case.case.title, bars }
}

fn draw_panels(panels: &[Panel]) -> Result<String> {
    let longest = panels.iter().flat_map(|panel| &panel.bars).map(|bar| bar.ratio).fold(1.0, f64::max);
    let scale = (PANEL_WIDTH - LABEL_WIDTH - VALUE_WIDTH) / longest.min(LONGEST_RATIO);
    let heights: Vec<f64> = panels
        .chunks(COLUMNS)
        .map(|row| row.iter().map(|panel| HEADING + ROW * panel.bars.len() as f64).fold(0.0, f64::max) + PANEL_GAP)
        .collect();
    let height = TITLE + heights.iter().sum::<f64>();

    let mut svg = String::new();
    writeln!(
        svg,
        r#"<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}" role="img">"#
    )?;
    writeln!(svg, "<title>CPU time per call and proxy, as a ratio to a bare relay</title>")?;
    writeln!(svg, "<style>{STYLE}</style>")?;
    writeln!(svg, r#"<text class="title" x="{MARGIN}" y="22">CPU time per call and proxy: less is better</text>"#)?;
    writeln!(
        svg,
        r#"<text class="note" x="{MARGIN}" y="40">as a ratio to the <tspan class="mark">floor</tspan>, a relay on the h2 crate and rustls without any feature; pairs with mutual TLS 1.3, one thread each</text>"#
    )?;
    let mut top = TITLE;
    for (row, height) in std::iter::zip(panels.chunks(COLUMNS), heights) {
        for (column, panel) in row.iter().enumerate() {
            let left = MARGIN + column as f64 * (PANEL_WIDTH + MARGIN);
            draw_panel(&mut svg, panel, left, top, scale)?;
        }
        top += height;
    }
    writeln!(svg, "</svg>")?;
    Ok(svg)
}

fn draw_panel(svg: &mut String, panel: &Panel, left: f64, top: f64, scale: f64) -> Result<()> {
    let zero = left + LABEL_WIDTH;
    writeln!(svg, r#"<text class="load" x="{left:.1}" y="{:.1}">{}</text>"#, top + 14.0, escape(panel.title))?;
    let first = top + HEADING;
    let (floor, bottom) = (zero + scale, first + ROW * panel.bars.len() as f64 - (ROW - BAR) + 2.0);
    for (index, Bar { name, ratio }) in panel.bars.iter().enumerate() {
        let y = first + ROW * index as f64;
        let width = (ratio.min(LONGEST_RATIO) * scale).max(1.0);
        let class = match *name {
            WEFT => "weft",
            name if name.starts_with(WEFT) => "also",
            _ => "other",
        };
        let (text_y, label_x, end) = (y + BAR - 2.0, zero - 6.0, zero + width);
        // A figure that would cover the floor's line is placed right of it.
        let is_on_line = end <= floor && floor < end + VALUE_WIDTH;
        let value_x = 5.0 + if is_on_line { floor } else { end };
        writeln!(svg, r#"<text class="end" x="{label_x:.1}" y="{text_y:.1}">{}</text>"#, escape(name))?;
        writeln!(
            svg,
            r#"<rect class="{class}" x="{zero:.1}" y="{y:.1}" width="{width:.1}" height="{BAR}" rx="1.5"/>"#
        )?;
        writeln!(svg, r#"<text x="{value_x:.1}" y="{text_y:.1}">{ratio:.2}</text>"#)?;
    }
    let above = first - 3.0;
    writeln!(svg, r#"<line class="floor" x1="{floor:.1}" y1="{above:.1}" x2="{floor:.1}" y2="{bottom:.1}"/>"#)?;
    Ok(())
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn widths(svg: &str) -> Vec<f64> {
        let rects = svg.lines().filter(|line| line.starts_with("<rect"));
        rects.map(|line| line.split("width=\"").nth(1).unwrap().split('"').next().unwrap().parse().unwrap()).collect()
    }

    #[test]
    fn bars_are_as_long_as_their_ratios_and_the_floor_is_at_one() {
        let bars = vec![Bar { name: WEFT, ratio: 0.5 }, Bar { name: "envoy", ratio: 4.0 }];
        let svg = draw_panels(&[Panel { title: "a < b & c", bars }]).unwrap();
        let widths = widths(&svg);
        assert!((widths[1] / widths[0] - 8.0).abs() < 0.05, "{widths:?}");
        let line = svg.lines().find(|line| line.starts_with("<line")).unwrap();
        let x: f64 = line.split("x1=\"").nth(1).unwrap().split('"').next().unwrap().parse().unwrap();
        assert!((x - MARGIN - LABEL_WIDTH - widths[1] / 4.0).abs() < 0.2, "{line}");
        assert!(svg.contains("a &lt; b &amp; c") && svg.contains(">0.50<") && svg.contains(">4.00<"));
        assert!(!svg.contains("<script") && svg.contains("prefers-color-scheme:dark"));
    }

    #[test]
    fn a_bar_that_is_too_long_ends_at_the_edge_with_its_figure() {
        let bars = vec![Bar { name: "slow", ratio: 80.0 }];
        let svg = draw_panels(&[Panel { title: "", bars }]).unwrap();
        assert!(widths(&svg)[0] <= PANEL_WIDTH - LABEL_WIDTH - VALUE_WIDTH + 0.1);
        assert!(svg.contains(">80.00<"));
    }
}
