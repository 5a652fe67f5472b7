//! The OpenAPI document. It combines the handlers' own documentation with facts that many handlers
//! share: products, tokens, headers and errors.

use super::catalogue::samples;
use super::operations::{Needs, Operation};
use super::{example, handlers};
use crate::config::Product;
use crate::http::access::{PUBLIC, Rule};
use crate::http::errors::ApiError;
use crate::public::{codes, health, install, installer, servers, setup, tickets};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use utoipa::OpenApi;

#[derive(OpenApi)]
#[openapi(
    info(
        title = "IPTunnel activation server",
        description = "One-time install codes, activations and server check-ins. A body is \
            JSON of at most 64 KiB; its Content-Type is ignored. Strings are trimmed. An integer \
            is accepted as a string of its digits. null means absent. Unknown fields are ignored. \
            Times are RFC 3339 in UTC. No response is a redirect.",
    ),
    paths(
        codes::issue,
        install::precheck,
        install::activate,
        install::confirm,
        install::release,
        setup::install_script,
        setup::address,
        setup::payload,
        servers::v2_check_in,
        servers::v2::list,
        servers::v2::one,
        servers::v2::delete,
        servers::v2::register,
        tickets::issue,
        servers::server_revoke,
        servers::server_restore,
        tickets::authorize,
        servers::register,
        servers::legacy_check_in,
        servers::legacy_revoke,
        servers::listing::status,
        installer::installer,
        installer::version,
        installer::v2_version,
        health::main_stack_healthz,
        health::healthz,
        health::readyz,
        handlers::document,
    ),
    components(schemas(
        crate::http::respond::V2Failure<'static>,
        crate::http::respond::LegacyFailure<'static>,
    )),
    tags(
        (name = "Install", description = "From an install code to a confirmed install."),
        (name = "Servers", description = "Registered servers, in the format of version 2."),
        (
            name = "Main stack",
            description = "Registration, check-in and revocation, as the IPTunnel installer and \
                the agents on servers use them. Responses are flat objects; an error is a text.",
        ),
        (name = "Health", description = "Liveness, readiness and the OpenAPI document."),
    ),
)]
struct Handlers;

/// Makes the document for a server with these products.
pub fn document(products: &[Product]) -> Value {
    let mut document = serde_json::to_value(Handlers::openapi()).unwrap_or_default();
    let names: Vec<&str> = products.iter().map(|product| product.name.as_str()).collect();
    if let Some(components) = object(&mut document, "/components") {
        components.insert("headers".into(), headers());
        components.insert("securitySchemes".into(), security_schemes(&names));
    }
    let handlers = document.clone();
    if let Some(paths) = object(&mut document, "/paths") {
        for (path, item) in paths {
            for (method, operation) in item.as_object_mut().into_iter().flatten() {
                let rule = Rule::of(PUBLIC, &method.to_uppercase(), path);
                complete(operation, path, rule, &names);
                add_example(operation, &handlers);
            }
        }
    }
    document
}

fn object<'a>(value: &'a mut Value, pointer: &str) -> Option<&'a mut Map<String, Value>> {
    value.pointer_mut(pointer)?.as_object_mut()
}

fn headers() -> Value {
    let text = json!({"type": "string"});
    let whole = json!({"type": "integer", "minimum": 0});
    json!({
        "X-Request-Id": {
            "description": "The id of this request in the server's log.",
            "schema": text,
        },
        "Retry-After": {
            "description": "Seconds to wait before a retry.",
            "schema": whole,
        },
        "RateLimit-Policy": {
            "description": "All limits that count the request: quota q and window w in seconds.",
            "schema": text,
        },
        "RateLimit": {
            "description": "The tightest limit: remaining quota r, and seconds t until its window ends.",
            "schema": text,
        },
    })
}

fn header(name: &str) -> Value {
    json!({"$ref": format!("#/components/headers/{name}")})
}

fn cookie(product: &str) -> String {
    format!("{product}_browser")
}

fn security_schemes(products: &[&str]) -> Value {
    let mut schemes = Map::new();
    for product in products {
        let description = format!("Set by GET /{product}.");
        let scheme = json!({
            "type": "apiKey", "in": "cookie", "name": cookie(product), "description": description,
        });
        schemes.insert(cookie(product), scheme);
    }
    let bearer =
        |description: &str| json!({"type": "http", "scheme": "bearer", "description": description});
    let description =
        "An access token with one of the roles that the operation names, or the master token.";
    schemes.insert("access_token".into(), bearer(description));
    let description =
        "The server's agent token, or else the token that registered it; or the master token.";
    schemes.insert("server_token".into(), bearer(description));
    let description = "The install token of an activation.";
    schemes.insert("install_token".into(), bearer(description));
    schemes.into()
}

