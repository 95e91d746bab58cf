//! The request: JSON values from the command line, a file or standard input, read one by one.

use std::{
    fs::File,
    io::{BufReader, Cursor, Read},
};

use anyhow::{Context, bail};
use bytes::Bytes;
use futures_util::{StreamExt, stream::BoxStream};
use serde_json::Value;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;

use super::schema::Messages;

/// How many values may wait to be sent. While the queue is full, nothing more is read.
const QUEUE: usize = 16;

/// Where the JSON comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Source {
    /// There is none.
    Nothing,
    Text(String),
    File(String),
    StandardInput,
}

impl Source {
    /// `-` is standard input. Only the value of the flag may also name a file, as `@FILE`.
    pub(super) fn new(text: Option<&str>, is_argument: bool) -> Self {
        match text {
            None => Self::Nothing,
            Some("-") => Self::StandardInput,
            Some(text) => match text.strip_prefix('@') {
                Some(file) if !is_argument => Self::File(file.to_owned()),
                _ => Self::Text(text.to_owned()),
            },
        }
    }

    fn open(self) -> anyhow::Result<Box<dyn Read + Send>> {
        Ok(match self {
            Self::Nothing => Box::new(std::io::empty()),
            Self::Text(text) => Box::new(Cursor::new(text)),
            Self::File(name) => {
                Box::new(BufReader::new(File::open(&name).with_context(|| format!("{name} can't be read"))?))
            }
            Self::StandardInput => Box::new(BufReader::new(std::io::stdin())),
        })
    }
}

/// The JSON values in a text, with or without line breaks between them. Each is returned as soon as it is complete.
fn values(text: impl Read) -> impl Iterator<Item = anyhow::Result<Value>> {
    let mut is_over = false;
    let mut number = 0;
    let mut values = serde_json::Deserializer::from_reader(text).into_iter::<Value>();
    std::iter::from_fn(move || {
        if is_over {
            return None;
        }
        number += 1;
        let value = values.next()?;
        // After broken JSON it is not known where the next value starts.
        is_over = value.is_err();
        Some(value.with_context(|| format!("the request is not JSON, in value {number}")))
    })
}

/// The request of a method that takes exactly one.
pub(super) async fn single(source: Source, messages: &Messages, message: &str) -> anyhow::Result<Bytes> {
    let read = move || -> anyhow::Result<Vec<Value>> { values(source.open()?).take(2).collect() };
    let mut read = tokio::task::spawn_blocking(read).await.context("reading the request")??;
    match read.len() {
        0 => encode(messages, message, &Value::Object(serde_json::Map::new())),
        1 => encode(messages, message, &read.remove(0)),
        _ => bail!("there is more than one JSON value, but this method takes one request"),
    }
}

/// The requests of a method that takes a stream, each sent as soon as it is read. An error goes to `failed`, and the
/// stream then stays open: its end would tell the service that the request is complete.
pub(super) fn stream(
    source: Source,
    messages: Messages,
    message: String,
    failed: oneshot::Sender<anyhow::Error>,
) -> BoxStream<'static, Bytes> {
    let (queue, requests) = mpsc::channel(QUEUE);
    let (hold, held) = oneshot::channel::<()>();
    // A separate thread, as reading blocks. If the input has no end, the thread ends with the process.
    std::thread::spawn(move || {
        let send_all = || -> anyhow::Result<()> {
            for value in values(source.open()?) {
                let request = encode(&messages, &message, &value?)?;
                if queue.blocking_send(request).is_err() {
                    break;
                }
            }
            Ok(())
        };
        match send_all() {
            Ok(()) => drop(hold),
            Err(error) => {
                let _ = failed.send(error);
                std::mem::forget(hold);
            }
        }
    });
    let end = futures_util::stream::once(held).filter_map(|_| async { None::<Bytes> });
    ReceiverStream::new(requests).chain(end).boxed()
}

fn encode(messages: &Messages, message: &str, value: &Value) -> anyhow::Result<Bytes> {
    messages.to_binary(message, &value.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns one byte for each read, and counts the bytes.
    struct Slow<'a>(&'a [u8], std::rc::Rc<std::cell::Cell<usize>>);

    impl Read for Slow<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
            let read = (&self.0[..self.0.len().min(1)]).read(buffer)?;
            self.0 = &self.0[read..];
            self.1.set(self.1.get() + read);
            Ok(read)
        }
    }

    #[test]
    fn values_come_one_by_one_however_they_are_separated() {
        for text in ["{\"a\":1}{\"a\":2}", "{\"a\":1}\n{\"a\":2}\n", " {\n \"a\": 1 }\n\n\t{\"a\":2}  "] {
            let read: Vec<Value> = values(text.as_bytes()).map(Result::unwrap).collect();
            assert_eq!(read, [serde_json::json!({"a": 1}), serde_json::json!({"a": 2})], "{text}");
        }
        assert_eq!(values(&b"  \n"[..]).count(), 0);
    }

    #[test]
    fn a_value_is_given_before_the_next_one_is_read() {
        let read = std::rc::Rc::default();
        let text = b"{\"a\":1}\n{\"a\":2}\n";
        let mut values = values(Slow(text, std::rc::Rc::clone(&read)));
        assert!(values.next().unwrap().is_ok());
        assert_eq!(read.get(), 7);
    }

    #[test]
    fn broken_json_ends_the_values_and_its_place_is_reported() {
        let mut values = values(&b"{}\n{\"a\" 1}\n{}"[..]);
        assert!(values.next().unwrap().is_ok());
        let told = format!("{:#}", values.next().unwrap().unwrap_err());
        assert_eq!(told, "the request is not JSON, in value 2: expected `:` at line 2 column 6");
        assert!(values.next().is_none());
    }

    #[test]
    fn only_a_flag_names_files() {
        assert_eq!(Source::new(None, false), Source::Nothing);
        assert_eq!(Source::new(Some("-"), false), Source::StandardInput);
        assert_eq!(Source::new(Some("@a.json"), false), Source::File("a.json".to_owned()));
        assert_eq!(Source::new(Some("@a.json"), true), Source::Text("@a.json".to_owned()));
    }
}
