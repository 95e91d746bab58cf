//! Server reflection: calls that a service within the sidecar answers. The service knows nothing of [`Call`]. So one
//! task reports to the call how much of the request the service has read, and pumps the service's answer into the call.

use std::{pin::pin, rc::Rc};

use bytes::Bytes;
use http_body::Body;
use http_body_util::BodyExt;
use tokio::task::spawn_local;
use tower::ServiceExt;
use weft_mesh::errors::Reason;
use weft_wire::Headers;

use crate::{
    call::Call,
    message::{failure::Failure, headers},
    transport::pipe::{News, Pipe, PipeBody},
};

/// Answers server reflection from what the control plane knows.
pub(crate) fn reflect(call: &Rc<Call>) {
    let pipe = Pipe::default();
    let head = call.send_into(pipe.clone());
    let reflecting = spawn_local(attended(Rc::clone(call), pipe.clone(), {
        let call = Rc::clone(call);
        async move {
            let path = http::Uri::try_from(head.path().unwrap_or_default()).map_err(http::Error::from);
            let body = tonic::body::Body::new(PipeBody::new(pipe.clone()));
            let request = match path.and_then(|path| headers::to_request(&head, path, body)) {
                Ok(request) => request,
                // `Uri` accepts fewer paths than HTTP/2. The caller is at fault, and there is no service to blame.
                Err(e) => return call.fail(&Failure::new(Reason::Malformed, format!("the call can't be read: {e}"))),
            };
            let Ok(response) = call.worker.shared.reflection.clone().oneshot(request).await;
            let (head, body) = response.into_parts();
            call.response_head(headers::of_response(&head), body.is_end_stream());
            pump(body, &pipe, |part| answer_with(&call, part)).await;
        }
    }));
    call.waits_in(Some(reflecting.abort_handle()));
}

/// Runs `serving`, which reads the call's request from a pipe, and reports to the call meanwhile what was read.
async fn attended(call: Rc<Call>, pipe: Pipe, serving: impl Future<Output = ()>) {
    let mut serving = pin!(serving);
    let mut is_over = false;
    loop {
        tokio::select! {
            biased;
            () = &mut serving => return,
            news = pipe.news(), if !is_over => match news {
                News::Taken(bytes) => {
                    call.worker.tick();
                    call.request_sent(bytes);
                }
                News::Gone => is_over = true,
            },
        }
    }
}

/// A part of an answer that is pumped into a call.
enum Part<'a> {
    Data(&'a [u8], bool),
    Trailers(Headers),
    /// The answer broke off.
    Broken(String),
}

/// Gives a call a part of its answer.
fn answer_with(call: &Rc<Call>, part: Part<'_>) {
    call.worker.tick();
    match part {
        Part::Data(data, is_end) => call.response_data(data, is_end),
        Part::Trailers(trailers) => call.response_trailers(&trailers),
        Part::Broken(why) => call.endpoint_lost(&why),
    }
}

/// How many bytes from a pump a call may hold at once.
const PUMP_BYTES: usize = 64 * 1024;

/// Reads a body into a call, no faster than the call passes it on.
async fn pump<B>(body: B, pipe: &Pipe, mut put: impl FnMut(Part<'_>))
where
    B: Body<Data = Bytes, Error: std::fmt::Display>,
{
    if body.is_end_stream() {
        return;
    }
    let mut body = pin!(body);
    let mut under_way = 0;
    while let Some(frame) = body.frame().await {
        match frame.map(|frame| frame.into_data().map_err(|frame| frame.into_trailers())) {
            Ok(Ok(data)) => {
                let is_end = body.is_end_stream();
                put(Part::Data(&data, is_end));
                if is_end {
                    return;
                }
                under_way += data.len();
            }
            Ok(Err(trailers)) => {
                let mut list = Headers::new();
                headers::append(&mut list, &trailers.unwrap_or_default());
                return put(Part::Trailers(list));
            }
            Err(e) => return put(Part::Broken(e.to_string())),
        }
        while under_way > PUMP_BYTES {
            under_way -= pipe.granted().await.min(under_way);
        }
    }
    put(Part::Data(&[], true));
}

#[cfg(test)]
mod tests {
    use tokio::task::LocalSet;
    use weft_wire::Name;

    use super::*;
    use crate::{
        policy::retry::Miss,
        trial::{self, peer},
    };

    /// Calls that the sidecar answers itself have no route. They end, whatever they contain and however they fail.
    #[tokio::test(start_paused = true)]
    async fn calls_to_reflection_end_whatever_their_path_is() {
        LocalSet::new()
            .run_until(async {
                let worker = trial::worker();
                let (mut client, calls, _serving) = peer::connected(&worker, &worker.local_load, true);
                client.pass(1).await.expect("the connection lives");
                for path in [&b"/grpc.reflection.v1.ServerReflection/a^b"[..], b"/a<b", b"/a`b"] {
                    let mut head = peer::post();
                    head.set(Name::PATH, path);
                    client.call(&head, 0);
                }
                client.call(&peer::post(), 10);
                client.pass(1).await.expect("the connection lives");
                let begun = calls.take();
                begun[..3].iter().for_each(reflect);
                begun[3].missed(Miss::Broke("it broke off".into()));
                client.pass(1).await.expect("the connection lives");
                assert_eq!(begun.iter().map(|call| call.is_over()).collect::<Vec<_>>(), [true; 4]);
                assert_eq!(worker.calls.outbound.get(), 0, "they keep no slot");
            })
            .await;
    }
}
