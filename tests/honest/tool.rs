//! The programs that make load.

use std::process::Command;

use weft_tests::outside;

use crate::server::paths;

/// A program that makes load, by what it prints.
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
    /// The command, as [`paths`] has it, which calls 127.0.0.1. `${PORT}` and `${SERVICE}` stand for what is called, `${HEADER}` for what names
    /// the service in HTTP, `${SECONDS}` for how long.
    pub(crate) command: String,
    pub(crate) needs: Vec<&'static str>,
    /// Kinds of failure that it asks for.
    pub(crate) asks_for: &'static [&'static str],
}

/// What a load calls.
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

    /// Split at spaces, then filled in.
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
