//! The programs that generate load.

use std::process::Command;

use weft_tests::outside;

use crate::server::paths;

/// A program that generates load. It determines how the output is read.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Tool {
    /// The suite's own clients: a line of JSON.
    Own,
    Wrk,
    Ab,
    H2load,
    Ghz,
    Redis,
    Pgbench,
    Sysbench,
    Nats,
}

/// One load of a case.
#[derive(Clone, Debug)]
pub(crate) struct Load {
    pub(crate) tool: Tool,
    /// The command, to be filled in by [`paths`], which calls 127.0.0.1. `${PORT}` and `${SERVICE}` stand for the
    /// target, `${HEADER}` for the header that names the service in HTTP, `${SECONDS}` for the duration.
    pub(crate) command: String,
    pub(crate) needs: Vec<&'static str>,
    /// Kinds of failure that it asks for, and that do not count.
    pub(crate) asks_for: &'static [&'static str],
}

/// The target of a load.
#[derive(Clone, Copy)]
pub(crate) struct Target<'a> {
    pub(crate) port: u16,
    pub(crate) service: &'a str,
    pub(crate) seconds: u64,
}

impl Load {
    pub(crate) fn new(tool: Tool, command: String, needs: &[&'static str]) -> Self {
        Self { tool, command, needs: needs.to_vec(), asks_for: &[] }
    }

    /// The same, asking for failures of these kinds.
    pub(crate) fn asking_for(mut self, kinds: &'static [&'static str]) -> Self {
        self.asks_for = kinds;
        self
    }

    /// The command line: split at spaces, then filled in.
    pub(crate) fn command(&self, target: &Target<'_>) -> Command {
        let fill = |word: &str| {
            let word = word.replace("${PORT}", &target.port.to_string());
            let word = word.replace("${SERVICE}", target.service);
            let word = word.replace("${HEADER}", &format!("x-weft-service: {}", target.service));
            paths(&word.replace("${SECONDS}", &target.seconds.to_string()))
        };
        let mut words = self.command.split_whitespace().map(fill);
        let program = words.next().expect("a command has a program");
        let mut command = Command::new(outside(&program).unwrap_or_else(|| program.into()));
        command.args(words);
        command
    }
}
