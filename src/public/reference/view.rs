//! The model of the reference page, made from the document, in the order of the handlers.

use super::catalogue::{ERRORS, samples};
use super::example::{of_request, of_response, resolved};
use crate::config::Config;
use askama::Template;
use serde_json::{Map, Value, json};

/// The page.
#[derive(Template)]
#[template(path = "reference.html")]
pub struct Page {
    title: String,
    version: String,
    description: String,
    groups: Vec<Group>,
    errors: Vec<Explained>,
}

/// A group of related operations.
struct Group {
    anchor: String,
    name: String,
    description: String,
    operations: Vec<Operation>,
}

struct Operation {
    id: String,
    method: String,
    path: String,
    summary: String,
    description: String,
    needs: String,
    parameters: Vec<Field>,
    fields: Vec<Field>,
    curl: String,
    responses: Vec<Response>,
    refusals: Vec<Refusal>,
}

struct Field {
    name: String,
    kind: String,
    required: bool,
    limits: String,
    description: String,
}

/// A response with an example.
struct Response {
    status: String,
    description: String,
    example: String,
}

/// An error in one of the two formats.
struct Refusal {
    status: String,
    /// The error code, in the v2 format only.
    code: Option<String>,
    message: String,
}

/// An error code with its explanation.
struct Explained {
    code: &'static str,
    status: u16,
    example: String,
    meaning: &'static str,
    remedy: &'static str,
}

fn text(value: &Value, key: &str) -> String {
    value.get(key).and_then(Value::as_str).unwrap_or_default().to_owned()
}

fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value.get(key).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

fn entries<'a>(value: &'a Value, key: &str) -> impl Iterator<Item = (&'a String, &'a Value)> {
    value.get(key).and_then(Value::as_object).into_iter().flat_map(Map::iter)
}

impl Page {
    /// Makes the page of this document.
    pub fn of(document: &Value, config: &Config) -> Self {
        let info = document.get("info").unwrap_or(&Value::Null);
        let reader = Reader {
            document,
            origin: config.server.public_url.origin(),
            product: config.products.first().map_or("", |product| &product.name),
        };
        let groups = list(document, "tags").iter().map(|tag| reader.group(tag)).collect();
        Self {
            title: text(info, "title"),
            version: text(info, "version"),
            description: text(info, "description"),
            groups,
            errors: explained(),
        }
    }
}

fn explained() -> Vec<Explained> {
    let samples = samples();
    ERRORS
        .iter()
        .filter_map(|error| {
            let sample = samples.iter().find(|sample| sample.code == error.code)?;
            Some(Explained {
                code: error.code,
                status: sample.status.as_u16(),
                example: json!({"error": {"code": sample.code, "message": sample.message}})
                    .to_string(),
                meaning: error.meaning,
                remedy: error.remedy,
            })
        })
        .collect()
}

/// Reads the document. Has the values for examples.
struct Reader<'a> {
    document: &'a Value,
    origin: &'a str,
    product: &'a str,
}

