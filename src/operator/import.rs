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
use iptunnel_domain::address::parse_public_ip;
use iptunnel_domain::server::{Listed, Server, ServerId};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::HashSet;

/// The most servers of one request.
pub const STEP: usize = Import::STEP;

/// Reads one server of a list.
///
/// # Errors
/// The name of a field, and what is wrong with it.
fn listed(row: &Value, allow_private: bool) -> Result<Listed, String> {
    let absent = |name: &str| row.get(name).is_none_or(|value| value.is_null() || value == "");
    let text = |name: &str| {
        if absent(name) {
            return Ok("");
        }
        row.get(name).and_then(Value::as_str).ok_or_else(|| format!("{name} must be a string"))
    };
    let time = |name: &str| {
        parse_time(text(name)?)
            .ok_or_else(|| format!("{name} must be a time like 2026-03-31T12:00:00+00:00"))
    };
    let id =
        ServerId::parse(text("server_id")?).ok_or("server_id must be 16 hexadecimal digits")?;
    let ip = parse_public_ip(text("ip")?, allow_private)
        .ok_or("ip must be an IPv4 or IPv6 address that the Internet can reach")?;
    let (hostname, note) = (text("hostname")?, text("note")?);
    if hostname.len() > Server::HOSTNAME_BYTES {
        return Err(format!("hostname must be at most {} bytes long", Server::HOSTNAME_BYTES));
    }
    if note.chars().count() > Server::NOTE {
        return Err(format!("note must be at most {} characters long", Server::NOTE));
    }
    let registered_at = time("registered_at")?;
    let last_checkin = if absent("last_checkin") { registered_at } else { time("last_checkin")? };
    let revoked = match row.get("revoked") {
        None | Some(Value::Null | Value::Bool(false)) => false,
        Some(Value::Bool(true)) => true,
        Some(number) if number.as_u64() == Some(0) => false,
        Some(number) if number.as_u64() == Some(1) => true,
        Some(_) => return Err("revoked must be 0 or 1".into()),
    };
    let (hostname, note) = (hostname.to_owned(), note.to_owned());
    Ok(Listed { id, ip, hostname, registered_at, last_checkin, revoked, note })
}

/// Reads the servers of a list.
///
/// # Errors
/// The first row that cannot be taken over, and why. Then none is.
pub fn read(rows: &[Value], allow_private: bool) -> Result<Vec<Listed>, String> {
    let (mut ids, mut addresses) = (HashSet::new(), HashSet::new());
    let mut all = Vec::with_capacity(rows.len());
    for (place, row) in rows.iter().enumerate() {
        let refused = |why: &str| format!("servers[{place}]: {why}.");
        let server = listed(row, allow_private).map_err(|why| refused(&why))?;
        if !ids.insert(server.id) {
            return Err(refused("server_id is that of an earlier row"));
        }
        if !addresses.insert(server.ip) {
            return Err(refused("ip is that of an earlier row"));
        }
        all.push(server);
    }
    Ok(all)
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
    /// The servers whose address another server has here. They are not taken over.
    address_taken: Vec<String>,
}

impl From<Imported> for Done {
    fn from(imported: Imported) -> Self {
        let names = |ids: Vec<ServerId>| ids.iter().map(ServerId::to_string).collect();
        Self {
            new: imported.new,
            changed: imported.changed,
            unchanged: imported.unchanged,
            changed_here: names(imported.changed_here),
            address_taken: names(imported.address_taken),
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
        by: caller.token_name().to_owned(),
        from,
        now: state.clock.now(),
    };
    Ok(state.wait(state.handles.import_servers(command)).await.outcome??)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn row() -> Value {
        json!({
            "server_id": "00112233445566ff", "ip": "8.8.8.8", "hostname": "ns1.example.com",
            "registered_at": "2026-03-31T12:00:00+00:00",
            "last_checkin": "2026-03-31T12:05:00+00:00", "revoked": 1, "note": "moved",
        })
    }

    #[test]
    fn a_row_of_a_status_listing_is_read_as_it_is() {
        let read = listed(&row(), false).unwrap();
        assert_eq!(
            (read.id, read.ip.to_string()),
            (ServerId(0x0011_2233_4455_66ff), "8.8.8.8".into())
        );
        assert_eq!((read.registered_at.0, read.last_checkin.0), (1_774_958_400, 1_774_958_700));
        assert_eq!(
            (read.revoked, &*read.hostname, &*read.note),
            (true, "ns1.example.com", "moved")
        );
        let bare = json!({"server_id": "00112233445566ff", "ip": "8.8.8.8",
            "registered_at": "2026-03-31T12:00:00+00:00", "last_checkin": null, "revoked": false});
        let read = listed(&bare, false).unwrap();
        assert_eq!((read.revoked, read.last_checkin), (false, read.registered_at));
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
            let mut bad = row();
            bad["server_id"] = "00112233445566fe".into();
            bad["ip"] = "8.8.4.4".into();
            bad[field] = value.clone();
            let error = read(&[row(), bad], false).unwrap_err();
            assert!(error.starts_with(&format!("servers[1]: {field} ")), "{value}: {error}");
        }
        for (field, value) in [("server_id", "00112233445566FE"), ("ip", "8.8.4.4")] {
            let mut twin = row();
            twin[field] = value.into();
            let error = read(&[row(), twin], false).unwrap_err();
            assert!(error.contains("of an earlier row"), "{error}");
        }
        assert!(read(&[json!([])], false).is_err());
    }
}
