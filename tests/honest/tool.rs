//! The programs that make load.

use std::process::Command;

use weft_tests::outside;

use crate::installed;

/// A program that makes load, by what it prints.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Tool {
    /// The suite's own clients: a line of JSON.
    Own,
    Wrk,
    Ab,
    H2load,
    Redis,
}

/// One load of a case.
#[derive(Debug)]
pub(crate) struct Load {
    pub(crate) tool: Tool,
    /// The command. `${PORT}`, `${HEADER}` and `${SECONDS}` stand for what is called, and for how long.
    pub(crate) command: &'static str,
    pub(crate) needs: &'static [&'static str],
    /// Kinds of failure that it asks for.
    pub(crate) asks_for: &'static [&'static str],
}

/// What a load calls.
#[derive(Clone, Copy)]
pub(crate) struct Target {
    pub(crate) port: u16,
    pub(crate) service: &'static str,
    pub(crate) seconds: u64,
}

impl Load {
    /// The same, asking for failures of these kinds.
    pub(crate) const fn asking_for(mut self, kinds: &'static [&'static str]) -> Self {
        self.asks_for = kinds;
        self
    }

    /// Split at spaces; `${HONEST}` is where the suite's programs are, `${HEADER}` what names the service in HTTP.
    pub(crate) fn command(&self, target: &Target) -> Command {
        let fill = |word: &str| {
            let word = word.replace("${PORT}", &target.port.to_string());
            let word = word.replace("${HEADER}", &format!("x-weft-service: {}", target.service));
            let word = word.replace("${SECONDS}", &target.seconds.to_string());
            word.replace("${HONEST}", &installed().display().to_string())
        };
        let mut words = self.command.split_whitespace().map(fill);
        let program = words.next().expect("a command has a program");
        let mut command = Command::new(outside(&program).unwrap_or_else(|| program.into()));
        command.args(words);
        command
    }
}
