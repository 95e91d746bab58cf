//! The API server. No answer is awaited for ever, and none may be of any size.

use std::{
    fmt,
    time::{Duration, SystemTime},
};

use anyhow::Context as _;
use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Limited};
use kube::{Client, Config, client::Body, config::KubeConfigOptions};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;
use tokio::time::timeout;
use weft_mesh::names::shown_up_to;

use super::Reach;

/// The largest answer: a page of pods with all that is in them.
const ANSWER_BYTES: usize = 64 << 20;
/// How many objects a page of a list has at most. If they are large, a page has fewer: one object is 3 MiB at most.
const PAGE: usize = 250;
/// The most objects that are read of a kind.
pub(super) const MOST: usize = 50_000;
/// The longest text of an error that others have written.
const TEXT_CHARS: usize = 600;

/// See the module.
pub(super) struct Api {
    client: Client,
    limit: Duration,
    answer_bytes: usize,
    server: String,
    namespace: String,
}

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Trouble {
    /// There is no such object.
    Missing(String),
    /// The user may not do that.
    Forbidden(String),
    /// Another status.
    Refused(u16, String),
    /// No answer came.
    Away(String),
    /// The answer is too large.
    TooLarge(String),
    /// The answer is not what it should be.
    Unusable(String),
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing(why) | Self::Forbidden(why) | Self::Away(why) | Self::TooLarge(why) | Self::Unusable(why) => {
                f.write_str(why)
            }
            Self::Refused(code, why) => write!(f, "status {code}: {why}"),
        }
    }
}

impl std::error::Error for Trouble {}

/// An answer.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

/// A list, or its first [`MOST`] objects.
#[derive(Debug)]
pub(super) struct Listed<T> {
    pub(super) items: Vec<T>,
    pub(super) is_cut: bool,
}

#[derive(Deserialize)]
struct Page<T> {
    #[serde(default)]
    metadata: PageMeta,
    #[serde(default = "Vec::new")]
    items: Vec<T>,
}

#[derive(Default, Deserialize)]
struct PageMeta {
    #[serde(default, rename = "continue")]
    next: String,
}

impl Api {
    /// Connects as the kubeconfig says or, in a pod without one, with its service account.
    ///
    /// # Errors
    /// Neither is there, or it can't be used.
    pub(super) async fn connect(reach: &Reach) -> anyhow::Result<Self> {
        let (context, limit) = (reach.context.clone(), reach.timeout);
        // Elsewhere: it may run a program that a kubeconfig names, and waits for it.
        let connecting = tokio::task::spawn_blocking(move || {
            let config = tokio::runtime::Handle::current().block_on(async {
                match context {
                    None => Config::infer().await.map_err(|error| {
                        anyhow::anyhow!("there is no cluster to look at: set KUBECONFIG ({})", text(&chain(&error)))
                    }),
                    context @ Some(_) => {
                        let options = KubeConfigOptions { context, ..KubeConfigOptions::default() };
                        Config::from_kubeconfig(&options).await.map_err(|error| unusable(&error))
                    }
                }
            });
            let mut config = config?;
            config.connect_timeout = Some(limit);
            config.read_timeout = Some(limit);
            config.default_retry = false;
            let server = config.cluster_url.to_string().trim_end_matches('/').to_owned();
            let namespace = config.default_namespace.clone();
            let client = Client::try_from(config).map_err(|error| unusable(&error))?;
            anyhow::Ok((client, server, namespace))
        });
        let Ok(connected) = timeout(limit, connecting).await else {
            anyhow::bail!(
                "the kubeconfig names a program for signing in that did not end within {limit:?} (--timeout)"
            );
        };
        let (client, server, namespace) = connected.context("the kubeconfig can't be used")??;
        Ok(Self { client, limit, answer_bytes: ANSWER_BYTES, server, namespace })
    }

    #[cfg(test)]
    pub(super) fn of(client: Client) -> Self {
        let [server, namespace] = ["https://test", "default"].map(str::to_owned);
        Self { client, limit: Duration::from_secs(10), answer_bytes: 1 << 20, server, namespace }
    }

    #[cfg(test)]
    pub(super) fn in_namespace(self, namespace: &str) -> Self {
        Self { namespace: namespace.to_owned(), ..self }
    }

    /// The address of the API server.
    pub(super) fn server(&self) -> &str {
        &self.server
    }

    /// The namespace of the kubeconfig's context.
    pub(super) fn namespace(&self) -> &str {
        &self.namespace
    }

    /// Sends a request and returns the answer, whatever its status is.
    pub(super) async fn send(&self, request: Request<Body>, most: usize) -> Result<Answer, Trouble> {
        let path = request.uri().path().to_owned();
        let away = |why: &dyn fmt::Display| Trouble::Away(text(&format!("no answer from {}: {why}", self.server)));
        let asking = async {
            let sent = self.client.send(request).await;
            let (head, body) = sent.map_err(|error| away(&chain(&error)))?.into_parts();
            let read = Limited::new(body, most).collect().await;
            let body = read.map_err(|error| match error.downcast_ref::<http_body_util::LengthLimitError>() {
                Some(_) => Trouble::TooLarge(format!("the answer to {path} has more than {most} bytes")),
                None => away(&error),
            })?;
            Ok(Answer { status: head.status, headers: head.headers, body: body.to_bytes() })
        };
        match timeout(self.limit, asking).await {
            Ok(answer) => answer,
            Err(_) => Err(away(&format_args!("nothing came within {:?} (--timeout)", self.limit))),
        }
    }

    async fn good(&self, request: Request<Body>) -> Result<Answer, Trouble> {
        let answer = self.send(request, self.answer_bytes).await?;
        if answer.status.is_success() { Ok(answer) } else { Err(refusal(&answer)) }
    }

