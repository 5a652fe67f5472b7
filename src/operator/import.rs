//! Takes over servers from the list that another server's `GET /status` has sent.

use super::auth::Operator;
use super::console::{Console, failed};
use super::servers::invalid;
use crate::http::errors::ApiError;
use crate::http::respond::{parse_time, success};
use actix_web::http::StatusCode;
use actix_web::web::{Bytes, Data};
use actix_web::{HttpRequest, HttpResponse};
use iptunnel_actors::server_registry::{Import, Imported};
use iptunnel_domain::import::{List, Listed, Row};
use iptunnel_domain::server::ServerId;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The most servers of one request.
pub const STEP: usize = Import::STEP;

/// Reads the fields of one server of a list.
///
/// # Errors
/// The name of a field, and what is wrong with it.
fn row(value: &Value) -> Result<Row<'_>, String> {
    let absent = |name: &str| value.get(name).is_none_or(|field| field.is_null() || field == "");
    let text = |name: &str| {
        if absent(name) {
            return Ok("");
        }
        value.get(name).and_then(Value::as_str).ok_or_else(|| format!("{name} must be a string"))
    };
    let time = |name: &str| {
        parse_time(text(name)?)
            .ok_or_else(|| format!("{name} must be a time like 2026-03-31T12:00:00+00:00"))
    };
    let revoked = match value.get("revoked") {
        None | Some(Value::Null | Value::Bool(false)) => false,
        Some(Value::Bool(true)) => true,
        Some(number) if number.as_u64() == Some(0) => false,
        Some(number) if number.as_u64() == Some(1) => true,
        Some(_) => return Err("revoked must be 0 or 1".into()),
    };
    Ok(Row {
        server_id: text("server_id")?,
        ip: text("ip")?,
        hostname: text("hostname")?,
        registered_at: time("registered_at")?,
        last_checkin: if absent("last_checkin") { None } else { Some(time("last_checkin")?) },
        revoked,
        note: text("note")?,
    })
}

/// Reads the servers of a list.
///
/// # Errors
/// The first row that cannot be taken over, and why. Then none is.
pub fn read(rows: &[Value], allow_private: bool) -> Result<Vec<Listed>, String> {
    let mut list = List::default();
    for (place, value) in rows.iter().enumerate() {
        let added = row(value).and_then(|row| list.add(&row, allow_private));
        added.map_err(|why| format!("servers[{place}]: {why}."))?;
    }
    Ok(list.into_rows())
}

/// The body of a request.
#[derive(Deserialize)]
struct ImportBody {
    servers: Vec<Value>,
    #[serde(default)]
    dry_run: bool,
}

/// What a request has done, or would do.
#[derive(Serialize)]
struct Done {
    new: usize,
    changed: usize,
    unchanged: usize,
    /// The servers that were changed here since. They stay as they are.
    changed_here: Vec<String>,
    /// The servers that have another address here. They are left alone.
    other_address: Vec<String>,
    /// The servers whose address another server has here. They are not taken over.
    address_taken: Vec<String>,
    /// Those of the three lists above that are revoked in the list, and not here.
    not_revoked: Vec<String>,
    /// New servers that are revoked here and not in the list.
    still_revoked: Vec<String>,
}

impl From<Imported> for Done {
    fn from(imported: Imported) -> Self {
        let names = |ids: Vec<ServerId>| ids.iter().map(ServerId::to_string).collect();
        Self {
            new: imported.new,
            changed: imported.changed,
            unchanged: imported.unchanged,
            changed_here: names(imported.changed_here),
            other_address: names(imported.other_address),
            address_taken: names(imported.address_taken),
            not_revoked: names(imported.not_revoked),
            still_revoked: names(imported.still_revoked),
        }
    }
}

/// `POST /admin/import`
pub async fn json_import(
    console: Data<Console>,
    operator: Operator,
    request: HttpRequest,
    body: Bytes,
) -> HttpResponse {
    match import(&console, &operator, &body).await {
        Ok(done) => success(StatusCode::OK, Done::from(done), "Servers imported"),
        Err(error) => failed(&request, &error),
    }
}

async fn import(console: &Console, operator: &Operator, body: &[u8]) -> Result<Imported, ApiError> {
    let state = &console.state;
    let ImportBody { servers, dry_run } = serde_json::from_slice(body).map_err(|_| {
        invalid("The body must be an object with servers (a list) and perhaps dry_run.")
    })?;
    if servers.len() > STEP {
        return Err(invalid(&format!("servers must be at most {STEP}; send more requests.")));
    }
    let allow_private = state.live.config.load().server.allow_private_ips;
    let rows = read(&servers, allow_private).map_err(|why| invalid(&why))?;
    let servers = rows.into_iter().map(|row| (ServerId::of(row.ip, &state.live.lookup), row));
    let (caller, from) = operator.who();
    let command = Import {
        servers: servers.collect(),
        dry_run,
        by: caller.shown().to_owned(),
        from,
        now: state.clock.now(),
    };
    Ok(state.ask(|handles| handles.import_servers(command)).await.outcome??)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn sent() -> Value {
        json!({
            "server_id": "00112233445566ff", "ip": "8.8.8.8", "hostname": "ns1.example.com",
            "registered_at": "2026-03-31T12:00:00+00:00",
            "last_checkin": "2026-03-31T12:05:00+00:00", "revoked": 1, "note": "moved",
        })
    }

    #[test]
    fn a_row_of_a_status_listing_is_read_as_it_is() {
        let one = |value: Value| read(&[value], false).unwrap().remove(0);
        let row = one(sent());
        assert_eq!(
            (row.id, row.ip.to_string()),
            (ServerId(0x0011_2233_4455_66ff), "8.8.8.8".into())
        );
        assert_eq!((row.registered_at.0, row.last_checkin.0), (1_774_958_400, 1_774_958_700));
        assert_eq!((row.revoked, &*row.hostname, &*row.note), (true, "ns1.example.com", "moved"));
        let bare = json!({"server_id": "00112233445566ff", "ip": "8.8.8.8",
            "registered_at": "2026-03-31T12:00:00+00:00", "last_checkin": null, "revoked": false});
        let row = one(bare);
        assert_eq!((row.revoked, row.last_checkin), (false, row.registered_at));
    }

    #[test]
    fn one_bad_row_refuses_all_and_is_named_with_its_field() {
        for (field, value) in [
            ("server_id", json!("short")),
            ("server_id", json!(1)),
            ("ip", json!("10.0.0.1")),
            ("ip", json!(null)),
            ("hostname", json!("x".repeat(254))),
            ("registered_at", json!("yesterday")),
            ("registered_at", json!(null)),
            ("last_checkin", json!(5)),
            ("revoked", json!(2)),
            ("revoked", json!("1")),
            ("note", json!("x".repeat(501))),
        ] {
            let mut bad = sent();
            bad["server_id"] = "00112233445566fe".into();
            bad["ip"] = "8.8.4.4".into();
            bad[field] = value.clone();
            let error = read(&[sent(), bad], false).unwrap_err();
            assert!(error.starts_with(&format!("servers[1]: {field} ")), "{value}: {error}");
        }
        for (field, value) in [("server_id", "00112233445566FE"), ("ip", "8.8.4.4")] {
            let mut twin = sent();
            twin[field] = value.into();
            let error = read(&[sent(), twin], false).unwrap_err();
            assert!(error.contains("of an earlier row"), "{error}");
        }
        assert!(read(&[json!([])], false).is_err());
    }
}
