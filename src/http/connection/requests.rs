//! Around every request of a listener: what HTTP asks of a server that the handlers need not know.

use super::progress::{Ongoing, Progress};
use crate::http::tls::Secure;
use actix_http::{HttpMessage, Payload, Request};
use actix_web::body::{BodySize, BoxBody, MessageBody};
use actix_web::dev::{Response, Service};
use actix_web::http::header::{CONTENT_LENGTH, UPGRADE};
use actix_web::http::uri::PathAndQuery;
use actix_web::http::{ConnectionType, Method, Uri, Version};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use std::error::Error;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll};
use tokio::task::yield_now;

/// The body of an answer. Its end is the end of the request.
pub struct Answering {
    body: BoxBody,
    _ongoing: Option<Ongoing>,
}

impl MessageBody for Answering {
    type Error = Box<dyn Error>;

    fn size(&self) -> BodySize {
        self.body.size()
    }

    fn poll_next(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Bytes, Self::Error>>> {
        Pin::new(&mut self.body).poll_next(cx)
    }
}

/// Passes a request to the application, and its answer back.
pub(super) fn call<S, B>(
    mut request: Request,
    app: &S,
) -> impl Future<Output = Result<Response<Answering>, S::Error>> + use<S, B>
where
    S: Service<Request>,
    S::Response: Into<Response<B>>,
    B: MessageBody + 'static,
{
    if let Some(uri) = forgiven(request.uri()) {
        request.head_mut().uri = uri;
    }
    // A request of HTTP/2 has neither, and has got its mark.
    let progress = request.conn_data::<Rc<Progress>>();
    let is_secure = progress.is_some_and(|progress| progress.is_secure());
    let ongoing = progress.map(Ongoing::begin);
    if is_secure {
        request.extensions_mut().insert(Secure);
    }
    let asks_for_upgrade = ignore_upgrade(&mut request);
    let is_old = request.version() < Version::HTTP_11;
    let has_body = !matches!(request.payload(), Payload::None);
    let is_head = request.method() == Method::HEAD;
    let answer = app.call(request);
    async move {
        let mut answer = pin!(answer);
        let answered = match poll_once(answer.as_mut()).await {
            Poll::Ready(answered) => {
                if has_body {
                    // Nobody has read the body. It usually came with the head: the parser takes it now,
                    // and the connection can be kept.
                    yield_now().await;
                }
                answered
            }
            Poll::Pending => answer.await,
        };
        let mut response: Response<B> = answered?.into();
        let is_stream = matches!(response.body().size(), BodySize::Stream);
        if is_old && is_stream {
            // HTTP/1.0 knows no chunks: the body ends with the connection.
            response.head_mut().no_chunking(true);
        }
        if asks_for_upgrade || (is_old && is_stream) {
            response.head_mut().set_connection_type(ConnectionType::Close);
        }
        Ok(response.map_body(|_, body| {
            // The parser forgets that a request was a HEAD when the next one arrives during its answer.
            let body = if is_head && is_stream { BoxBody::new(()) } else { body.boxed() };
            Answering { body, _ongoing: ongoing }
        }))
    }
}

async fn poll_once<T>(mut future: Pin<&mut impl Future<Output = T>>) -> Poll<T> {
    poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx))).await
}

/// Returns the address without doubled slashes and without one at the end, if it has any. Clients put
/// their paths together from parts, and a redirect would be a failure for them.
fn forgiven(uri: &Uri) -> Option<Uri> {
    let path = uri.path();
    let ends_so = path.len() > 1 && path.ends_with('/');
    if !ends_so && !path.contains("//") {
        return None;
    }
    let mut single = String::with_capacity(path.len());
    for c in path.chars() {
        if c != '/' || !single.ends_with('/') {
            single.push(c);
        }
    }
    if single.len() > 1 && single.ends_with('/') {
        single.pop();
    }
    if let Some(query) = uri.query() {
        single.push('?');
        single.push_str(query);
    }
    let mut parts = uri.clone().into_parts();
    parts.path_and_query = Some(PathAndQuery::try_from(single).ok()?);
    Uri::from_parts(parts).ok()
}

/// Treats a request that asks for another protocol as if it did not (RFC 9110, section 7.8). Returns
/// whether it did. The parser takes all that follows on such a connection for the request's body; this
/// ends the body where the request says. The connection is then closed.
fn ignore_upgrade(request: &mut Request) -> bool {
    let is_websocket = request
        .headers()
        .get(UPGRADE)
        .is_some_and(|to| to.as_bytes().trim_ascii().eq_ignore_ascii_case(b"websocket"));
    if is_websocket {
        let length = request.headers().get(CONTENT_LENGTH).and_then(|length| length.to_str().ok());
        let length = length.and_then(|length| length.trim().parse().ok()).unwrap_or(0);
        if !request.chunked().unwrap_or(false) {
            let body = request.take_payload();
            *request.payload() = first_bytes(body, length);
        }
    }
    is_websocket || request.head().connection_type() == ConnectionType::Upgrade
}

/// Returns the first `length` bytes of a body.
fn first_bytes(body: Payload, length: usize) -> Payload {
    let bytes = stream::unfold((body, length), |(mut body, left)| async move {
        if left == 0 {
            return None;
        }
        let chunk = body.next().await?.map(|mut chunk| {
            chunk.truncate(left);
            chunk
        });
        let left = left - chunk.as_ref().map_or(left, Bytes::len);
        Some((chunk, (body, left)))
    });
    Payload::Stream { payload: Box::pin(bytes) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubled_slashes_and_one_at_the_end_are_forgiven() {
        let of = |uri: &str| forgiven(&uri.parse().unwrap()).map(|uri| uri.to_string());
        for (sent, meant) in [
            ("/slowdns/", "/slowdns"),
            ("//slowdns", "/slowdns"),
            ("///api//v2/healthz//", "/api/v2/healthz"),
            ("/status/?limit=1&x=//", "/status?limit=1&x=//"),
            ("//", "/"),
        ] {
            assert_eq!(of(sent).as_deref(), Some(meant), "{sent}");
        }
        for fine in ["/", "/slowdns", "/status?x=a//b/", "*"] {
            assert_eq!(of(fine), None, "{fine}");
        }
    }
}
