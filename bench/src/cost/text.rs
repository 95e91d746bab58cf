//! The printed tables of the counts.

use super::{Counted, steps};
use crate::table::Table;

/// Instructions, allocations and system calls, one column for each scenario and sidecar.
pub(super) fn by_step(counted: &[Counted]) -> Table {
    let columns: Vec<_> = counted.iter().map(|it| format!("{} {}", it.case.name, it.sidecar)).collect();
    let headings: Vec<_> = ["", "for"].into_iter().chain(columns.iter().map(String::as_str)).collect();
    let mut table = Table::new(&headings);
    let instructions = counted.iter().map(|it| steps::instructions(&it.profile).iter().collect()).collect();
    part(&mut table, "instructions", 0, counted, instructions);
    let allocations = counted.iter().map(|it| steps::allocations_by_step(&it.profile).iter().collect()).collect();
    part(&mut table, "allocations", 2, counted, allocations);
    let asked = |it: &Counted| steps::system_calls(&it.profile).map(|(title, times)| (title, times as f64)).to_vec();
    part(&mut table, "system calls", 2, counted, counted.iter().map(asked).collect());
    table
}

/// One row for each kind that is not zero everywhere, and their sum. `found` has the same kinds for each column.
fn part(table: &mut Table, title: &str, decimals: usize, counted: &[Counted], found: Vec<Vec<(&'static str, f64)>>) {
    let cells = |figures: &dyn Fn(usize) -> f64| -> Vec<_> {
        let per_call = |(index, it): (usize, &Counted)| figures(index) / it.case.calls as f64;
        counted.iter().enumerate().map(per_call).map(|figure| format!("{figure:.decimals$}")).collect()
    };
    let kinds = found.first().map_or(0, Vec::len);
    for kind in (0..kinds).filter(|kind| found.iter().any(|column| column[*kind].1 > 0.0)) {
        let name = [title.to_owned(), found[0][kind].0.to_owned()];
        table.row(name.into_iter().chain(cells(&|column| found[column][kind].1)));
    }
    let sums = cells(&|column| found[column].iter().map(|(_, figure)| figure).sum());
    table.row([title.to_owned(), "all".to_owned()].into_iter().chain(sums));
    table.rule();
}

/// The functions that cost most, including all that they call.
pub(super) fn functions(counted: &Counted, how_many: usize) -> Table {
    let title = format!("{} {}", counted.case.name, counted.sidecar);
    let mut table = Table::new(&[&title, "function", "calls", "own", "with all it calls"]);
    let per_call = |count: u64| count as f64 / counted.case.calls as f64;
    let mut functions = counted.profile.inclusive();
    functions.sort_by_key(|it| std::cmp::Reverse(it.instructions));
    for it in functions.iter().take(how_many) {
        let figures = [format!("{:.2}", per_call(it.times)), format!("{:.0}", per_call(it.own))];
        let all = format!("{:.0}", per_call(it.instructions));
        table.row([String::new(), it.name.to_owned()].into_iter().chain(figures).chain([all]));
    }
    table
}
