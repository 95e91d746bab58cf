//! tonic's part of the honest suite: `server` and `client`, with options such as `port=5000`.

mod client;
mod server;

use std::{collections::HashMap, env, time::Duration};

use anyhow::{Context, bail};
use bytes::{Buf, BufMut, Bytes};
use tonic::{
    Status,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
};

/// Sends messages as plain bytes, so that no generated code is needed.
#[derive(Clone, Copy, Default)]
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        *self
    }

    fn decoder(&mut self) -> Self {
        *self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, message: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put(message);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(buffer.copy_to_bytes(buffer.remaining())))
    }
}

/// The options on the command line.
struct Words(HashMap<String, String>);

impl Words {
    fn number(&self, name: &str, otherwise: usize) -> anyhow::Result<usize> {
        self.0.get(name).map_or(Ok(otherwise), |text| text.parse().with_context(|| format!("{name}={text}")))
    }

    fn millis(&self, name: &str) -> anyhow::Result<Option<Duration>> {
        let millis = self.number(name, 0)?;
        Ok((millis > 0).then(|| Duration::from_millis(millis as u64)))
    }

    fn text(&self, name: &str) -> &str {
        self.0.get(name).map_or("", String::as_str)
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let mut args = env::args().skip(1);
    let what = args.next().context("usage: weft-honest server|client WORD=VALUE...")?;
    let words = args.map(|arg| {
        arg.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned())).with_context(|| arg.clone())
    });
    let words = Words(words.collect::<anyhow::Result<_>>()?);
    match what.as_str() {
        "server" => server::run(&words).await,
        "client" => client::run(&words).await,
        _ => bail!("{what} is neither server nor client"),
    }
}