fn security(needs: Needs, rule: Option<&Rule>, products: &[&str]) -> Vec<Value> {
    match needs {
        Needs::Role => {
            // A token in the body is a field of the request.
            let roles = rule.filter(|rule| !rule.in_body).map_or(&[][..], |rule| rule.least);
            roles.iter().map(|role| json!({"access_token": [role.name()]})).collect()
        }
        Needs::BrowserSession => products.iter().map(|name| json!({cookie(name): []})).collect(),
        Needs::PerhapsToken => vec![json!({}), json!({"server_token": []})],
        Needs::InstallToken => vec![json!({"install_token": []})],
    }
}

/// Adds the shared facts to an operation.
fn complete(operation: &mut Value, path: &str, rule: Option<&Rule>, products: &[&str]) {
    let id = operation.get("operationId").and_then(Value::as_str);
    let Some(known) = Operation::of(id) else { return };
    let Some(operation) = operation.as_object_mut() else { return };
    if path.contains("{product}") {
        let parameter = json!({
            "name": "product", "in": "path", "required": true,
            "description": "The product to install.",
            "schema": {"type": "string", "enum": products},
        });
        operation.insert("parameters".into(), json!([parameter]));
    }
    operation.insert("security".into(), security(known.needs, rule, products).into());
    let Some(responses) = operation.get_mut("responses").and_then(Value::as_object_mut) else {
        return;
    };
    for (status, errors) in by_status(known.refusals) {
        responses
            .entry(status.to_string())
            .or_insert_with(|| refusal(&errors, path.starts_with("/api/v2/")));
    }
    responses.sort_keys();
    for (status, response) in responses {
        add_headers(response, status, known.limited);
    }
}

/// Adds an example to a version 2 success, with its message.
fn add_example(operation: &mut Value, document: &Value) {
    let known = Operation::of(operation.get("operationId").and_then(Value::as_str));
    let says = known.map(|known| known.says).filter(|says| !says.is_empty());
    let successes = ["200", "201"];
    let responses = object(operation, "/responses").into_iter().flatten();
    for (_, response) in responses.filter(|(status, _)| successes.contains(&status.as_str())) {
        let Some(says) = says else { continue };
        let Some(content) = object(response, "/content/application~1json") else { continue };
        let schema = content.get("schema").unwrap_or(&Value::Null);
        let mut example = example::of_response(document, schema);
        if let Some(meta) = object(&mut example, "/meta") {
            meta.insert("message".into(), says.into());
        }
        content.insert("example".into(), example);
    }
}

fn by_status(codes: &[&str]) -> BTreeMap<u16, Vec<ApiError>> {
    let mut by_status: BTreeMap<u16, Vec<ApiError>> = BTreeMap::new();
    let known = samples();
    for code in codes {
        if let Some(error) = known.iter().find(|error| error.code == *code) {
            by_status.entry(error.status.as_u16()).or_default().push(error.clone());
        }
    }
    by_status
}

/// Makes the response entry for errors that share a status.
fn refusal(errors: &[ApiError], is_v2: bool) -> Value {
    let mut examples = Map::new();
    for error in errors {
        let value = match is_v2 {
            true => json!({"error": {"code": error.code, "message": error.message}}),
            false => json!({"error": error.message}),
        };
        examples.insert(error.code.to_owned(), json!({"value": value}));
    }
    let (description, schema) = if is_v2 {
        let codes: Vec<&str> = errors.iter().map(|error| error.code).collect();
        let code = json!({"properties": {"code": {"enum": codes}}});
        let schema = json!({
            "allOf": [
                {"$ref": "#/components/schemas/V2Failure"},
                {"type": "object", "properties": {"error": code}},
            ],
        });
        (format!("The code is {}.", codes.join(" or ")), schema)
    } else {
        let words: Vec<&str> = errors.iter().map(|error| error.message.as_str()).collect();
        (words.join(" Or: "), json!({"$ref": "#/components/schemas/LegacyFailure"}))
    };
    json!({
        "description": description,
        "content": {"application/json": {"schema": schema, "examples": examples}},
    })
}

fn add_headers(response: &mut Value, status: &str, limited: bool) {
    let mut names = vec!["X-Request-Id"];
    if matches!(status, "429" | "503") {
        names.push("Retry-After");
    }
    if limited {
        names.extend(["RateLimit-Policy", "RateLimit"]);
    }
    let headers: Map<String, Value> =
        names.into_iter().map(|name| (name.to_owned(), header(name))).collect();
    if let Some(response) = response.as_object_mut() {
        response.insert("headers".into(), headers.into());
    }
}
