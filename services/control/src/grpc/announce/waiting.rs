//! The answers that wait for a sidecar to read them.
//!
//! The rules for a service may be large, and a sidecar need not read. So no rules wait: an answer only says that it has them, and
//! gets the newest ones when it is read. The stream has its place until its answers are dropped, also if nobody reads its
//! requests any more.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
};

use futures_util::Stream;
use tokio::{
    sync::mpsc,
    time::{error::Elapsed, timeout},
};
use tonic::Status;
use weft_contracts::weft::discovery::v1::AnnounceResponse;
use weft_mesh::limits;

use crate::{
    grpc::streams::OpenStream,
    rules::{Said, Taking},
};

/// The answers that may wait. There is one for each announcement and each descriptor set.
const ANSWERS: usize = 8;

pub(super) type Answer = Result<AnnounceResponse, Status>;

/// Boxed in its channel, which always allocates room for 32: there is a channel for each sidecar.
struct Waiting {
    answer: Answer,
    has_rules: bool,
}

/// What both sides share.
struct Shared {
    rules: Mutex<Newest>,
    _open: OpenStream,
}

#[derive(Default)]
struct Newest {
    rules: Option<Said>,
    /// An answer waits that will have them.
    are_due: bool,
}

impl Shared {
    fn rules(&self) -> MutexGuard<'_, Newest> {
        self.rules.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where a stream's task puts its answers.
pub(super) struct ToSidecar {
    to: mpsc::Sender<Box<Waiting>>,
    shared: Arc<Shared>,
}

/// The answers, as the sidecar reads them.
pub(crate) struct Answers {
    waiting: mpsc::Receiver<Box<Waiting>>,
    shared: Arc<Shared>,
    taking: Taking,
}

/// The two ends of an open stream. `taking` is told of the rules that are read.
pub(super) fn answers(open: OpenStream, taking: Taking) -> (ToSidecar, Answers) {
    let (to, waiting) = mpsc::channel(ANSWERS);
    let shared = Arc::new(Shared { rules: Mutex::default(), _open: open });
    (ToSidecar { to, shared: Arc::clone(&shared) }, Answers { waiting, shared, taking })
}

impl ToSidecar {
    /// Answers.
    ///
    /// # Errors
    /// Too many answers wait.
    pub(super) fn send(&self, answer: AnnounceResponse) -> Result<(), Status> {
        self.put(answer, false)
    }

    /// Answers with these rules, or newer ones.
    ///
    /// # Errors
    /// Too many answers wait.
    pub(super) fn send_with(&self, rules: Said, answer: AnnounceResponse) -> Result<(), Status> {
        *self.shared.rules() = Newest { rules: Some(rules), are_due: true };
        self.put(answer, true)
    }

    /// Tells only these rules. They take the place of rules that wait.
    ///
    /// # Errors
    /// Too many answers wait.
    pub(super) fn send_rules(&self, rules: Said) -> Result<(), Status> {
        let mut newest = self.shared.rules();
        newest.rules = Some(rules);
        if std::mem::replace(&mut newest.are_due, true) {
            return Ok(());
        }
        drop(newest);
        self.put(AnnounceResponse::default(), true)
    }

    fn put(&self, answer: AnnounceResponse, has_rules: bool) -> Result<(), Status> {
        let heartbeat_interval = limits::HEARTBEAT_INTERVAL.try_into().ok();
        let answer = Ok(AnnounceResponse { heartbeat_interval, ..answer });
        self.to
            .try_send(Box::new(Waiting { answer, has_rules }))
            .map_err(|_| Status::resource_exhausted("answers to announcements are not read"))
    }

    /// The last answer. Waits for room, but not for long.
    pub(super) async fn end(&self, status: Status) -> Result<(), Elapsed> {
        let last = Box::new(Waiting { answer: Err(status), has_rules: false });
        // It fails if nobody reads any more.
        timeout(limits::ANNOUNCE_WAIT, self.to.send(last)).await.map(drop)
    }

