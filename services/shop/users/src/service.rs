//! The contract `shop.users.v1.Users`.

use std::{collections::HashMap, pin::Pin, time::Duration, time::SystemTime};

use futures_util::{Stream, stream};
use tokio::sync::broadcast::{self, error::RecvError};
use tonic::{Code, Request, Response, Status};
use weft_contracts::shop::{
    auth::v1 as auth,
    notifications::v1 as notifications,
    users::v1::{
        self as api, CreateRequest, DeleteRequest, DeleteResponse, Event, GetRequest, ListRequest, ListResponse,
        UpdateRequest, User, WatchRequest, event::Kind,
    },
};
use weft_kit::{
    Channel, Stopping, ids,
    status::{self, Violations},
};

use crate::store::{Changes, Store, StoreError};

const MAX_NAME_CHARS: usize = 100;
const MAX_PAGE: i32 = 1_000;
const DEFAULT_PAGE: usize = 100;
/// How many events a watcher may be behind; if it is further behind, its watch ends.
const EVENTS_KEPT: usize = 1_024;
/// How long the caller waits for the greeting at most.
const WELCOME_TIMEOUT: Duration = Duration::from_millis(500);

pub(crate) struct Users {
    store: Store,
    auth: auth::auth_client::AuthClient<Channel>,
    notifications: notifications::notifications_client::NotificationsClient<Channel>,
    events: broadcast::Sender<Event>,
    stopping: Stopping,
}

impl Users {
    pub(crate) fn new(store: Store, channel: Channel, stopping: Stopping) -> Self {
        Self {
            store,
            auth: auth::auth_client::AuthClient::new(channel.clone()),
            notifications: notifications::notifications_client::NotificationsClient::new(channel),
            events: broadcast::channel(EVENTS_KEPT).0,
            stopping,
        }
    }

    /// The address as auth returns it. If auth finds it invalid, our own caller gets the same violations.
    async fn checked_email(&self, email: String) -> Result<String, Status> {
        match self.auth.clone().validate(auth::ValidateRequest { email }).await {
            Ok(valid) => Ok(valid.into_inner().email),
            Err(refused) if refused.code() == Code::InvalidArgument => {
                let found = status::violations(&refused);
                match found.is_empty() {
                    true => Err(status::invalid("email", refused.message())),
                    false => Err(Violations::from(found).finish().err().unwrap_or(refused)),
                }
            }
            Err(failed) => Err(status::relay("auth", &failed)),
        }
    }

    /// Sends a greeting. If it fails, the user is created all the same.
    async fn welcome(&self, user: &User) {
        let mut request = Request::new(notifications::NotifyRequest {
            user_id: user.id.clone(),
            text: format!("Welcome to the shop, {}!", user.name),
        });
        request.set_timeout(WELCOME_TIMEOUT);
        if let Err(failed) = self.notifications.clone().notify(request).await {
            tracing::warn!(user = user.id, code = ?failed.code(), why = failed.message(), "the user was not welcomed");
        }
    }

    fn tell(&self, kind: Kind, user: &User) {
        // It fails if nobody watches.
        let _ = self.events.send(Event { kind: kind.into(), user: Some(user.clone()) });
    }
}

#[tonic::async_trait]
impl api::users_server::Users for Users {
    async fn create(&self, request: Request<CreateRequest>) -> Result<Response<User>, Status> {
        let CreateRequest { name, email } = request.into_inner();
        let name = checked_name(&name)?;
        let email = self.checked_email(email).await?;
        let user = User { id: ids::new_id(), name, email, created_at: Some(SystemTime::now().into()) };
        let user = self.store.create(user.clone()).await.map_err(|error| refusal(error, &user.id, &user.email))?;
        tracing::info!(user = user.id, "user created");
        self.tell(Kind::Created, &user);
        self.welcome(&user).await;
        Ok(Response::new(user))
    }

    async fn get(&self, request: Request<GetRequest>) -> Result<Response<User>, Status> {
        let id = checked_id(request.into_inner().id)?;
        let user = self.store.get(id.clone()).await.map_err(|error| refusal(error, &id, ""))?;
        Ok(Response::new(user))
    }

    async fn list(&self, request: Request<ListRequest>) -> Result<Response<ListResponse>, Status> {
        let ListRequest { page_size, page_token } = request.into_inner();
        let mut violations = Violations::new();
        violations.check((0..=MAX_PAGE).contains(&page_size), "page_size", "must be from 0 to 1000");
        let is_token = page_token.is_empty() || ids::is_id(&page_token);
        violations.check(is_token, "page_token", "is not the next_page_token of an earlier answer");
        violations.finish()?;
        let limit = usize::try_from(page_size).ok().filter(|size| *size > 0).unwrap_or(DEFAULT_PAGE);
        let (users, has_more) = self.store.list(page_token, limit).await.map_err(|error| refusal(error, "", ""))?;
        let last = users.last().map(|user| user.id.clone());
        let next_page_token = last.filter(|_| has_more).unwrap_or_default();
        Ok(Response::new(ListResponse { users, next_page_token }))
    }

