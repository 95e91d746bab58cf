//! The contract `shop.notifications.v1.Notifications`.

use std::{pin::Pin, sync::Arc, time::SystemTime};

use futures_util::{Stream, StreamExt};
use tonic::{Request, Response, Status, Streaming};
use weft_contracts::shop::notifications::v1::{self as api, ListRequest, ListResponse, Notification, NotifyRequest};
use weft_kit::{ids, status::Violations};

use crate::store::Store;

const MAX_USER_ID_CHARS: usize = 64;
const MAX_TEXT_CHARS: usize = 1_000;
const MAX_LISTED: usize = 1_000;

#[derive(Default)]
pub(crate) struct Notifications {
    store: Arc<Store>,
}

#[tonic::async_trait]
impl api::notifications_server::Notifications for Notifications {
    async fn notify(&self, request: Request<NotifyRequest>) -> Result<Response<Notification>, Status> {
        Ok(Response::new(send(&self.store, request.into_inner())?))
    }

    async fn list(&self, request: Request<ListRequest>) -> Result<Response<ListResponse>, Status> {
        let user_id = request.into_inner().user_id;
        let mut violations = Violations::new();
        violations.check(user_id.chars().count() <= MAX_USER_ID_CHARS, "user_id", "must have at most 64 characters");
        violations.finish()?;
        let user = Some(user_id.as_str()).filter(|user| !user.is_empty());
        Ok(Response::new(ListResponse { notifications: self.store.list(user, MAX_LISTED) }))
    }

    type StreamStream = Pin<Box<dyn Stream<Item = Result<Notification, Status>> + Send>>;

    /// The first request that is not valid ends the stream.
    async fn stream(&self, request: Request<Streaming<NotifyRequest>>) -> Result<Response<Self::StreamStream>, Status> {
        let store = self.store.clone();
        let sent = request.into_inner().map(move |request| send(&store, request?));
        Ok(Response::new(Box::pin(sent)))
    }
}

fn send(store: &Store, request: NotifyRequest) -> Result<Notification, Status> {
    let mut violations = Violations::new();
    let id_chars = request.user_id.chars().count();
    violations.check((1..=MAX_USER_ID_CHARS).contains(&id_chars), "user_id", "must have 1 to 64 characters");
    let text_chars = request.text.trim().chars().count();
    violations.check((1..=MAX_TEXT_CHARS).contains(&text_chars), "text", "must have 1 to 1000 characters");
    violations.finish()?;
    let notification = Notification {
        id: ids::new_id(),
        user_id: request.user_id,
        text: request.text,
        sent_at: Some(SystemTime::now().into()),
    };
    store.add(notification.clone());
    Ok(notification)
}

#[cfg(test)]
mod tests {
    use api::notifications_server::Notifications as _;
    use weft_kit::status;

    use super::*;

    fn request(user_id: &str, text: &str) -> NotifyRequest {
        NotifyRequest { user_id: user_id.to_owned(), text: text.to_owned() }
    }

    #[tokio::test]
    async fn what_was_sent_is_listed_and_what_was_refused_is_not() {
        let service = Notifications::default();
        service.notify(Request::new(request("ada", "Welcome"))).await.unwrap();
        let refused = service.notify(Request::new(request("", " "))).await.unwrap_err();
        let fields: Vec<_> = status::violations(&refused).into_iter().map(|v| v.field).collect();
        assert_eq!(fields, ["user_id", "text"]);

        let list = |user_id: &str| service.list(Request::new(ListRequest { user_id: user_id.to_owned() }));
        let texts: Vec<_> = list("").await.unwrap().into_inner().notifications.into_iter().map(|n| n.text).collect();
        assert_eq!(texts, ["Welcome"]);
        assert!(list("bob").await.unwrap().into_inner().notifications.is_empty());
    }
}
