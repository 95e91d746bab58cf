use std::time::{Duration, SystemTime};

use http_body::Frame;
use http_body_util::StreamBody;
use prost::Message as _;
use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Code,
    codec::{DecodeBuf, Decoder},
};
use weft_contracts::weft::discovery::v1::{Deregister, Endpoint, Health, Heartbeat, Protocol};

use super::*;
use crate::{
    claims::{Claims, hosts::Hosts, visibility::Visibility},
    grpc::pace::SECOND,
};

const USERS: &str = "shop.users.v1.Users";
/// A guard for what happens at once if all is well.
const SOON: Duration = Duration::from_secs(60);

struct AnnounceDecoder;

impl Decoder for AnnounceDecoder {
    type Item = AnnounceRequest;
    type Error = Status;

    fn decode(&mut self, bytes: &mut DecodeBuf<'_>) -> Result<Option<AnnounceRequest>, Status> {
        AnnounceRequest::decode(bytes).map(Some).map_err(|error| Status::internal(error.to_string()))
    }
}

fn directory() -> Arc<Directory> {
    Directory::new("weft.test".parse().unwrap(), Visibility::All, Claims::default(), Hosts::default())
}

fn name(service: &str) -> ServiceName {
    ServiceName::parse(service).unwrap()
}

fn announce(service: &str, id: &str, port: u16) -> Announce {
    Announce {
        service: service.into(),
        endpoint: Some(Endpoint {
            id: id.into(),
            address: format!("10.0.0.1:{port}"),
            spiffe_id: SpiffeId::of_service(&"weft.test".parse().unwrap(), &name(service)).to_string(),
            health: Health::Up.into(),
            silent: false,
        }),
        protocol: Protocol::Http2.into(),
        contracts: vec![USERS.into()],
        addresses: Vec::new(),
        descriptors_sha256: Bytes::copy_from_slice(&Sha256::digest(weft_contracts::FILE_DESCRIPTOR_SET)),
    }
}

/// The sidecar's side of an announcing stream.
struct Announcing {
    say: mpsc::Sender<Bytes>,
    answers: Answers,
}

impl Announcing {
    async fn open(directory: &Arc<Directory>, announce: Announce) -> Self {
        let (say, said) = mpsc::channel(64);
        let body = StreamBody::new(ReceiverStream::new(said).map(|bytes| Ok::<_, Status>(Frame::data(bytes))));
        let id = SpiffeId::of_service(&"weft.test".parse().unwrap(), &name(&announce.service));
        let not_after = SystemTime::now() + Duration::from_secs(24 * 3600);
        let caller = Caller::new(id, [10, 0, 0, 1].into(), not_after);
        let telling = Telling::new(&Rules::new(None).unwrap(), caller.id.service(), caller.host);
        let (to_sidecar, answers) = answers(caller.open(Kind::Announce).unwrap(), telling.taking());
        let mut stream = Stream {
            directory: Arc::clone(directory),
            caller,
            telling,
            cluster: None,
            requests: Streaming::new_request(AnnounceDecoder, body, None, None),
            pace: Pace::new(limits::ANNOUNCE_MESSAGES),
            to_sidecar,
            allowance: Allowance::default(),
            memberships: Memberships::default(),
            descriptors: Descriptors::NotWanted,
            has_left: false,
        };
        tokio::spawn(async move { stream.run().await });
        let announcing = Self { say, answers };
        announcing.say(What::Announce(announce)).await;
        announcing
    }

    async fn say(&self, what: What) {
        let message = AnnounceRequest { what: Some(what) }.encode_to_vec();
        let length = u32::try_from(message.len()).unwrap().to_be_bytes();
        self.say.send([&[0], &length[..], &message].concat().into()).await.unwrap();
    }

    async fn answer(&mut self) -> waiting::Answer {
        timeout(SOON, self.answers.next()).await.unwrap().unwrap()
    }
}

/// Waits until the endpoints of a service have this health.
async fn healths_become(directory: &Directory, service: &str, healths: &[Health]) {
    let are_so = || {
        let services = directory.services_in(&crate::claims::visibility::Sight::default());
        let endpoints = services.iter().filter(|known| known.name == service).flat_map(|known| &known.endpoints);
        endpoints.map(Endpoint::health).eq(healths.iter().copied())
    };
    let seen = async {
        while !are_so() {
            tokio::task::yield_now().await;
        }
    };
    timeout(SOON, seen).await.unwrap();
}

/// A directory where another service has sent the descriptors of `users.shop`: they are known, but not compiled for it.
async fn with_known_descriptors() -> (Arc<Directory>, Announcing) {
    let directory = directory();
    let mut other = Announcing::open(&directory, announce("other.shop", "o1", 9)).await;
    assert!(other.answer().await.unwrap().send_descriptors);
    other.say(What::Descriptors(Bytes::from_static(weft_contracts::FILE_DESCRIPTOR_SET))).await;
    assert!(other.answer().await.unwrap().is_described);
    (directory, other)
}

