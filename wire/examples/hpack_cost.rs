//! The time that header compression takes in a relay, in nanoseconds: `cargo run --release -p weft-wire --example
//! hpack_cost`.

use std::hint::black_box;
use std::time::{Duration, Instant};

use weft_wire::Headers;
use weft_wire::hpack::{Decoder, Encoder};

const LIMIT: usize = 16 << 10;

fn list(fields: &[(&str, &str)]) -> Headers {
    let mut headers = Headers::new();
    fields.iter().for_each(|(name, value)| headers.append_bytes(name.as_bytes(), value.as_bytes()));
    headers
}

/// The shortest of many runs, since other load on the machine only adds to the time.
fn best(mut work: impl FnMut()) -> f64 {
    const ROUNDS: u32 = 100;
    let run = |work: &mut dyn FnMut()| {
        let start = Instant::now();
        (0..ROUNDS).for_each(|_| work());
        start.elapsed()
    };
    let shortest = (0..20_000).map(|_| run(&mut work)).min().unwrap_or(Duration::ZERO);
    shortest.as_nanos() as f64 / f64::from(ROUNDS)
}

/// Measures a list that a peer sends repeatedly, and that is forwarded.
fn relay(name: &str, sent: &Headers) {
    let (mut client, mut server, mut upstream) = (Encoder::new(4096), Decoder::new(4096), Encoder::new(4096));
    let (mut block, mut out, mut headers) = (Vec::new(), Vec::new(), Headers::new());
    for _ in 0..4 {
        block.clear();
        client.encode(sent, &mut block);
        server.decode(&block, LIMIT, &mut headers).expect("it is a block");
        out.clear();
        upstream.encode(&headers, &mut out);
    }
    let decode = best(|| {
        black_box(server.decode(black_box(&block), LIMIT, &mut headers)).expect("it is a block");
    });
    let encode = best(|| {
        out.clear();
        upstream.encode(black_box(&headers), &mut out);
    });
    let mut own = Encoder::new(4096);
    let encode_own = best(|| {
        out.clear();
        own.encode(black_box(sent), &mut out);
    });
    println!(
        "{name}: {} fields in {} bytes: decode {decode:.0} ns, encode {encode:.0} ns, encode own fields {encode_own:.0} ns",
        sent.len(),
        block.len(),
    );
}

/// A deadline and a `traceparent` as most clients send them when they are new: in Huffman code, with incremental
/// indexing.
const NEW_FIELDS: &str = "40899acac8b24d494f6a7f8469f7dea740884d83216b1d85a93fa700166a395f14acb6ebb1b2d483706c90af89f9005015a7597160025\
    038e8c608c6f8051bab003f";

fn new_fields() {
    let digits = NEW_FIELDS.as_bytes().chunks(2);
    let text = digits.map(|pair| std::str::from_utf8(pair).expect("ASCII"));
    let block: Vec<u8> = text.map(|pair| u8::from_str_radix(pair, 16).expect("hex")).collect();
    let (mut decoder, mut headers) = (Decoder::new(4096), Headers::new());
    let decode = best(|| {
        black_box(decoder.decode(black_box(&block), LIMIT, &mut headers)).expect("it is a block");
    });
    println!("new fields in Huffman code: {} fields in {} bytes: decode {decode:.0} ns", headers.len(), block.len());
}

fn main() {
    new_fields();
    let head = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", "/shop.Cart/Add"),
        (":authority", "cart.shop.svc.cluster.local:8080"),
        ("te", "trailers"),
        ("content-type", "application/grpc"),
        ("user-agent", "grpc-go/1.70.0"),
        ("grpc-accept-encoding", "gzip"),
    ];
    relay("request, all indexed", &list(&head));
    let mut traced = head.to_vec();
    traced.push(("grpc-timeout", "4998m"));
    traced.push(("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"));
    relay("request, deadline and trace", &list(&traced));
    relay("response", &list(&[(":status", "200"), ("content-type", "application/grpc")]));
    relay("trailers", &list(&[("grpc-status", "0"), ("grpc-message", "")]));
}
