//! The rules for `iptables-restore` and `ip6tables-restore`, for hosts without nft.
//!
//! They are in chains of our own; one rule of each built-in chain jumps there. Restoring a chain empties it first, so
//! only the rules that jump there have to be searched for.

use std::process::{Command, Stdio};

use anyhow::Context;

use super::{Cidr, Direction, Rules, RulesCommand};

/// The built-in chains, each with our chain that it jumps to.
const CHAINS: [(&str, &str); 2] = [("OUTPUT", "WEFT_OUTBOUND"), ("PREROUTING", "WEFT_INBOUND")];

/// The programs of a version of IP, with its loopback network.
struct Family {
    is_ipv4: bool,
    save: &'static str,
    restore: &'static str,
    loopback: &'static str,
}

const FAMILIES: [Family; 2] = [
    Family { is_ipv4: true, save: "iptables-save", restore: "iptables-restore", loopback: "127.0.0.0/8" },
    Family { is_ipv4: false, save: "ip6tables-save", restore: "ip6tables-restore", loopback: "::1/128" },
];

/// The steps that set or remove the rules, given the present ones.
pub(super) fn steps(rules: &Rules, is_removal: bool) -> anyhow::Result<Vec<RulesCommand>> {
    let families = FAMILIES.iter().filter(|family| family.is_ipv4 || rules.has_ipv6);
    families
        .map(|family| {
            let present = present(family.save)?;
            let input = if is_removal { removal(&present) } else { render(rules, family, &present) };
            Ok(RulesCommand::new(family.restore, &["--noflush"], input))
        })
        .collect()
}

/// The rules of the table `nat`.
fn present(save: &str) -> anyhow::Result<String> {
    let output = Command::new(save).args(["-t", "nat"]).stdin(Stdio::null()).output();
    let output = output.with_context(|| format!("`{save}` can't be started: install iptables"))?;
    // Without the right to look it prints nothing; then restoring fails and says why.
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn leads(built_in: &str, own: &str) -> String {
    format!("{built_in} -p tcp -j {own}")
}

/// Removes the rules that jump to our chains.
fn detach(present: &str, text: &mut Vec<String>) {
    for (built_in, own) in CHAINS {
        let rule = leads(built_in, own);
        let count = present.lines().filter(|line| line.strip_prefix("-A ") == Some(&*rule)).count();
        text.extend((0..count).map(|_| format!("-D {rule}")));
    }
}

fn removal(present: &str) -> String {
    let mut text = vec!["*nat".to_owned()];
    detach(present, &mut text);
    for (_, own) in CHAINS {
        if present.lines().any(|line| line.starts_with(&format!(":{own} "))) {
            text.extend([format!("-F {own}"), format!("-X {own}")]);
        }
    }
    text.push("COMMIT\n".to_owned());
    text.join("\n")
}

fn render(rules: &Rules, family: &Family, present: &str) -> String {
    let mut text = vec!["*nat".to_owned()];
    text.extend(CHAINS.map(|(_, own)| format!(":{own} - [0:0]")));
    detach(present, &mut text);
    let [(output, outbound_chain), (prerouting, inbound_chain)] = CHAINS;
    if let Some(outbound) = &rules.outbound {
        let leave = |what: String| format!("-A {outbound_chain} {what} -j RETURN");
        text.extend(rules.uids.iter().map(|uid| leave(format!("-m owner --uid-owner {uid}"))));
        text.extend(rules.gids.iter().map(|gid| leave(format!("-m owner --gid-owner {gid}"))));
        text.push(leave(format!("-d {}", family.loopback)));
        direction(outbound, outbound_chain, family, &mut text);
        text.push(format!("-A {}", leads(output, outbound_chain)));
    }
    if let Some(inbound) = &rules.inbound {
        text.push(format!("-A {inbound_chain} -i lo -j RETURN"));
        direction(inbound, inbound_chain, family, &mut text);
        text.push(format!("-A {}", leads(prerouting, inbound_chain)));
    }
    text.push("COMMIT\n".to_owned());
    text.join("\n")
}

fn direction(direction: &Direction, chain: &str, family: &Family, text: &mut Vec<String>) {
    let is_ours = |range: &&Cidr| range.address.is_ipv4() == family.is_ipv4;
    for ports in &direction.excluded_ports {
        text.push(format!("-A {chain} -p tcp --dport {} -j RETURN", ports.text(':')));
    }
    for range in direction.excluded_ranges.iter().filter(is_ours) {
        text.push(format!("-A {chain} -d {range} -j RETURN"));
    }
    // iptables has no sets: each pair of an included network and port needs a rule.
    let ports: Vec<String> = match direction.included_ports.as_slice() {
        [] => vec![String::new()],
        some => some.iter().map(|ports| format!(" --dport {}", ports.text(':'))).collect(),
    };
    let ranges: Vec<String> = match direction.included_ranges.as_slice() {
        [] => vec![String::new()],
        some => some.iter().filter(is_ours).map(|range| format!(" -d {range}")).collect(),
    };
    for range in &ranges {
        for port in &ports {
            text.push(format!("-A {chain} -p tcp{range}{port} -j REDIRECT --to-ports {}", direction.to));
        }
    }
}

#[cfg(test)]
pub(super) mod testing {
    use super::*;

    pub(crate) fn rendered(rules: &Rules, present: &str) -> String {
        render(rules, &FAMILIES[0], present)
    }

    pub(crate) fn removed(present: &str) -> String {
        removal(present)
    }
}
