//! Tests of the real process, with stand-ins for the services that it calls at its outbound address.
#![allow(clippy::unwrap_used)]

use std::{
    io::{BufRead, BufReader},
    path::Path,
    pin::Pin,
    process::{Child, Command, ExitStatus},
};

use futures_util::{Stream, stream};
use tonic::{Code, Request, Response, Status, Streaming, transport::Channel};
use weft_contracts::shop::{
    auth::v1::{self as auth, auth_server},
    notifications::v1::{self as notifications, notifications_server},
    users::v1::{
        CreateRequest, DeleteRequest, GetRequest, ListRequest, UpdateRequest, WatchRequest, event::Kind,
        users_client::UsersClient,
    },
};
use weft_kit::{Routes, Running, Service, Settings, status};

/// Accepts every address that has an `@`.
struct FakeAuth;

#[tonic::async_trait]
impl auth_server::Auth for FakeAuth {
    async fn validate(
        &self,
        request: Request<auth::ValidateRequest>,
    ) -> Result<Response<auth::ValidateResponse>, Status> {
        let email = request.into_inner().email;
        match email.contains('@') {
            true => Ok(Response::new(auth::ValidateResponse { email })),
            false => Err(status::invalid("email", "has no @")),
        }
    }

    async fn issue_token(
        &self,
        _: Request<auth::IssueTokenRequest>,
    ) -> Result<Response<auth::IssueTokenResponse>, Status> {
        Err(Status::unimplemented("not asked for"))
    }

    async fn jwks(&self, _: Request<auth::JwksRequest>) -> Result<Response<auth::JwksResponse>, Status> {
        Err(Status::unimplemented("not asked for"))
    }
}

/// Fails every call of `Notify`.
struct BrokenNotifications;

#[tonic::async_trait]
impl notifications_server::Notifications for BrokenNotifications {
    async fn notify(
        &self,
        _: Request<notifications::NotifyRequest>,
    ) -> Result<Response<notifications::Notification>, Status> {
        Err(Status::internal("broken, as this test wants it"))
    }

    async fn list(
        &self,
        _: Request<notifications::ListRequest>,
    ) -> Result<Response<notifications::ListResponse>, Status> {
        Err(Status::unimplemented("not asked for"))
    }

    type StreamStream = Pin<Box<dyn Stream<Item = Result<notifications::Notification, Status>> + Send>>;

    async fn stream(
        &self,
        _: Request<Streaming<notifications::NotifyRequest>>,
    ) -> Result<Response<Self::StreamStream>, Status> {
        Ok(Response::new(Box::pin(stream::empty())))
    }
}

async fn others() -> Running {
    let settings = Settings::local("127.0.0.1:0".parse().unwrap(), "http://127.0.0.1:1".parse().unwrap());
    let routes = Routes::new(auth_server::AuthServer::new(FakeAuth))
        .add_service(notifications_server::NotificationsServer::new(BrokenNotifications));
    Service::new("others").start(settings, |_| async { Ok(routes) }).await.unwrap()
}

/// The process, which ends with the test.
struct Users {
    child: Child,
    client: UsersClient<Channel>,
}

impl Users {
    async fn start(data: &Path, others: &str) -> Self {
        let (output, sink) = std::io::pipe().unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_shop-users"))
            .arg("--data")
            .arg(data)
            .env_remove("RUST_LOG")
            .env("WEFT_LISTEN", "127.0.0.1:0")
            .env("WEFT_OUTBOUND", others)
            .env("WEFT_LOG_FORMAT", "json")
            .stdout(sink.try_clone().unwrap())
            .stderr(sink)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(output).lines().map(Result::unwrap);
        let ready = lines.find(|line| line.contains("is ready")).expect("the service says that it is ready");
        let port: String = ready.split("127.0.0.1:").nth(1).unwrap().chars().take_while(char::is_ascii_digit).collect();
        // Its log is read to the end, so that the process never blocks on a full pipe.
        std::thread::spawn(move || lines.for_each(|line| println!("{line}")));
        let client = UsersClient::connect(format!("http://127.0.0.1:{port}")).await.unwrap();
        Self { child, client }
    }

    /// With SIGKILL.
    fn kill(self) {}

    fn terminate(mut self) -> ExitStatus {
        Command::new("kill").args(["-TERM", &self.child.id().to_string()]).status().unwrap();
        self.child.wait().unwrap()
    }
}

impl Drop for Users {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn named(name: &str, email: &str) -> CreateRequest {
    CreateRequest { name: name.to_owned(), email: email.to_owned() }
}

#[tokio::test]
async fn a_user_that_was_acknowledged_survives_kill_9() {
    let (dir, others) = (tempfile::tempdir().unwrap(), others().await);
    let outbound = format!("http://{}", others.address());
    let mut users = Users::start(dir.path(), &outbound).await;
    let ada = users.client.create(named("Ada", "ada@example.com")).await.unwrap().into_inner();
    users.kill();

    let mut users = Users::start(dir.path(), &outbound).await;
    let found = users.client.get(GetRequest { id: ada.id.clone() }).await.unwrap().into_inner();
    assert_eq!(found, ada);
    let again = users.client.create(named("Ada", "ADA@example.com")).await.unwrap_err();
    assert_eq!(again.code(), Code::AlreadyExists);
    users.kill();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_sees_every_change_until_the_service_stops() {
    let (dir, others) = (tempfile::tempdir().unwrap(), others().await);
    let mut users = Users::start(dir.path(), &format!("http://{}", others.address())).await;
    let mut events = users.client.watch(WatchRequest {}).await.unwrap().into_inner();

    let id = users.client.create(named("Ada", "ada@example.com")).await.unwrap().into_inner().id;
    let update = UpdateRequest { id: id.clone(), name: Some("Ada L.".to_owned()), email: None };
    users.client.update(update).await.unwrap();
    users.client.delete(DeleteRequest { id: id.clone() }).await.unwrap();
    for (kind, name) in [(Kind::Created, "Ada"), (Kind::Updated, "Ada L."), (Kind::Deleted, "Ada L.")] {
        let event = events.message().await.unwrap().unwrap();
        assert_eq!((event.kind(), event.user.unwrap().name.as_str()), (kind, name));
    }
    let gone = users.client.get(GetRequest { id: id.clone() }).await.unwrap_err();
    assert_eq!(status::resource(&gone).unwrap().resource_name, id);

    assert!(users.terminate().success());
    assert_eq!(events.message().await.unwrap_err().code(), Code::Unavailable);
}

#[tokio::test]
async fn violations_from_auth_are_passed_on_and_without_auth_no_user_is_created() {
    let (dir, others) = (tempfile::tempdir().unwrap(), others().await);
    let mut users = Users::start(dir.path(), &format!("http://{}", others.address())).await;
    for (request, field) in [(named("Ada", "ada"), "email"), (named(" ", "ada@example.com"), "name")] {
        let refused = users.client.create(request).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument);
        assert_eq!(status::violations(&refused)[0].field, field);
    }

    others.stop().await;
    let refused = users.client.create(named("Ada", "ada@example.com")).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable);
    let listed = users.client.list(ListRequest::default()).await.unwrap().into_inner();
    assert!(listed.users.is_empty());
    users.kill();
}
