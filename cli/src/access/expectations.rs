//! The file of `weft access test`: who is expected to be allowed what.
//!
//! ```yaml
//! - { caller: orders, calls: shop.users.v1.Users/Get, expect: allowed }
//! - { caller: [web, orders], calls: [web/admin, users], http_method: POST, expect: denied }
//! ```

use std::path::Path;

use anyhow::Context as _;
use weft_mesh::config::{self, Node, Problem, Reader, Value};

use super::question::{Answer, Rules};
use crate::project_file;

const KEYS: &[&str] = &["caller", "calls", "http_method", "expect"];
const CALLER: &str = "NAME, NAME.NAMESPACE or a SPIFFE ID";
const CALLED: &str = "PACKAGE.SERVICE/METHOD, a service, or a service and a path";
const METHOD: &str = "a method of HTTP, as GET";
const EXPECT: &str = "allowed, denied";

/// Checks the expectations of a file. Returns how many there are, and a line for each that does not hold.
///
/// # Errors
/// The file can't be read, or has problems.
pub(super) fn check(rules: &Rules<'_>, path: &Path) -> anyhow::Result<(usize, Vec<String>)> {
    let file = path.display().to_string();
    let text = project_file::read_text(path).with_context(|| format!("{file} can't be read"))?;
    Ok(config::parse(&file, &text, |reader, root| match &root.value {
        Value::List(items) if !items.is_empty() => {
            let (mut checked, mut broken) = (0, Vec::new());
            for (place, item) in items.iter().enumerate() {
                check_one(rules, reader, &format!("[{place}]"), item, &mut checked, &mut broken);
            }
            Some((checked, broken))
        }
        _ => {
            let text = format!("found {}; allowed: a list of tables of {}", root.describe(), KEYS.join(", "));
            reader.problem(root.line, "", text);
            None
        }
    })?)
}

fn check_one(
    rules: &Rules<'_>,
    reader: &mut Reader<'_>,
    field: &str,
    item: &Node,
    checked: &mut usize,
    broken: &mut Vec<String>,
) {
    let Some(table) = reader.table(field, item, KEYS) else { return };
    for key in ["caller", "calls", "expect"] {
        if table.get(key).is_none() {
            reader.problem(item.line, &table.path(key), "missing");
        }
    }
    let callers = reader.texts(&table, "caller", CALLER).unwrap_or_default();
    let calls = reader.texts(&table, "calls", CALLED).unwrap_or_default();
    let http_method =
        reader.text(&table, "http_method", METHOD).map_or_else(|| "GET".to_owned(), |method| method.value);
    let expected = reader.parsed(&table, "expect", EXPECT, |text| match text {
        "allowed" => Ok(true),
        "denied" => Ok(false),
        other => Err(format!("found the text {other:?}; allowed: {EXPECT}")),
    });
    let mut read_callers = Vec::new();
    for caller in &callers {
        match rules.caller(&caller.value) {
            Ok(id) => match rules.unknown_caller(&id) {
                // Misspelt, it would be denied everything.
                Some(unknown) => reader.problem(caller.line, &table.path("caller"), unknown),
                None => read_callers.push(id),
            },
            Err(error) => reader.problem(caller.line, &table.path("caller"), format!("{error:#}")),
        }
    }
    for called in &calls {
        let one = match rules.called(&called.value, &http_method) {
            Ok(one) => one,
            Err(error) => {
                reader.problem(called.line, &table.path("calls"), format!("{error:#}"));
                continue;
            }
        };
        for caller in &read_callers {
            let Some(expected) = expected else { continue };
            *checked += 1;
            let answers = rules.ask(caller, &one);
            if answers.iter().any(Answer::is_incomplete) {
                let text =
                    format!("the contracts of {} are not known; name its `protos` in the mesh file", called.value);
                reader.problem(called.line, &table.path("calls"), text);
                continue;
            }
            // By the rule: one that is only tried counts as if it held. Of a service, all has to be as expected.
            let wrong = answers.into_iter().find(|answer| answer.verdict.is_allowed != expected);
            if let Some(answer) = wrong {
                let word = if expected { "allowed" } else { "denied" };
                let text = format!("{}; expected: {word}", answer.short());
                broken.push(Problem::new(reader.file, called.line, "", text).to_string());
            }
        }
    }
}