impl Reader<'_> {
    fn group(&self, tag: &Value) -> Group {
        let name = text(tag, "name");
        let operations = entries(self.document, "paths")
            .flat_map(|(path, item)| {
                let methods = item.as_object().into_iter().flat_map(Map::iter);
                methods.map(move |(method, operation)| (method, path, operation))
            })
            .filter(|(_, _, operation)| {
                list(operation, "tags").iter().any(|tag| tag.as_str() == Some(&name))
            })
            .map(|(method, path, operation)| self.operation(method, path, operation))
            .collect();
        let anchor = name.to_lowercase().replace(' ', "-");
        Group { anchor, description: text(tag, "description"), name, operations }
    }

    fn operation(&self, method: &str, path: &str, operation: &Value) -> Operation {
        let body = operation.pointer("/requestBody/content/application~1json/schema");
        let body = body.map(|schema| resolved(self.document, schema));
        let parameters = list(operation, "parameters").iter().map(|parameter| {
            let schema = parameter.get("schema").unwrap_or(&Value::Null);
            let required = parameter.get("required") == Some(&Value::Bool(true));
            let mut field = field(&text(parameter, "name"), schema, required);
            field.description = text(parameter, "description");
            field
        });
        Operation {
            id: text(operation, "operationId"),
            method: method.to_uppercase(),
            path: path.to_owned(),
            summary: text(operation, "summary"),
            description: text(operation, "description"),
            needs: self.needs(operation),
            parameters: parameters.collect(),
            fields: body.map(fields).unwrap_or_default(),
            curl: self.curl(method, path, operation, body),
            responses: entries(operation, "responses")
                .filter(|(_, response)| envelope(response).is_none())
                .map(|(status, response)| self.response(status, response))
                .collect(),
            refusals: entries(operation, "responses")
                .flat_map(|(status, response)| refusals(status, response))
                .collect(),
        }
    }

    /// Returns the names and descriptions of the credentials that an operation accepts.
    fn schemes<'b>(&'b self, operation: &'b Value) -> impl Iterator<Item = (&'b str, &'b Value)> {
        let ways = list(operation, "security").iter().filter_map(Value::as_object);
        ways.flat_map(Map::keys).filter_map(|name| {
            let schemes = self.document.pointer("/components/securitySchemes")?;
            Some((name.as_str(), schemes.get(name)?))
        })
    }

    fn needs(&self, operation: &Value) -> String {
        let describe = |(_, scheme): (&str, &Value)| {
            let description = text(scheme, "description");
            match is_cookie(scheme) {
                true => format!("the cookie {}. {description}", text(scheme, "name")),
                false => format!("Authorization: Bearer TOKEN. {description}"),
            }
        };
        let ways: Vec<String> = self.schemes(operation).map(describe).collect();
        // An empty object means that credentials are optional.
        let optional = list(operation, "security").iter().any(|way| *way == json!({}));
        match ways.is_empty() {
            true => String::new(),
            false if optional => format!("Optional: {}", ways.join(" Or: ")),
            false => format!("Required: {}", ways.join(" Or: ")),
        }
    }

    fn curl(&self, method: &str, path: &str, operation: &Value, body: Option<&Value>) -> String {
        let path =
            path.replace("{product}", self.product).replace("{server_id}", "0123456789abcdef");
        let mut line = match method {
            "get" => format!("curl {}{path}", self.origin),
            _ => format!("curl -X {} {}{path}", method.to_uppercase(), self.origin),
        };
        if self.schemes(operation).any(|(name, _)| name == "access_token") {
            line.push_str(" \\\n  -H 'Authorization: Bearer ACCESS_TOKEN'");
        }
        if self.schemes(operation).any(|(name, _)| name == "install_token") {
            line.push_str(" \\\n  -H 'Authorization: Bearer INSTALL_TOKEN'");
        }
        if self.schemes(operation).any(|(_, scheme)| is_cookie(scheme)) {
            let page = format!("{}/{}", self.origin, self.product);
            line = format!("curl -c cookies.txt -o page.html {page}\n{line} \\\n  -b cookies.txt");
        }
        if let Some(body) = body {
            let example = pretty(&of_request(self.document, body));
            line.push_str(&format!(" \\\n  -d '{example}'"));
        }
        line
    }

    fn response(&self, status: &str, response: &Value) -> Response {
        let content = content(response);
        let schema = content.get("schema").unwrap_or(&Value::Null);
        let given = content.get("example").cloned();
        Response {
            status: status.to_owned(),
            description: text(response, "description"),
            example: pretty(&given.unwrap_or_else(|| of_response(self.document, schema))),
        }
    }
}

fn is_cookie(scheme: &Value) -> bool {
    scheme.get("in").and_then(Value::as_str) == Some("cookie")
}

/// Returns the content of a response. Each response has one content type.
fn content(response: &Value) -> &Value {
    let content = response.get("content").and_then(Value::as_object);
    content.and_then(|content| content.values().next()).unwrap_or(&Value::Null)
}

/// Returns the error format of a response. `None`: it is not an error.
fn envelope(response: &Value) -> Option<&str> {
    let schema = content(response).get("schema")?;
    let reference = schema.pointer("/allOf/0/$ref").or_else(|| schema.get("$ref"))?.as_str()?;
    let name = reference.rsplit('/').next()?;
    matches!(name, "V2Failure" | "LegacyFailure").then_some(name)
}

fn refusals(status: &str, response: &Value) -> Vec<Refusal> {
    match envelope(response) {
        Some("V2Failure") => entries(content(response), "examples")
            .map(|(code, example)| Refusal {
                status: status.to_owned(),
                code: Some(code.clone()),
                message: example.pointer("/value/error/message").map(pretty).unwrap_or_default(),
            })
            .collect(),
        Some(_) => vec![Refusal {
            status: status.to_owned(),
            code: None,
            message: text(response, "description"),
        }],
        None => Vec::new(),
    }
}

/// Formats JSON for people. A string stays as it is.
fn pretty(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => serde_json::to_string_pretty(other).unwrap_or_default(),
    }
}

fn fields(schema: &Value) -> Vec<Field> {
    let required = list(schema, "required");
    entries(schema, "properties")
        .map(|(name, schema)| field(name, schema, required.iter().any(|entry| entry == name)))
        .collect()
}

fn field(name: &str, schema: &Value, required: bool) -> Field {
    let description = text(schema, "description");
    Field {
        name: name.to_owned(),
        kind: text(schema, "type"),
        required,
        limits: limits(schema),
        description,
    }
}

/// Describes the limits of a value.
fn limits(schema: &Value) -> String {
    let number = |key: &str| schema.get(key).and_then(Value::as_u64);
    let mut limits = Vec::new();
    if let Some(max) = number("maxLength") {
        limits.push(format!("at most {max} characters"));
    }
    if let (Some(min), Some(max)) = (number("minimum"), number("maximum")) {
        limits.push(format!("{min} to {max}"));
    }
    let allowed: Vec<&str> = list(schema, "enum").iter().filter_map(Value::as_str).collect();
    if !allowed.is_empty() {
        limits.push(format!("one of: {}", allowed.join(", ")));
    }
    if schema.get("pattern").is_some() {
        limits.extend(
            list(schema, "examples")
                .iter()
                .filter_map(Value::as_str)
                .map(|example| format!("of the form {example}")),
        );
    }
    limits.join("; ")
}
