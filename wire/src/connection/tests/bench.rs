//! The time to relay a call in this crate, without I/O: run with `--release -- --ignored --nocapture relayed`.

use super::*;

/// Four connections: the caller's, the relay's two, and the service's.
struct Chain {
    caller: Connection<u32>,
    inbound: Connection<StreamId>,
    outbound: Connection<StreamId>,
    service: Connection<u32>,
    now: Instant,
}

fn move_output<A: Clone, B: Clone>(
    from: &mut Connection<A>,
    to: &mut Connection<B>,
    now: Instant,
    mut each: impl FnMut(&mut Connection<B>, Event<'_, B>),
) {
    let mut input = from.output();
    let bytes = input.len();
    while let Some(event) = to.receive(&mut input, now).expect("both endpoints follow the rules") {
        each(to, event);
    }
    assert!(input.is_empty());
    from.wrote(bytes);
}

impl Chain {
    fn new() -> Chain {
        let (limits, now) = (Arc::new(Limits::default()), Instant::now());
        let mut chain = Chain {
            caller: Connection::client(&limits, now),
            inbound: Connection::server(&limits, now),
            outbound: Connection::client(&limits, now),
            service: Connection::server(&limits, now),
            now,
        };
        for _ in 0..2 {
            move_output(&mut chain.caller, &mut chain.inbound, now, |_, _| {});
            move_output(&mut chain.inbound, &mut chain.caller, now, |_, _| {});
            move_output(&mut chain.outbound, &mut chain.service, now, |_, _| {});
            move_output(&mut chain.service, &mut chain.outbound, now, |_, _| {});
        }
        chain
    }

    /// Relays requests from the caller to the service.
    fn relay_requests(&mut self) {
        let outbound = &mut self.outbound;
        move_output(&mut self.caller, &mut self.inbound, self.now, |inbound, event| match event {
            Event::Request { stream, headers, is_end } => {
                let upstream = outbound.open(&headers, is_end, stream).expect("there is room");
                inbound.recycle(headers);
                inbound.attach(stream, upstream);
            }
            Event::Data { stream, call, data, is_end } => {
                outbound.send_data(call, data, is_end);
                inbound.release(stream, data.len());
            }
            _ => {}
        });
    }

    /// Relays responses from the service to the caller.
    fn relay_answers(&mut self) {
        let inbound = &mut self.inbound;
        move_output(&mut self.service, &mut self.outbound, self.now, |outbound, event| match event {
            Event::Response { call, headers, is_end, .. } => {
                inbound.respond(call, &headers, is_end);
                outbound.recycle(headers);
            }
            Event::Data { stream, call, data, is_end } => {
                inbound.send_data(call, data, is_end);
                outbound.release(stream, data.len());
            }
            Event::Trailers { call, headers, .. } => {
                inbound.send_trailers(call, &headers);
                outbound.recycle(headers);
            }
            _ => {}
        });
    }
}

#[test]
#[ignore = "measures"]
fn a_relayed_call() {
    const CALLS: u32 = 32;
    const ROUNDS: u32 = 2_000;
    let request = list(&[
        (":method", "POST"),
        (":scheme", "http"),
        (":path", "/shop.v1.Catalog/GetProduct"),
        (":authority", "catalog.shop:8080"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
        ("user-agent", "tonic/0.14.9"),
        ("grpc-timeout", "5S"),
    ]);
    let answer =
        list(&[(":status", "200"), ("content-type", "application/grpc"), ("date", "Mon, 23 Nov 2026 22:00:00 GMT")]);
    let trailers = list(&[("grpc-status", "0"), ("grpc-message", "")]);
    let body = [7; 133];
    let mut chain = Chain::new();
    let (mut there, mut back, mut answered) = (Vec::new(), Vec::new(), 0);
    for _ in 0..ROUNDS {
        for call in 0..CALLS {
            let stream = chain.caller.open(&request, false, call).expect("there is room");
            chain.caller.send_data(stream, &body, true);
        }
        let start = Instant::now();
        chain.relay_requests();
        there.push(start.elapsed());
        move_output(&mut chain.outbound, &mut chain.service, chain.now, |service, event| match event {
            Event::Request { stream, headers, .. } => {
                service.attach(stream, 0);
                service.recycle(headers);
            }
            Event::Data { stream, data, is_end, .. } => {
                service.release(stream, data.len());
                if is_end {
                    service.respond(stream, &answer, false);
                    service.send_data(stream, &body, false);
                    service.send_trailers(stream, &trailers);
                }
            }
            _ => {}
        });
        let start = Instant::now();
        chain.relay_answers();
        back.push(start.elapsed());
        move_output(&mut chain.inbound, &mut chain.caller, chain.now, |caller, event| match event {
            Event::Response { headers, .. } => caller.recycle(headers),
            Event::Data { stream, data, .. } => caller.release(stream, data.len()),
            Event::Trailers { headers, .. } => {
                caller.recycle(headers);
                answered += 1;
            }
            _ => {}
        });
    }
    assert_eq!(answered, ROUNDS * CALLS);
    // The median, so that other load on the machine hardly counts.
    let each = |mut rounds: Vec<Duration>| {
        rounds.sort_unstable();
        rounds[rounds.len() / 2].as_nanos() / u128::from(CALLS)
    };
    let (there, back) = (each(there), each(back));
    println!("{} ns a relayed call: {there} there, {back} back", there + back);
}