    /// What is at a path.
    pub(super) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Trouble> {
        read(path, &self.good(request(Method::GET, path, None)).await?.body)
    }

    /// What is at a path, and when the API server says that it is.
    pub(super) async fn get_dated<T: DeserializeOwned>(&self, path: &str) -> Result<(T, Option<SystemTime>), Trouble> {
        let answer = self.good(request(Method::GET, path, None)).await?;
        let date = answer.headers.get(header::DATE).and_then(|date| super::date::parse(date.to_str().ok()?));
        Ok((read(path, &answer.body)?, date))
    }

    /// Whether there is an object, without its content.
    pub(super) async fn has(&self, path: &str) -> Result<bool, Trouble> {
        let mut request = request(Method::GET, path, None);
        let only_metadata = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1";
        request.headers_mut().insert(header::ACCEPT, header::HeaderValue::from_static(only_metadata));
        match self.good(request).await {
            Ok(_) => Ok(true),
            Err(Trouble::Missing(_)) => Ok(false),
            Err(trouble) => Err(trouble),
        }
    }

    /// Asks with an object: a review, or a dry run.
    pub(super) async fn post<T: DeserializeOwned>(&self, path: &str, object: &Value) -> Result<T, Trouble> {
        read(path, &self.good(request(Method::POST, path, Some(object))).await?.body)
    }

    /// Writes what an object says, by server-side apply.
    pub(super) async fn apply<T: DeserializeOwned>(&self, path: &str, object: &Value) -> Result<T, Trouble> {
        let mut request = request(Method::PATCH, path, Some(object));
        // JSON is YAML.
        let apply = header::HeaderValue::from_static("application/apply-patch+yaml");
        request.headers_mut().insert(header::CONTENT_TYPE, apply);
        read(path, &self.good(request).await?.body)
    }

    /// All objects of a list. `query` has parameters, such as a selector. Each object is passed to `take`, so that only what
    /// is needed of it is kept.
    pub(super) async fn list<O: DeserializeOwned, T>(
        &self,
        path: &str,
        query: &str,
        mut take: impl FnMut(O) -> Option<T>,
    ) -> Result<Listed<T>, Trouble> {
        let (mut items, mut next, mut seen, mut page_size) = (Vec::new(), String::new(), 0, PAGE);
        loop {
            let from = if next.is_empty() { String::new() } else { format!("&continue={}", escaped(&next)) };
            let page: Page<O> = match self.get(&format!("{path}?limit={page_size}{query}{from}")).await {
                Err(Trouble::TooLarge(_)) if page_size > 1 => {
                    page_size = (page_size / 4).max(1);
                    continue;
                }
                page => page?,
            };
            seen += page.items.len();
            items.extend(page.items.into_iter().filter_map(&mut take));
            next = page.metadata.next;
            if next.is_empty() {
                return Ok(Listed { items, is_cut: false });
            }
            // A server that goes on for ever, with pages of nothing too.
            seen += 1;
            if seen >= MOST {
                return Ok(Listed { items, is_cut: true });
            }
        }
    }
}

pub(super) fn request(method: Method, path: &str, object: Option<&Value>) -> Request<Body> {
    let body = object.map_or_else(Body::empty, |object| Body::from(object.to_string().into_bytes()));
    let mut request = Request::new(body);
    *request.method_mut() = method;
    *request.uri_mut() = path.parse().expect("paths are made of names");
    let json = header::HeaderValue::from_static("application/json");
    request.headers_mut().insert(header::ACCEPT, json.clone());
    request.headers_mut().insert(header::CONTENT_TYPE, json);
    request
}

/// An answer with a status that is none of success.
pub(super) fn refusal(answer: &Answer) -> Trouble {
    let status: Option<Value> = serde_json::from_slice(&answer.body).ok();
    let said = status.as_ref().and_then(|status| status["message"].as_str()).map(str::to_owned);
    let said = text(&said.unwrap_or_else(|| String::from_utf8_lossy(&answer.body).into_owned()));
    match answer.status {
        StatusCode::NOT_FOUND => Trouble::Missing(said),
        StatusCode::FORBIDDEN | StatusCode::UNAUTHORIZED => Trouble::Forbidden(said),
        other => Trouble::Refused(other.as_u16(), said),
    }
}

pub(super) fn read<T: DeserializeOwned>(path: &str, body: &[u8]) -> Result<T, Trouble> {
    let path = path.split('?').next().unwrap_or_default();
    serde_json::from_slice(body)
        .map_err(|error| Trouble::Unusable(text(&format!("the answer to {path} is not what it should be: {error}"))))
}

fn unusable(error: &dyn std::error::Error) -> anyhow::Error {
    anyhow::anyhow!("the kubeconfig can't be used: {}", text(&chain(error)))
}

/// An error with its causes. Some errors say their causes themselves.
fn chain(error: &dyn std::error::Error) -> String {
    let (mut text, mut cause) = (error.to_string(), error.source());
    while let Some(error) = cause {
        let said = error.to_string();
        if !text.contains(&said) {
            text += &format!(": {said}");
        }
        cause = error.source();
    }
    text
}

/// A text of others on one line.
fn text(said: &str) -> String {
    shown_up_to(said.trim(), TEXT_CHARS)
}

/// A value in the query of a URL.
pub(super) fn escaped(value: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    value.bytes().fold(String::with_capacity(value.len()), |mut text, byte| {
        if plain(byte) {
            text.push(char::from(byte))
        } else {
            text.push_str(&format!("%{byte:02X}"))
        }
        text
    })
}