    async fn update(&self, request: Request<UpdateRequest>) -> Result<Response<User>, Status> {
        let UpdateRequest { id, name, email } = request.into_inner();
        let id = checked_id(id)?;
        let name = name.as_deref().map(checked_name).transpose()?;
        let email = match email {
            Some(email) => Some(self.checked_email(email).await?),
            None => None,
        };
        let changes = Changes { name, email: email.clone() };
        let email = email.unwrap_or_default();
        let user = self.store.update(id.clone(), changes).await.map_err(|error| refusal(error, &id, &email))?;
        self.tell(Kind::Updated, &user);
        Ok(Response::new(user))
    }

    async fn delete(&self, request: Request<DeleteRequest>) -> Result<Response<DeleteResponse>, Status> {
        let id = checked_id(request.into_inner().id)?;
        let user = self.store.delete(id.clone()).await.map_err(|error| refusal(error, &id, ""))?;
        self.tell(Kind::Deleted, &user);
        Ok(Response::new(DeleteResponse {}))
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<Event, Status>> + Send>>;

    async fn watch(&self, _: Request<WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        Ok(Response::new(Box::pin(watch(self.events.subscribe(), self.stopping.clone()))))
    }
}

/// The events from now on, until the watcher leaves or falls behind, or the service stops.
fn watch(events: broadcast::Receiver<Event>, stopping: Stopping) -> impl Stream<Item = Result<Event, Status>> + Send {
    stream::unfold(Some((events, stopping)), |state| async move {
        let (mut events, mut stopping) = state?;
        let event = tokio::select! {
            event = events.recv() => event,
            () = stopping.wait() => return Some((Err(Status::unavailable("the service stops: watch again")), None)),
        };
        match event {
            Ok(event) => Some((Ok(event), Some((events, stopping)))),
            Err(RecvError::Lagged(lost)) => Some((Err(too_slow(lost)), None)),
            Err(RecvError::Closed) => None,
        }
    })
}

fn too_slow(lost: u64) -> Status {
    let lost_text = lost.to_string();
    status::with_reason(
        Code::ResourceExhausted,
        &format!("the watcher fell behind and missed {lost} events: list the users and watch again"),
        "WATCHER_TOO_SLOW",
        "users.shop",
        HashMap::from([("lost_events".to_owned(), lost_text)]),
    )
}

fn checked_name(name: &str) -> Result<String, Status> {
    let name = name.trim();
    let mut violations = Violations::new();
    violations.check((1..=MAX_NAME_CHARS).contains(&name.chars().count()), "name", "must have 1 to 100 characters");
    violations.check(!name.chars().any(char::is_control), "name", "must have no control characters");
    violations.finish()?;
    Ok(name.to_owned())
}

fn checked_id(id: String) -> Result<String, Status> {
    let mut violations = Violations::new();
    violations.check(!id.is_empty() && id.len() <= 64, "id", "must have 1 to 64 characters");
    violations.finish()?;
    Ok(id)
}

/// The status that a caller gets for a failure of the store.
fn refusal(error: StoreError, id: &str, email: &str) -> Status {
    match error {
        StoreError::NotFound => status::not_found("user", id),
        StoreError::EmailTaken => {
            status::already_exists("user", email, &format!("there is a user with the address {email}"))
        }
        error => {
            tracing::error!(%error, "the store failed");
            Status::internal("the users can't be read or written now")
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::StreamExt;

    use super::*;

    #[test]
    fn names_have_1_to_100_characters() {
        assert_eq!(checked_name(" Ada ").unwrap(), "Ada");
        assert!(checked_name(&"ä".repeat(100)).is_ok());
        for refused in ["", "   ", "a\nb", &"a".repeat(101)] {
            assert_eq!(status::violations(&checked_name(refused).unwrap_err())[0].field, "name", "{refused:?}");
        }
    }

    #[tokio::test]
    async fn a_watch_that_falls_behind_ends_with_the_number_of_missed_events() {
        let (events, receiver) = broadcast::channel(2);
        let mut watched = Box::pin(watch(receiver, Stopping::never()));
        for _ in 0..5 {
            events.send(Event::default()).unwrap();
        }
        let told = watched.next().await.unwrap().unwrap_err();
        assert_eq!(told.code(), Code::ResourceExhausted);
        assert_eq!(status::reason(&told).unwrap().metadata["lost_events"], "3");
        assert!(watched.next().await.is_none());
    }
}
