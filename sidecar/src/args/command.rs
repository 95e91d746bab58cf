//! The command line as a whole: the flags of a sidecar, or a command for the sidecar that runs.

use std::{net::SocketAddr, time::Duration};

use clap::{ArgMatches, FromArgMatches};
use weft_mesh::names::port;

use super::{Given, loopback};

const DRAIN: &str = "drain";

/// What the program is asked to do.
#[derive(Clone, Debug)]
pub enum Command {
    /// Be a sidecar.
    Run(Box<Given>),
    /// Drain the sidecar that runs.
    Drain(Drain),
}

/// Drain the sidecar that runs on this host: it leaves discovery and takes no new calls in. Then wait until no call runs in
/// its service any more
#[derive(Clone, Debug, clap::Args)]
pub struct Drain {
    /// Where the admin port of the sidecar listens
    #[arg(long, env = "WEFT_ADMIN_LISTEN", value_name = "IP:PORT", default_value_t = loopback(port::ADMIN))]
    pub(crate) admin: SocketAddr,
    /// Where the metrics and probes of the sidecar listen
    #[arg(long, env = "WEFT_METRICS_LISTEN", value_name = "IP:PORT", default_value_t = loopback(port::METRICS))]
    pub(crate) metrics: SocketAddr,
    /// How long to wait at most. Calls may still run then, and the exit status is 0 all the same
    #[arg(long, env = "WEFT_DRAIN_SECONDS", value_name = "SECONDS", default_value = "10", value_parser = seconds)]
    pub(crate) wait: Duration,
}

fn seconds(text: &str) -> Result<Duration, String> {
    // More than a year may overflow a clock.
    let seconds = text.parse().ok().filter(|seconds| *seconds <= 365 * 86_400);
    seconds.map(Duration::from_secs).ok_or_else(|| "allowed: a whole number of seconds, at most a year".to_owned())
}

impl clap::Args for Command {
    fn augment_args(command: clap::Command) -> clap::Command {
        let drain = Drain::augment_args(clap::Command::new(DRAIN));
        // What a sidecar needs is not needed to talk to one.
        Given::augment_args(command)
            .subcommand(drain)
            .args_conflicts_with_subcommands(true)
            .subcommand_negates_reqs(true)
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for Command {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        match matches.subcommand_matches(DRAIN) {
            Some(matches) => Drain::from_arg_matches(matches).map(Self::Drain),
            None => Given::from_arg_matches(matches).map(|given| Self::Run(Box::new(given))),
        }
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        command: Command,
    }

    fn parse(args: &[&str]) -> Result<Command, String> {
        let args = ["x"].iter().chain(args);
        Cli::try_parse_from(args).map(|cli| cli.command).map_err(|error| error.to_string())
    }

    #[test]
    fn a_drain_needs_none_of_a_sidecars_flags() {
        let Ok(Command::Drain(Drain { admin, metrics, wait })) = parse(&["drain"]) else { panic!() };
        assert_eq!((admin.to_string(), metrics.to_string()), ("127.0.0.1:15000".into(), "127.0.0.1:15020".into()));
        assert_eq!(wait, Duration::from_secs(10));
        let args = ["drain", "--wait", "0", "--admin", "[::1]:1"];
        let Ok(Command::Drain(Drain { admin, wait, .. })) = parse(&args) else { panic!() };
        assert_eq!((admin.to_string(), wait), ("[::1]:1".into(), Duration::ZERO));
        let Ok(Command::Run(_)) = parse(&["--trust-bundle", "a", "--join-token-file", "b"]) else { panic!() };
        for (args, expected) in [
            (&[][..], "--trust-bundle"),
            (&["drain", "--wait=-1"], "a whole number of seconds"),
            (&["drain", "--wait", "soon"], "a whole number of seconds"),
            (&["--workers", "2", "drain"], "cannot be used with"),
        ] {
            let told = parse(args).expect_err("an error");
            assert!(told.contains(expected), "{told}");
        }
    }
}
