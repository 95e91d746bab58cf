//! The calls that the rules for who may call did not allow, as the sidecars of the called services report them.

use std::collections::BTreeMap;

use weft_contracts::weft::discovery::v1::{AccessReport, access_report::Row};
use weft_mesh::{
    limits,
    names::{ServiceName, is_method_name},
    policy::Source,
};

/// What one sidecar reports, the most frequent first.
#[derive(Debug, Default)]
pub(crate) struct Denials(Vec<(Kind, u64)>);

/// One kind of call that is not allowed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Kind {
    /// Who calls.
    pub(crate) caller: ServiceName,
    /// `PACKAGE.SERVICE/METHOD`; empty for what is in no contract.
    pub(crate) method: String,
    /// Where the rule is from that decides.
    pub(crate) source: Source,
    /// Whether the calls went on all the same, as the rule is only tried.
    pub(crate) is_audit: bool,
}

impl Denials {
    /// Reads a report. Rows that are not well-formed are left out.
    pub(crate) fn read(report: AccessReport) -> Self {
        let rows = report.rows.into_iter().take(limits::DENIALS_TOLD);
        Self(rows.filter_map(|row| Some((kind(&row)?, row.calls))).collect())
    }

    /// Without those of methods in other contracts than these.
    pub(crate) fn of_contracts(mut self, is_own: impl Fn(&str) -> bool) -> Self {
        self.0.retain(|(kind, _)| kind.method.split_once('/').is_none_or(|(contract, _)| is_own(contract)));
        self
    }

    /// Adds up the reports of a service's sidecars.
    pub(crate) fn sum<'d>(of: impl Iterator<Item = &'d Self>) -> Vec<(Kind, u64)> {
        let mut sums = BTreeMap::new();
        for (kind, calls) in of.flat_map(|denials| &denials.0) {
            let sum: &mut u64 = sums.entry(kind.clone()).or_default();
            *sum = sum.saturating_add(*calls);
        }
        sums.into_iter().collect()
    }
}

fn kind(row: &Row) -> Option<Kind> {
    let is_known =
        row.method.is_empty() || (row.method.len() <= 2 * limits::CONTRACT_NAME_BYTES && is_method_name(&row.method));
    Some(Kind {
        caller: ServiceName::parse(&row.caller).ok()?,
        method: is_known.then(|| row.method.clone())?,
        source: Source::ALL.into_iter().find(|source| source.as_str() == row.rule)?,
        is_audit: row.audit,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_are_added_up_and_what_is_not_well_formed_is_left_out() {
        let row = |caller: &str, method: &str, rule: &str, calls| Row {
            caller: caller.into(),
            method: method.into(),
            rule: rule.into(),
            audit: false,
            calls,
        };
        let one = Denials::read(AccessReport {
            rows: vec![
                row("web.shop", "shop.v1.Users/Get", "method-option", 3),
                row("web.shop", "", "mesh-default", 1),
                row("web", "shop.v1.Users/Get", "method-option", 5),
                row("web.shop", "<script>", "method-option", 5),
                row("web.shop", "shop.v1.Users/Get", "made-up", 5),
                row("web.shop", &format!("a/{}", "b".repeat(5_000)), "method-option", 5),
            ],
        });
        let many = (0..2 * limits::DENIALS_TOLD).map(|_| row("web.shop", "", "mesh-default", u64::MAX)).collect();
        let other = Denials::read(AccessReport { rows: many });
        let of_none = Denials(one.0.clone()).of_contracts(|contract| contract != "shop.v1.Users");
        assert_eq!(of_none.0.len(), 1, "what is in no contract is its own");
        assert_eq!(other.0.len(), limits::DENIALS_TOLD);
        let kind = |method: &str, source| Kind {
            caller: ServiceName::parse("web.shop").unwrap(),
            method: method.into(),
            source,
            is_audit: false,
        };
        let sums = Denials::sum([&one, &other].into_iter());
        let expected =
            [(kind("", Source::MeshDefault), u64::MAX), (kind("shop.v1.Users/Get", Source::MethodOption), 3)];
        assert_eq!(sums, expected);
    }
}
