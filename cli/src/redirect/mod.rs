//! `weft redirect`: redirects the connections of a host's programs through its sidecar; the programs need no change.
//!
//! The flags make [`Rules`], which [`nft`] or [`iptables`] turns into rules for the kernel. All of them are in a table
//! (or in chains) of our own, which is replaced and removed as a whole.

mod iptables;
mod nft;
#[cfg(test)]
mod tests;
mod user;

use std::{
    io::Write,
    process::{Command, ExitCode, Stdio},
};

use anyhow::{Context, bail, ensure};
use clap::ValueEnum;
use weft_mesh::{
    names::port,
    ranges::{Cidr, Ports},
};

use self::user::Uid;

/// The flags of `weft redirect`.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Args {
    /// The user that the sidecar runs as, by number or name; its connections are not redirected; can be repeated
    #[arg(long, value_name = "USER", value_delimiter = ',', required_unless_present = "remove")]
    uid: Vec<Uid>,
    /// A group, by number, whose connections are not redirected; can be repeated
    #[arg(long, value_name = "GID", value_delimiter = ',')]
    gid: Vec<u32>,
    /// The sidecar's port for outbound connections
    #[arg(long, value_name = "PORT", default_value_t = port::OUTBOUND, value_parser = clap::value_parser!(u16).range(1..))]
    outbound_port: u16,
    /// The sidecar's port for inbound connections
    #[arg(long, value_name = "PORT", default_value_t = port::INBOUND, value_parser = clap::value_parser!(u16).range(1..))]
    inbound_port: u16,
    /// Do not redirect outbound connections
    #[arg(long)]
    no_outbound: bool,
    /// Do not redirect inbound connections
    #[arg(long)]
    no_inbound: bool,
    /// Redirect only outbound connections to these ports, such as 80 or 8000-8100 [default: all]
    #[arg(long, value_name = "PORTS", value_delimiter = ',')]
    include_outbound_ports: Vec<Ports>,
    /// Do not redirect outbound connections to these ports
    #[arg(long, value_name = "PORTS", value_delimiter = ',')]
    exclude_outbound_ports: Vec<Ports>,
    /// Redirect only outbound connections to these networks, such as 10.0.0.0/8 or fd00::/8 [default: all]
    #[arg(long, value_name = "CIDR", value_delimiter = ',')]
    include_outbound_ranges: Vec<Cidr>,
    /// Do not redirect outbound connections to these networks; connections to loopback never are
    #[arg(long, value_name = "CIDR", value_delimiter = ',')]
    exclude_outbound_ranges: Vec<Cidr>,
    /// Redirect only inbound connections to these ports [default: all]
    #[arg(long, value_name = "PORTS", value_delimiter = ',')]
    include_inbound_ports: Vec<Ports>,
    /// Do not redirect inbound connections to these ports; connections to the sidecar's own ports never are
    #[arg(long, value_name = "PORTS", value_delimiter = ',')]
    exclude_inbound_ports: Vec<Ports>,
    /// Whether IPv6 is redirected too
    #[arg(long, default_value = "auto")]
    ipv6: Ipv6,
    /// The program that sets the rules
    #[arg(long, default_value = "auto")]
    backend: Backend,
    /// Print the rules and change nothing
    #[arg(long)]
    print: bool,
    /// Remove the rules of an earlier run, and nothing else
    #[arg(long, conflicts_with = "print")]
    remove: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Ipv6 {
    /// If the host has it.
    Auto,
    On,
    Off,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Backend {
    /// nft, or iptables if there is no nft.
    Auto,
    Nft,
    Iptables,
}

/// What is redirected, whichever program sets the rules.
#[derive(Debug, Clone)]
struct Rules {
    uids: Vec<u32>,
    gids: Vec<u32>,
    outbound: Option<Direction>,
    inbound: Option<Direction>,
    has_ipv6: bool,
}

/// One direction. If nothing is included by name, everything is. What is excluded goes first.
#[derive(Debug, Clone, Default)]
struct Direction {
    /// The sidecar's port.
    to: u16,
    included_ports: Vec<Ports>,
    excluded_ports: Vec<Ports>,
    included_ranges: Vec<Cidr>,
    excluded_ranges: Vec<Cidr>,
}

/// The default ports of a sidecar itself.
const OWN_PORTS: Ports = Ports { first: 15_000, last: 15_020 };

impl Rules {
    fn of(args: &Args) -> Self {
        let outbound = Direction {
            to: args.outbound_port,
            included_ports: args.include_outbound_ports.clone(),
            excluded_ports: args.exclude_outbound_ports.clone(),
            included_ranges: args.include_outbound_ranges.clone(),
            excluded_ranges: args.exclude_outbound_ranges.clone(),
        };
        let own = [OWN_PORTS, Ports::one(args.inbound_port), Ports::one(args.outbound_port)];
        let own = own.into_iter().enumerate().filter(|(place, ports)| *place == 0 || !OWN_PORTS.holds(ports.first));
        let inbound = Direction {
            to: args.inbound_port,
            included_ports: args.include_inbound_ports.clone(),
            excluded_ports: own.map(|(_, ports)| ports).chain(args.exclude_inbound_ports.iter().copied()).collect(),
            ..Direction::default()
        };
        Self {
            uids: args.uid.iter().map(|uid| uid.0).collect(),
            gids: args.gid.clone(),
            outbound: (!args.no_outbound).then_some(outbound),
            inbound: (!args.no_inbound).then_some(inbound),
            has_ipv6: match args.ipv6 {
                Ipv6::On => true,
                Ipv6::Off => false,
                Ipv6::Auto => std::path::Path::new("/proc/net/if_inet6").exists(),
            },
        }
    }
}

/// Writes, shows or removes the rules.
///
/// # Errors
/// The program that sets them is missing or fails, most often for lack of rights.
pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let is_nft = match args.backend {
        Backend::Nft => true,
        Backend::Iptables => false,
        Backend::Auto => is_there("nft") || !is_there("iptables-restore"),
    };
    ensure!(
        args.remove || !(args.no_outbound && args.no_inbound),
        "--no-outbound and --no-inbound together leave nothing to redirect"
    );
    let rules = Rules::of(args);
    let steps = match (is_nft, args.remove) {
        (true, true) => vec![RulesCommand::new("nft", &["-f", "-"], nft::removal())],
        (true, false) => vec![RulesCommand::new("nft", &["-f", "-"], nft::render(&rules))],
        (false, is_removal) => iptables::steps(&rules, is_removal)?,
    };
    for step in steps {
        if args.print {
            crate::console::say(step.input.trim_end())?;
        } else {
            step.run()?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn is_there(program: &str) -> bool {
    let mut command = Command::new(program);
    command.arg("--version").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

/// A program that reads rules from its input and sets all of them or none.
struct RulesCommand {
    program: &'static str,
    arguments: &'static [&'static str],
    input: String,
}

impl RulesCommand {
    fn new(program: &'static str, arguments: &'static [&'static str], input: String) -> Self {
        Self { program, arguments, input }
    }

    fn run(&self) -> anyhow::Result<()> {
        let program = self.program;
        let mut child = Command::new(program)
            .args(self.arguments)
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| {
                format!("`{program}` can't be started: install nftables, or iptables for --backend iptables")
            })?;
        let mut stdin = child.stdin.take().context("a pipe to it")?;
        // If it ends early, its output says why.
        let _ = stdin.write_all(self.input.as_bytes());
        drop(stdin);
        let output = child.wait_with_output()?;
        if output.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&output.stderr);
        let is_denied = said.contains("not permitted") || said.contains("Permission denied");
        let hint = if is_denied { "; this needs root, or CAP_NET_ADMIN" } else { "" };
        bail!("`{program}` refused the rules, and nothing was changed: {}{hint}", said.trim());
    }
}