#[tokio::test]
async fn a_stream_that_waits_for_its_policy_is_answered_and_read() {
    let (directory, _other) = with_known_descriptors().await;
    let turn = directory.reading.take(&name("users.shop")).await;
    let mut users = Announcing::open(&directory, announce("users.shop", "u1", 1)).await;
    let answer = users.answer().await.unwrap();
    assert!(!answer.is_described && !answer.send_descriptors, "it is answered before the policy is known");
    users.say(What::Heartbeat(Heartbeat { health: Health::Draining.into() })).await;
    healths_become(&directory, "users.shop", &[Health::Draining]).await;
    drop(turn);
    assert!(users.answer().await.unwrap().is_described);
    // The same with descriptors that the stream sends itself.
    let turn = directory.reading.take(&name("users.shop")).await;
    let digest = Sha256::digest(b"nonsense");
    let unknown = Announce { descriptors_sha256: Bytes::copy_from_slice(&digest), ..announce("users.shop", "u2", 2) };
    let mut users = Announcing::open(&directory, unknown).await;
    assert!(users.answer().await.unwrap().send_descriptors);
    users.say(What::Descriptors(Bytes::from_static(b"nonsense"))).await;
    users.say(What::Deregister(Deregister {})).await;
    healths_become(&directory, "users.shop", &[Health::Draining]).await;
    drop(turn);
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_waits_for_its_policy_ends_with_its_session() {
    let (directory, _other) = with_known_descriptors().await;
    let _turn = directory.reading.take(&name("users.shop")).await;
    let mut older = Announcing::open(&directory, announce("users.shop", "u1", 1)).await;
    assert!(older.answer().await.is_ok());
    let mut newer = Announcing::open(&directory, announce("users.shop", "u1", 1)).await;
    assert!(newer.answer().await.is_ok());
    assert_eq!(older.answer().await.unwrap_err().code(), Code::FailedPrecondition);
}

#[tokio::test]
async fn descriptors_that_were_refused_are_not_asked_for_again() {
    let directory = directory();
    let digest = Bytes::copy_from_slice(&Sha256::digest(b"nonsense"));
    let useless = || Announce { descriptors_sha256: digest.clone(), ..announce("users.shop", "u1", 1) };
    let mut users = Announcing::open(&directory, useless()).await;
    assert!(users.answer().await.unwrap().send_descriptors);
    users.say(What::Descriptors(Bytes::from_static(b"nonsense"))).await;
    let refused = users.answer().await.unwrap().descriptors_refused;
    assert!(refused.contains("FileDescriptorSet"), "{refused}");
    users.say(What::Announce(useless())).await;
    assert!(!users.answer().await.unwrap().send_descriptors);
    assert_eq!(users.answer().await.unwrap().descriptors_refused, refused);
}

/// Otherwise a member could open many streams that keep a large message each, and that no turn limits.
#[tokio::test]
async fn a_stream_ends_when_its_endpoint_leaves() {
    let directory = directory();
    let mut users = Announcing::open(&directory, announce("users.shop", "u1", 1)).await;
    assert!(users.answer().await.unwrap().send_descriptors);
    users.say(What::Deregister(Deregister {})).await;
    assert!(timeout(SOON, users.answers.next()).await.unwrap().is_none(), "it has ended");
    let mut again = Announcing::open(&directory, announce("users.shop", "u1", 1)).await;
    assert!(again.answer().await.unwrap().send_descriptors);
}

/// Otherwise one stream fills its service with silent endpoints, and all callers go through them.
#[tokio::test]
async fn a_stream_that_announces_another_endpoint_leaves_none_behind() {
    let directory = directory();
    let mut users = Announcing::open(&directory, announce("users.shop", "u0", 1)).await;
    assert!(users.answer().await.is_ok());
    for number in 1..10 {
        users.say(What::Announce(announce("users.shop", &format!("u{number}"), 1 + number))).await;
        assert!(users.answer().await.is_ok());
        healths_become(&directory, "users.shop", &[Health::Up]).await;
    }
    // The same endpoint again is not removed.
    users.say(What::Announce(announce("users.shop", "u9", 10))).await;
    assert!(users.answer().await.is_ok());
    healths_become(&directory, "users.shop", &[Health::Up]).await;
}

#[tokio::test(start_paused = true)]
async fn announcements_are_limited_for_each_identity() {
    let directory = directory();
    let (at_once, ..) = limits::ANNOUNCEMENTS;
    assert!(
        (1..at_once).all(|_| directory.announcements.allows(&name("users.shop"))),
        "as many endpoints may announce themselves at once"
    );
    let mut users = Announcing::open(&directory, announce("users.shop", "u1", 1)).await;
    assert!(users.answer().await.is_ok());
    users.say(What::Announce(announce("users.shop", "u1", 1))).await;
    let refused = users.answer().await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    assert!(refused.message().contains("users.shop announces itself too often"), "{refused}");
    assert!(Announcing::open(&directory, announce("orders.shop", "o1", 2)).await.answer().await.is_ok());
    tokio::time::advance(SECOND).await;
    assert!(Announcing::open(&directory, announce("users.shop", "u1", 1)).await.answer().await.is_ok());
}
