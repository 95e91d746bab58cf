//! Where each flag got its value from.

use clap::{ArgMatches, Args as _, Command, FromArgMatches, parser::ValueSource};

use super::Args;

/// The flags of a sidecar, and where each value comes from.
#[derive(Clone, Debug)]
pub struct Given {
    pub(crate) args: Args,
    pub(crate) settings: Vec<Setting>,
}

/// One flag.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Setting {
    /// `drain-seconds`
    pub(crate) flag: String,
    /// `WEFT_DRAIN_SECONDS`
    pub(crate) variable: String,
    /// The text as it was given. No flag holds a secret: secrets are in files that flags name.
    pub(crate) value: Option<String>,
    pub(crate) origin: Origin,
}

/// Where a flag's value comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    Default,
    Environment,
    Flag,
}

impl Setting {
    fn of(arg: &clap::Arg, matches: &ArgMatches) -> Self {
        let id = arg.get_id().as_str();
        let origin = match matches.value_source(id) {
            Some(ValueSource::CommandLine) => Origin::Flag,
            Some(ValueSource::EnvVariable) => Origin::Environment,
            _ => Origin::Default,
        };
        let joined = |values: clap::parser::RawValues<'_>| {
            values.map(|value| value.to_string_lossy()).collect::<Vec<_>>().join(",")
        };
        Self {
            flag: arg.get_long().unwrap_or(id).to_owned(),
            variable: arg.get_env().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default(),
            value: matches.get_raw(id).map(joined),
            origin,
        }
    }
}

fn settings(matches: &ArgMatches) -> Vec<Setting> {
    let command = Args::augment_args(Command::new("sidecar"));
    command.get_arguments().map(|arg| Setting::of(arg, matches)).collect()
}

impl FromArgMatches for Given {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        Ok(Self { settings: settings(matches), args: Args::from_arg_matches(matches)? })
    }

    fn from_arg_matches_mut(matches: &mut ArgMatches) -> Result<Self, clap::Error> {
        // `settings` goes first: the second call takes the values out of `matches`.
        Ok(Self { settings: settings(matches), args: Args::from_arg_matches_mut(matches)? })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        self.settings = settings(matches);
        self.args.update_from_arg_matches(matches)
    }
}

impl clap::Args for Given {
    fn augment_args(command: Command) -> Command {
        Args::augment_args(command)
    }

    fn augment_args_for_update(command: Command) -> Command {
        Args::augment_args_for_update(command)
    }

    fn group_id() -> Option<clap::Id> {
        Args::group_id()
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        given: Given,
    }

    #[test]
    fn each_flag_knows_where_its_value_comes_from() {
        let needed = ["x", "--trust-bundle", "a.pem", "--join-token-file", "b.jwt"];
        let more = ["--otlp", "console", "--otlp", "http://127.0.0.1:4317", "--workers", "2"];
        let given = Cli::try_parse_from(needed.into_iter().chain(more)).unwrap().given;
        assert_eq!(given.args.workers, 2);
        let find = |flag: &str| given.settings.iter().find(|setting| setting.flag == flag).unwrap();
        let shown = |flag| (find(flag).value.as_deref(), find(flag).origin);
        assert_eq!(shown("workers"), (Some("2"), Origin::Flag));
        assert_eq!(shown("drain-seconds"), (Some("10"), Origin::Default));
        assert_eq!(shown("service"), (None, Origin::Default));
        assert_eq!(shown("otlp"), (Some("console,http://127.0.0.1:4317"), Origin::Flag));
        assert_eq!(shown("join-token-file"), (Some("b.jwt"), Origin::Flag));
        assert_eq!(find("drain-seconds").variable, "WEFT_DRAIN_SECONDS");
    }
}
