//! Members cannot fill the log.

use std::{cell::Cell, collections::BTreeSet, time::Duration};

use tokio::time::Instant;
use tracing::{Event, Metadata, Subscriber, span};
use weft_contracts::weft::discovery::v1::{Endpoint, Health, Protocol};
use weft_mesh::{limits, names::ServiceName};

use super::{Directory, registry::Announcement};
use crate::claims::{Claims, hosts::Hosts, visibility::Visibility};

thread_local! {
    static WRITTEN: Cell<u32> = const { Cell::new(0) };
}

/// Counts the log lines of each thread. It is installed for the whole program: `tracing` caches for all threads
/// together whether a line is enabled, so a subscriber of one thread would miss lines that another thread reached
/// first.
struct Lines;

impl Subscriber for Lines {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target().starts_with("weft_control")
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn event(&self, _: &Event<'_>) {
        WRITTEN.set(WRITTEN.get() + 1);
    }

    fn enter(&self, _: &span::Id) {}

    fn exit(&self, _: &span::Id) {}
}

fn announcement(service: &str, number: u16) -> Announcement {
    Announcement {
        service: ServiceName::parse(service).unwrap(),
        endpoint: Endpoint {
            id: format!("e{number}"),
            address: format!("10.0.0.1:{}", number + 1),
            health: Health::Up.into(),
            ..Endpoint::default()
        },
        protocol: Protocol::Http2,
        // An address that is refused, with a log line: neither the file nor a token allows it.
        contracts: BTreeSet::new(),
        addresses: BTreeSet::from(["192.0.2.1:443".to_owned()]),
        allowed: BTreeSet::new(),
        of_cluster: BTreeSet::new(),
        descriptors: None,
        policy: None,
    }
}

#[tokio::test(start_paused = true)]
async fn the_log_lines_of_one_identity_are_limited_and_others_keep_theirs() {
    tracing::subscriber::set_global_default(Lines).expect("no other test sets one");
    let written = || WRITTEN.replace(0);
    let trust_domain = "weft.test".parse().unwrap();
    let directory = Directory::new(trust_domain, Visibility::All, Claims::default(), Hosts::default());
    let join = |service: &str, number| directory.join(announcement(service, number)).unwrap().0;
    let mut silent = Vec::new();
    for number in 0..300 {
        // It joins and a claim is refused; then it leaves, its stream breaks, or it is evicted.
        match number % 3 {
            0 => join("greedy.shop", number).leave(),
            1 => drop(join("greedy.shop", number)),
            _ => silent.push(join("greedy.shop", number)),
        }
    }
    assert_eq!(written(), limits::LOG_LINES_OF_IDENTITY);
    let users = join("users.shop", 1);
    assert_eq!(written(), 2, "that it joined, and that a claim was refused");
    tokio::time::advance(Duration::from_secs(1)).await;
    let alive = join("greedy.shop", 400);
    assert_eq!(written(), 3, "the same two, and how many lines were left out");
    for _ in 1..limits::ENDPOINT_EXPIRY.as_secs() {
        tokio::time::advance(Duration::from_secs(1)).await;
        alive.heartbeat(Health::Up).unwrap();
        directory.lock().tick(Instant::now(), &directory.lines);
    }
    assert_eq!(written(), limits::LOG_LINES_OF_IDENTITY, "of a hundred evictions");
    drop((users, alive, silent));
}
