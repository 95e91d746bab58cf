//! Fixed answers of fallbacks, read from the JSON in contracts. What they take is bounded, since any service of the mesh may
//! ask the control plane to compile its contracts.

use std::{cell::OnceCell, collections::BTreeMap, sync::Arc};

use bytes::Bytes;

use crate::{
    limits, names,
    policy::{origin::Origin, rule::Violation},
    schema::{Method, Schema, SchemaError, Service},
};

/// A fixed answer in both encodings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) message: Bytes,
    pub(super) json: Arc<str>,
}

/// The answers of one service.
pub(super) struct Answers<'s> {
    schema: &'s dyn Schema,
    /// Those of service options, by response type and protobuf service: methods share them.
    shared: BTreeMap<(&'s str, &'s str), Answer>,
    /// Bytes of the answers, as they are written and as each method has them.
    bytes: usize,
    /// The most fields or values of a type, counted with the first answer.
    widest: OnceCell<usize>,
    /// The values in all answers that were read, each times `widest`.
    steps: usize,
}

impl<'s> Answers<'s> {
    pub(super) fn new(schema: &'s dyn Schema) -> Self {
        Self { schema, shared: BTreeMap::new(), bytes: 0, widest: OnceCell::new(), steps: 0 }
    }

    /// A method's answer, from this text.
    pub(super) fn of(
        &mut self,
        service: &'s Service,
        method: &'s Method,
        json: &str,
        origin: Origin,
    ) -> Result<Answer, Violation> {
        if method.server_streaming {
            let found = format!("given for {}, which streams its answers", method.name);
            return Err(Violation { found, allowed: "an answer for a method that answers with one message" });
        }
        // Not by the text, which may be long: each method would compare all of it.
        let key = (method.output.as_str(), service.name.as_str());
        let is_shared = origin == Origin::ServiceOption;
        let answer = match self.shared.get(&key).filter(|_| is_shared) {
            Some(answer) => answer.clone(),
            None => {
                self.count(json.len())?;
                self.count_steps(json)?;
                let answer = checked_answer(self.schema, method, json)?;
                if is_shared {
                    self.shared.insert(key, answer.clone());
                }
                answer
            }
        };
        self.count(answer.message.len() + answer.json.len())?;
        Ok(answer)
    }

    fn count(&mut self, bytes: usize) -> Result<(), Violation> {
        self.bytes += bytes;
        match self.bytes <= limits::POLICY_BYTES {
            true => Ok(()),
            false => Err(Violation { found: "more than 4 MiB with those before it".to_owned(), allowed: ANSWERS_SIZE }),
        }
    }

    fn count_steps(&mut self, json: &str) -> Result<(), Violation> {
        // Each value follows one of these, or is the whole text.
        let values = 1 + json.bytes().filter(|byte| matches!(byte, b'{' | b'[' | b',')).count();
        let widest = *self.widest.get_or_init(|| self.schema.widest());
        self.steps = self.steps.saturating_add(values.saturating_mul(widest));
        match self.steps <= limits::DESCRIPTOR_STEPS {
            true => Ok(()),
            false => {
                let found = format!("{values} values with those before it, while a type has {widest} fields or values");
                Err(Violation { found, allowed: ANSWERS_STEPS })
            }
        }
    }
}

pub(super) const ANSWERS_SIZE: &str = "answers of at most 4 MiB, those of all methods of the service together";
const _: () = assert!(limits::POLICY_BYTES == 4 << 20, "ANSWERS_SIZE says so");
pub(super) const ANSWERS_STEPS: &str = "at most 10,000,000 for the values in all answers of the service, times the fields \
                                        or values of the largest type in its descriptors";
const _: () = assert!(limits::DESCRIPTOR_STEPS == 10_000_000, "ANSWERS_STEPS says so");
/// The longest text of an answer that is read. Blanks between its parts are left out of the answer.
pub(super) const ANSWER_TEXT_BYTES: usize = 2 * limits::FALLBACK_ANSWER_BYTES;

fn checked_answer(schema: &dyn Schema, method: &Method, json: &str) -> Result<Answer, Violation> {
    let violation = |found, allowed| Violation { found, allowed };
    let unusable = |error: SchemaError| {
        let found = format!("`{}` for {} ({error})", names::shown(json), method.name);
        violation(found, "a message of the method's response type in JSON")
    };
    let check_size = |bytes: usize, most: usize| match bytes <= most {
        true => Ok(()),
        false => Err(violation(format!("a message of {bytes} bytes"), ANSWER_SIZE)),
    };
    // Before the next step each time: a few bytes of one form may be very many of the other.
    check_size(json.len(), ANSWER_TEXT_BYTES)?;
    let message = schema.json_to_binary(&method.output, json).map_err(unusable)?;
    check_size(message.len(), limits::FALLBACK_ANSWER_BYTES)?;
    // In the form that protobuf's own libraries write, whatever form the contract uses.
    let most = limits::FALLBACK_ANSWER_BYTES;
    let json = schema.binary_to_json_up_to(&method.output, &message, most).map_err(unusable)?;
    Ok(Answer { message: message.into(), json: json.into() })
}

pub(super) const ANSWER_SIZE: &str = "at most 16 KiB";
const _: () = assert!(limits::FALLBACK_ANSWER_BYTES == 16 * 1024, "ANSWER_SIZE says so");
