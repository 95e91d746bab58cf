//! `docs/limits.md` is made from the table of limits: `UPDATE_DOCS=1 cargo test -p weft-tests --test docs` writes it.

use std::{env, fs};

use weft_mesh::limits::{ALL, Limit};
use weft_tests::root;

use crate::page::{Page, Row, differences, must_be_none};

const PAGE: &str = "docs/limits.md";
const HEADER: &str = "| limit | value | what is bounded, and what happens at the bound |\n| --- | --- | --- |\n";

/// The headings of the page, each with the first limit below it, in the order of the code.
const GROUPS: &[(&str, &str)] = &[
    ("Calls and connections", "STREAMS_PER_CONNECTION"),
    ("Headers and memory", "HEADER_LIST_BYTES"),
    ("HTTP/2: frames and floods", "MAX_FRAME_BYTES"),
    ("HTTP/1.1 and TCP", "SOCKET_BUFFER_BYTES"),
    ("Retries, and times of connections", "HTTP2_TIMEOUT"),
    ("Discovery, in sidecars and the control plane", "DISCOVERY_WAIT"),
    ("Spans and logs", "SPANS_QUEUED"),
    ("Descriptors and metrics", "DESCRIPTOR_SET_BYTES"),
    ("Health, certificates and the watchdog", "HEALTH_CHECK_TIMEOUT"),
    ("What the control plane knows", "SERVICES_KNOWN"),
    ("What the control plane hears and tells, and how often", "HEALTH_PAUSE"),
    ("Connections to the control plane", "CONTROL_CONNECTIONS"),
    ("Admin and metrics ports", "ADMIN_CONNECTIONS"),
    ("Trace store and dashboard", "TRACES_KEPT"),
    ("Connections made in advance", "WARM_TIME"),
];

#[test]
fn the_page_of_limits_is_the_table_in_the_code() {
    if env::var_os("UPDATE_DOCS").is_some() {
        update();
    }
    let rows: Vec<Row> = ALL
        .iter()
        .map(|limit| {
            let row = Row::new(limit.name).says("value", readable(limit));
            row.says("what is bounded, and what happens at the bound", limit.why)
        })
        .collect();
    let page = Page::read(PAGE);
    let mut problems = differences(PAGE, &page.table("Limits", "limit"), &rows);
    if problems.is_empty() && page.text != anew(&page) {
        problems.push(format!("{PAGE}: the headings, or the order of the rows, are not those of the code"));
    }
    if !problems.is_empty() {
        problems.push("`UPDATE_DOCS=1 cargo test -p weft-tests --test docs` writes the table anew".to_owned());
    }
    must_be_none(&problems);
}

/// Puts the table of the code in the place of the page's.
fn update() {
    fs::write(root().join(PAGE), anew(&Page::read(PAGE))).expect("the page can be written");
}

/// The text of the page with the table of the code, a part of it below each heading.
fn anew(page: &Page) -> String {
    let (first, _) = GROUPS[0];
    let (before, _) = page.text.split_once(&format!("## {first}\n")).expect("the page has the first heading");
    let mut groups = GROUPS.iter().peekable();
    let mut parts = Vec::new();
    for limit in ALL {
        if let Some((heading, _)) = groups.next_if(|(_, first)| *first == limit.name) {
            parts.push(format!("## {heading}\n\n{HEADER}"));
        }
        let part = parts.last_mut().expect("the first limit is the first of a group");
        *part += &format!("| `{}` | {} | {} |\n", limit.name, readable(limit), limit.why);
    }
    assert_eq!(groups.next(), None, "GROUPS names a limit that is not there, or is not in this order");
    format!("{before}{}", parts.join("\n"))
}

/// A value as people write it: `64 KiB` for `64 * 1024`, `10 s` for `Duration::from_secs(10)`.
fn readable(limit: &Limit) -> String {
    readable_expression(limit.name, limit.value)
}

fn readable_expression(name: &str, value: &str) -> String {
    if let Some(other) = ALL.iter().find(|other| other.name == value) {
        return readable(other);
    }
    let within = |start: &str| value.strip_prefix(start)?.strip_suffix(')');
    if let Some(seconds) = within("Duration::from_secs(") {
        return match product(seconds) {
            n if n > 86_400 && n.is_multiple_of(86_400) => format!("{} days", n / 86_400),
            n if n.is_multiple_of(3_600) => format!("{} h", n / 3_600),
            n => format!("{n} s"),
        };
    }
    if let Some(millis) = within("Duration::from_millis(") {
        return format!("{} ms", grouped(product(millis)));
    }
    if let Some(rate) = within("(") {
        let numbers: Vec<u64> = rate.split(',').map(product).collect();
        let [at_once, a_second, frames] = numbers[..] else { panic!("{name} is no rate: {value}") };
        let earned = match frames {
            0 => String::new(),
            1 => ", 1 for each useful frame".to_owned(),
            n => format!(", 1 for {n} useful frames"),
        };
        return format!("{} at once, {} a second{earned}", grouped(at_once), grouped(a_second));
    }
    let number = product(value);
    if name.contains("BYTES") || name == "HEADER_LIST_ROOM" {
        let units = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)];
        let (unit, size) = units.into_iter().find(|(_, size)| number.is_multiple_of(*size)).expect("1 divides all");
        return format!("{} {unit}", number / size);
    }
    match name.ends_with("_PERCENT") {
        true => format!("{number} %"),
        false => grouped(number),
    }
}

/// The value of `64 * 1_024`.
fn product(expression: &str) -> u64 {
    let factor = |text: &str| text.trim().replace('_', "").parse::<u64>();
    expression.split('*').map(|text| factor(text).unwrap_or_else(|e| panic!("{expression}: {e}"))).product()
}

/// `20,000`
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[test]
fn values_are_written_as_people_write_them() {
    for (name, value, written) in [
        ("SOME_BYTES", "64 * 1024", "64 KiB"),
        ("SOME_BYTES", "16 * 1024 * 1024", "16 MiB"),
        ("SOME_BYTES", "1_000", "1000 B"),
        ("SOME", "1_000", "1,000"),
        ("SOME", "Duration::from_secs(600)", "600 s"),
        ("SOME", "Duration::from_secs(7 * 24 * 3600)", "7 days"),
        ("SOME", "SVID_LIFE", "24 h"),
        ("SOME", "Duration::from_millis(500)", "500 ms"),
        ("SOME", "(50, 10, 16)", "50 at once, 10 a second, 1 for 16 useful frames"),
        ("SOME_PERCENT", "50", "50 %"),
    ] {
        assert_eq!(readable_expression(name, value), written, "{name} = {value}");
    }
}
