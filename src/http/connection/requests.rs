//! Around every request of a listener.

use super::progress::{Ongoing, Progress};
use actix_http::Request;
use actix_web::body::{BodySize, BoxBody, MessageBody};
use actix_web::dev::{Response, Service};
use bytes::Bytes;
use std::error::Error;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

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
    request: Request,
    app: &S,
) -> impl Future<Output = Result<Response<Answering>, S::Error>> + use<S, B>
where
    S: Service<Request>,
    S::Response: Into<Response<B>>,
    B: MessageBody + 'static,
{
    let progress = request.conn_data::<Rc<Progress>>();
    let ongoing = progress.map(|progress| Ongoing::begin(progress, request.path()));
    let answer = app.call(request);
    async move {
        let response: Response<B> = answer.await?.into();
        Ok(response.map_body(|_, body| Answering { body: body.boxed(), _ongoing: ongoing }))
    }
}
