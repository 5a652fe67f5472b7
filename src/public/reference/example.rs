//! Makes examples of a schema from the examples of its fields.

use serde_json::{Map, Value, json};

/// Returns a schema, or the schema that it refers to.
pub fn resolved<'a>(document: &'a Value, schema: &'a Value) -> &'a Value {
    let Some(reference) = schema.get("$ref").and_then(Value::as_str) else { return schema };
    reference.strip_prefix('#').and_then(|at| document.pointer(at)).unwrap_or(schema)
}

/// Makes an example with all fields.
pub fn of_request(document: &Value, schema: &Value) -> Value {
    example(document, schema, true)
}

/// Makes an example with the required fields.
pub fn of_response(document: &Value, schema: &Value) -> Value {
    example(document, schema, false)
}

fn example(document: &Value, schema: &Value, optional_too: bool) -> Value {
    let schema = resolved(document, schema);
    let of = |part: &Value| example(document, part, optional_too);
    let parts = |key: &str| schema.get(key).and_then(Value::as_array);
    if let Some(given) = parts("examples").and_then(|examples| examples.first()) {
        return given.clone();
    }
    if let Some(first) = parts("oneOf").and_then(|ways| ways.first()) {
        return of(first);
    }
    if let Some(all) = parts("allOf") {
        // Responses list a schema's own fields before those of the schema it extends.
        let objects = all.iter().rev().filter_map(|part| of(part).as_object().cloned());
        return objects.flatten().collect::<Map<_, _>>().into();
    }
    if let Some(items) = schema.get("items") {
        return json!([of(items)]);
    }
    let required = parts("required").cloned().unwrap_or_default();
    let properties = schema.get("properties").and_then(Value::as_object);
    let fields = properties.into_iter().flatten();
    fields
        .filter(|(name, _)| optional_too || required.iter().any(|entry| entry == *name))
        .map(|(name, part)| (name.clone(), of(part)))
        .collect::<Map<_, _>>()
        .into()
}