    /// Waits until nobody reads any more.
    pub(super) async fn closed(&self) {
        self.to.closed().await;
    }
}

impl Stream for Answers {
    type Item = Answer;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Answer>> {
        let Some(next) = ready!(self.waiting.poll_recv(cx)) else { return Poll::Ready(None) };
        let Waiting { mut answer, has_rules } = *next;
        if has_rules && let Ok(answer) = &mut answer {
            let rules = {
                let mut newest = self.shared.rules();
                newest.are_due = false;
                newest.rules.clone()
            };
            if let Some(Said { access, number }) = rules {
                answer.access = Some((&access).into());
                self.taking.took(number);
            }
        }
        Poll::Ready(Some(answer))
    }
}

#[cfg(test)]
mod tests {
    use futures_util::StreamExt as _;
    use weft_mesh::{names::ServiceName, policy::MeshRules};

    use super::*;
    use crate::{
        grpc::streams::{Kind, OfConnection},
        rules::{InForce, Rules},
    };

    fn allowing(caller: &str) -> Said {
        let rules = MeshRules::parse("access.yaml", &format!("services: {{ web.shop: [{caller}] }}")).unwrap();
        let access = InForce::from(rules).of_service(&ServiceName::parse("web.shop").unwrap());
        Said { access, number: 0 }
    }

    fn open(connection: &Arc<OfConnection>) -> (ToSidecar, Answers) {
        let web = ServiceName::parse("web.shop").unwrap();
        let taking = Rules::new(None).unwrap().listen(web, [10, 0, 0, 1].into()).taking();
        answers(connection.open(Kind::Announce).unwrap(), taking)
    }

    async fn told(answers: &mut Answers) -> Option<Vec<String>> {
        let access = answers.next().await.unwrap().unwrap().access?;
        Some(access.rule.unwrap().allow)
    }

    /// Otherwise the rules of a sidecar that does not read fill the memory.
    #[tokio::test]
    async fn no_rules_wait_and_the_newest_are_read() {
        let (to, mut answers) = open(&Arc::default());
        let older = allowing("older");
        let service = Arc::clone(older.access.service.as_ref().unwrap());
        to.send_with(older.clone(), AnnounceResponse { send_descriptors: true, ..Default::default() }).unwrap();
        to.send_with(older.clone(), AnnounceResponse::default()).unwrap();
        drop(older);
        assert_eq!(Arc::strong_count(&service), 2, "they are not copied");
        for number in 0..100 {
            to.send_rules(allowing(&format!("caller-{number}"))).unwrap();
        }
        assert_eq!(Arc::strong_count(&service), 1, "only the newest are kept");
        to.send(AnnounceResponse { is_described: true, ..Default::default() }).unwrap();
        let newest = Some(vec!["caller-99".to_owned()]);
        assert_eq!([told(&mut answers).await, told(&mut answers).await], [newest.clone(), newest]);
        assert_eq!(told(&mut answers).await, None, "an answer of another kind");
        to.send_rules(allowing("later")).unwrap();
        assert_eq!(told(&mut answers).await.unwrap(), ["later"], "what was read before does not keep it");
    }

    /// Otherwise a sidecar that does not read has any number of streams.
    #[tokio::test(start_paused = true)]
    async fn a_stream_has_its_place_until_its_answers_are_dropped() {
        let connection = Arc::<OfConnection>::default();
        let mut unread = Vec::new();
        for _ in 0..limits::CONTROL_STREAMS_OF_A_KIND {
            let (to, answers) = open(&connection);
            let sent = (0..=ANSWERS).map(|_| to.send(AnnounceResponse::default()).is_ok());
            assert_eq!(sent.filter(|is_sent| *is_sent).count(), ANSWERS);
            // The task ends.
            assert!(to.end(Status::unknown("")).await.is_err());
            unread.push(answers);
        }
        assert!(connection.open(Kind::Announce).is_err());
        unread.pop();
        assert!(connection.open(Kind::Announce).is_ok());
    }
}
