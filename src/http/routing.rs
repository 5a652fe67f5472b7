//! Helpers that define routes: path, name, methods, and who may use them.

use super::access::Rule;
use super::errors::ApiError;
use super::respond::{failure, failure_for, method_not_allowed};
use actix_web::error::PayloadError;
use actix_web::http::Method;
use actix_web::web::{Payload, resource, route};
use actix_web::{Error, FromRequest, Handler, HttpRequest, HttpResponse, Resource, Route, guard};
use iptunnel_domain::Refusal;
use std::marker::PhantomData;

/// Answers 404 for paths without a route.
pub async fn nothing_here(request: HttpRequest) -> HttpResponse {
    failure_for(&request, ApiError::not_found())
}

/// The name of a route in metrics and log.
#[derive(Clone, Copy)]
pub struct RouteName(pub &'static str);

/// The check of callers in front of the routes of a listener.
pub trait Gate: 'static {
    /// Lets a caller pass that `rule` admits, and leaves in the request's extensions who it is.
    ///
    /// # Errors
    /// The answer to a caller that may not pass.
    fn admit(
        request: &HttpRequest,
        rule: &'static Rule,
    ) -> impl Future<Output = Result<(), HttpResponse>>;
}

/// Defines the routes of a listener behind its gate, by the table of its rules. What is not in the
/// table is not served.
pub struct Routes<'a, G> {
    rules: &'static [Rule],
    /// The path of the scope that the routes are in.
    scope: &'a str,
    /// The product in whose paths the routes are.
    product: &'a str,
    gate: PhantomData<G>,
}

impl<'a, G: Gate> Routes<'a, G> {
    /// Defines routes of the listener with these rules.
    pub const fn of(rules: &'static [Rule]) -> Self {
        Self { rules, scope: "", product: "", gate: PhantomData }
    }

    /// Defines routes in the scope with this path.
    pub const fn in_scope(&self, scope: &'a str) -> Self {
        Self { rules: self.rules, scope, product: self.product, gate: PhantomData }
    }

    /// Defines routes of one product. `{product}` in a path stands for its name.
    pub const fn of_product(&self, product: &'a str) -> Self {
        Self { rules: self.rules, scope: self.scope, product, gate: PhantomData }
    }

    /// Defines a path with one method. Other methods get 405.
    pub fn at<F, Args>(&self, path: &str, name: &'static str, on: (Method, F)) -> Resource
    where
        F: Handler<Args, Output = HttpResponse>,
        Args: FromRequest + 'static,
    {
        let (method, handler) = on;
        let allowed = with_head(&[&method]);
        self.all(path, name, allowed).route(self.on(method, path, handler))
    }

    /// Defines a path with two methods, each with its handler. Other methods get 405.
    pub fn both<F, A, G2, B>(
        &self,
        path: &str,
        name: &'static str,
        (first, look): (Method, F),
        (second, send): (Method, G2),
    ) -> Resource
    where
        F: Handler<A, Output = HttpResponse>,
        A: FromRequest + 'static,
        G2: Handler<B, Output = HttpResponse>,
        B: FromRequest + 'static,
    {
        let allowed = with_head(&[&first, &second]);
        self.all(path, name, allowed)
            .route(self.on(first, path, look))
            .route(self.on(second, path, send))
    }

    /// Defines the path of one file under the rule of its folder, such as `/assets/{name}`.
    pub fn file<F, Args>(&self, path: &str, rule: &str, name: &'static str, handler: F) -> Resource
    where
        F: Handler<Args, Output = HttpResponse>,
        Args: FromRequest + 'static,
    {
        let method = Method::GET;
        self.all(path, name, with_head(&[&method])).route(self.on(method, rule, handler))
    }

    /// Defines a path without handlers. Methods that get no handler later get 405.
    fn all(&self, path: &str, name: &'static str, allowed: Vec<Method>) -> Resource {
        let refused = move |request: HttpRequest| {
            let answer = method_not_allowed(&request, &allowed);
            async move { answer }
        };
        resource(path.replace("{product}", self.product))
            .app_data(RouteName(name))
            .default_service(route().to(refused))
    }

    /// Returns the route of one method. `GET` includes `HEAD`.
    fn on<F, Args>(&self, method: Method, path: &str, handler: F) -> Route
    where
        F: Handler<Args, Output = HttpResponse>,
        Args: FromRequest + 'static,
    {
        let guarded = self.guarded(&method, path, handler);
        let allowed = with_head(&[&method]);
        guarded.guard(guard::fn_guard(move |context| allowed.contains(&context.head().method)))
    }

    /// Returns the route of a handler behind the gate, for any method. The method is that of the rule.
    pub fn guarded<F, Args>(&self, method: &Method, path: &str, handler: F) -> Route
    where
        F: Handler<Args, Output = HttpResponse>,
        Args: FromRequest + 'static,
    {
        let path = format!("{}{path}", self.scope);
        match Rule::of(self.rules, method.as_str(), &path) {
            None => route().to(nothing_here),
            Some(rule) if rule.is_public() || rule.in_body => route().to(handler),
            Some(rule) => route().to(move |request: HttpRequest, body: Payload| {
                pass::<G, F, Args>(rule, handler.clone(), request, body)
            }),
        }
    }
}

/// Calls a handler for a caller that passes the gate. Only then is the rest of the request read.
async fn pass<G, F, Args>(
    rule: &'static Rule,
    handler: F,
    request: HttpRequest,
    body: Payload,
) -> HttpResponse
where
    G: Gate,
    F: Handler<Args, Output = HttpResponse>,
    Args: FromRequest,
{
    if let Err(answer) = G::admit(&request, rule).await {
        return answer;
    }
    match Args::from_request(&request, &mut body.into_inner()).await {
        Ok(read) => handler.call(read).await,
        Err(error) => unreadable(error.into()),
    }
}

/// Answers a request that a handler cannot take.
fn unreadable(error: Error) -> HttpResponse {
    match error.as_error() {
        // The limit depends on the route.
        Some(PayloadError::Overflow) => failure(ApiError {
            message: "The request body is too large.".to_owned(),
            ..Refusal::BodyTooLarge.into()
        }),
        _ => HttpResponse::from_error(error),
    }
}

fn with_head(methods: &[&Method]) -> Vec<Method> {
    let mut all: Vec<Method> = Vec::new();
    for method in methods {
        all.push((*method).clone());
        if **method == Method::GET {
            all.push(Method::HEAD);
        }
    }
    all
}
