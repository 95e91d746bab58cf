//! `perftools.profiles.Profile`, the format of `pprof` and similar programs: the fields that are needed here, with
//! their numbers from google/pprof's `profile.proto`.

use std::{collections::HashMap, time::Duration};

use prost::Message;

use super::stacks::{LOOKS_A_SECOND, Stacks};

#[derive(Clone, PartialEq, Message)]
struct Profile {
    #[prost(message, repeated, tag = "1")]
    sample_type: Vec<ValueType>,
    #[prost(message, repeated, tag = "2")]
    sample: Vec<Sample>,
    #[prost(message, repeated, tag = "4")]
    location: Vec<Location>,
    #[prost(message, repeated, tag = "5")]
    function: Vec<Function>,
    /// The texts that the other messages refer to by index; the first is empty.
    #[prost(string, repeated, tag = "6")]
    string_table: Vec<String>,
    #[prost(int64, tag = "10")]
    duration_nanos: i64,
    #[prost(message, optional, tag = "11")]
    period_type: Option<ValueType>,
    #[prost(int64, tag = "12")]
    period: i64,
}

#[derive(Clone, PartialEq, Message)]
struct ValueType {
    #[prost(int64, tag = "1")]
    r#type: i64,
    #[prost(int64, tag = "2")]
    unit: i64,
}

#[derive(Clone, PartialEq, Message)]
struct Sample {
    /// The innermost frame first.
    #[prost(uint64, repeated, tag = "1")]
    location_id: Vec<u64>,
    #[prost(int64, repeated, tag = "2")]
    value: Vec<i64>,
}

#[derive(Clone, PartialEq, Message)]
struct Location {
    #[prost(uint64, tag = "1")]
    id: u64,
    #[prost(message, repeated, tag = "4")]
    line: Vec<Line>,
}

#[derive(Clone, PartialEq, Message)]
struct Line {
    #[prost(uint64, tag = "1")]
    function_id: u64,
}

#[derive(Clone, PartialEq, Message)]
struct Function {
    #[prost(uint64, tag = "1")]
    id: u64,
    #[prost(int64, tag = "2")]
    name: i64,
}

/// Encodes a profile for `go tool pprof`.
pub(super) fn encode(stacks: &Stacks, time: Duration) -> Vec<u8> {
    let period = 1_000_000_000 / i64::from(LOOKS_A_SECOND);
    let mut strings = Strings::default();
    let [_, samples, count, cpu, nanoseconds] =
        ["", "samples", "count", "cpu", "nanoseconds"].map(|text| strings.add(text));
    let type_ = |r#type, unit| ValueType { r#type, unit };
    let mut profile = Profile {
        sample_type: vec![type_(samples, count), type_(cpu, nanoseconds)],
        duration_nanos: time.as_nanos() as i64,
        period_type: Some(type_(cpu, nanoseconds)),
        period,
        ..Profile::default()
    };
    let mut ids = HashMap::new();
    for (stack, count) in stacks {
        let mut location_id: Vec<u64> = Vec::with_capacity(stack.len());
        for name in stack.iter().rev() {
            let next = ids.len() as u64 + 1;
            let id = *ids.entry(name.as_str()).or_insert_with(|| {
                profile.function.push(Function { id: next, name: strings.add(name) });
                profile.location.push(Location { id: next, line: vec![Line { function_id: next }] });
                next
            });
            location_id.push(id);
        }
        let count = *count as i64;
        profile.sample.push(Sample { location_id, value: vec![count, count * period] });
    }
    profile.string_table = strings.0;
    profile.encode_to_vec()
}

#[derive(Default)]
struct Strings(Vec<String>);

impl Strings {
    fn add(&mut self, text: &str) -> i64 {
        self.0.push(text.to_owned());
        self.0.len() as i64 - 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_function_is_named_once() {
        let stack = |names: [&str; 2]| names.map(str::to_owned).to_vec();
        let stacks = Stacks::from([(stack(["worker-0", "run"]), 2), (stack(["worker-0", "rest"]), 1)]);
        let profile = Profile::decode(encode(&stacks, Duration::from_secs(1)).as_slice()).unwrap();
        let name = |id: u64| &profile.string_table[profile.function[id as usize - 1].name as usize];
        let met: Vec<Vec<_>> = profile
            .sample
            .iter()
            .map(|sample| sample.location_id.iter().map(|id| name(*id).as_str()).collect())
            .collect();
        assert_eq!(met, [["rest", "worker-0"], ["run", "worker-0"]]);
        assert_eq!((profile.function.len(), profile.string_table[0].as_str()), (3, ""));
    }
}
