//! The rules for `nft -f`: one transaction, which replaces the earlier rules.

use std::fmt::Write;

use super::{Cidr, Direction, Ports, Rules};

/// The name of our table, with the family for both IPv4 and IPv6.
const TABLE: &str = "inet weft";

/// Removes the table. It is no error if there is none.
pub(super) fn removal() -> String {
    format!("table {TABLE} {{}}\ndelete table {TABLE}\n")
}

pub(super) fn render(rules: &Rules) -> String {
    let mut text = removal();
    let mut line = |line: &str| {
        text.push_str(line);
        text.push('\n');
    };
    line(&format!("table {TABLE} {{"));
    if let Some(outbound) = &rules.outbound {
        line("  chain outbound {");
        line("    type nat hook output priority -100; policy accept;");
        only_tcp(rules, &mut line);
        owners("meta skuid", &rules.uids, &mut line);
        owners("meta skgid", &rules.gids, &mut line);
        line("    ip daddr 127.0.0.0/8 return");
        line("    ip6 daddr ::1 return");
        direction(outbound, &mut line);
        line("  }");
    }
    if let Some(inbound) = &rules.inbound {
        line("  chain inbound {");
        line("    type nat hook prerouting priority -100; policy accept;");
        only_tcp(rules, &mut line);
        line("    iif lo return");
        direction(inbound, &mut line);
        line("  }");
    }
    line("}");
    text
}

fn only_tcp(rules: &Rules, line: &mut impl FnMut(&str)) {
    line("    meta l4proto != tcp return");
    if !rules.has_ipv6 {
        line("    meta nfproto ipv6 return");
    }
}

fn owners(key: &str, ids: &[u32], line: &mut impl FnMut(&str)) {
    if !ids.is_empty() {
        line(&format!("    {key} {} return", set(ids.iter())));
    }
}

fn direction(direction: &Direction, line: &mut impl FnMut(&str)) {
    let ports = |ports: &[Ports]| set(ports.iter().map(|ports| ports.text('-')));
    if !direction.excluded_ports.is_empty() {
        line(&format!("    tcp dport {} return", ports(&direction.excluded_ports)));
    }
    ranges(&direction.excluded_ranges, "", line);
    if !direction.included_ports.is_empty() {
        line(&format!("    tcp dport != {} return", ports(&direction.included_ports)));
    }
    if !direction.included_ranges.is_empty() {
        ranges(&direction.included_ranges, "!= ", line);
        // If only networks of one family are named, nothing of the other family is redirected.
        for (is_ipv4, family) in [(true, "ipv4"), (false, "ipv6")] {
            if direction.included_ranges.iter().all(|range| range.address.is_ipv4() != is_ipv4) {
                line(&format!("    meta nfproto {family} return"));
            }
        }
    }
    line(&format!("    meta l4proto tcp redirect to :{}", direction.to));
}

fn ranges(ranges: &[Cidr], operator: &str, line: &mut impl FnMut(&str)) {
    for (is_ipv4, key) in [(true, "ip daddr"), (false, "ip6 daddr")] {
        let of_family: Vec<_> = ranges.iter().filter(|range| range.address.is_ipv4() == is_ipv4).collect();
        if !of_family.is_empty() {
            line(&format!("    {key} {operator}{} return", set(of_family.into_iter())));
        }
    }
}

fn set(members: impl Iterator<Item = impl std::fmt::Display>) -> String {
    let mut text = String::from("{ ");
    for (place, member) in members.enumerate() {
        let between = if place == 0 { "" } else { ", " };
        // Writing to a string does not fail.
        let _ = write!(text, "{between}{member}");
    }
    text.push_str(" }");
    text
}
