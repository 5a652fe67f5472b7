//! Feeds bytes to the program's parsers. The tests feed the files beside this one, the targets in
//! `fuzz/` whatever they come upon. What must hold for any bytes is asserted here: a parser ends, does
//! not panic, and reads back what it has read.

use actix_web::http::header::{COOKIE, HeaderValue};
use actix_web::test::TestRequest;
use actix_web::web::Query;
use iptunnel_domain::activation::ActivationId;
use iptunnel_domain::address::{HostName, parse_public_ip};
use iptunnel_domain::audit::Event;
use iptunnel_domain::code::InstallCode;
use iptunnel_domain::lookup::{KeyedHash, LookupKey};
use iptunnel_domain::server::ServerId;
use iptunnel_server::age::{Opener, Recipient};
use iptunnel_server::backup::Manifest;
use iptunnel_server::config::Layers;
use iptunnel_server::http::body::{Field, object};
use iptunnel_server::http::connection::framing::Framing;
use iptunnel_server::operator::audit::Row;
use iptunnel_server::operator::auth::Credentials;
use iptunnel_server::operator::codes::Find;
use iptunnel_server::operator::server_changes::ServerForm;
use iptunnel_server::operator::session_list::Ending;
use iptunnel_server::operator::settings::Change;
use iptunnel_server::secrets::{SigningFile, lookup_key, master_token};
use iptunnel_server::signed_head::{self, Verifier};
use iptunnel_server::tokens::Tokens;
use iptunnel_storage::stored;
use serde::Deserialize;
use std::path::PathBuf;
use std::sync::LazyLock;

/// Whether the bytes were taken, or in which words they were refused.
pub type Verdict = Result<(), String>;

fn refused(why: impl ToString) -> String {
    why.to_string()
}

fn text(bytes: &[u8]) -> Result<&str, String> {
    std::str::from_utf8(bytes).map_err(refused)
}

/// Every field that a request may have.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Everything<'a> {
    #[serde(borrow)]
    install_code: Field<'a>,
    #[serde(borrow)]
    machine_id: Field<'a>,
    #[serde(borrow)]
    requested_ref: Field<'a>,
    #[serde(borrow)]
    hostname: Field<'a>,
    #[serde(borrow)]
    public_ip: Field<'a>,
    #[serde(borrow)]
    activation_id: Field<'a>,
    #[serde(borrow)]
    server_id: Field<'a>,
}

/// The body of a request that an installer or a server sends.
pub fn body(bytes: &[u8]) -> Verdict {
    let body: Everything<'_> = object(bytes).map_err(|refusal| format!("{refusal:?}"))?;
    let words = |refusal| format!("{refusal:?}");
    let code = body.install_code.required("install_code", 64).map_err(words)?;
    body.machine_id.required("machine_id", 255).map_err(words)?;
    let cut = body.requested_ref.optional("requested_ref", 7).map_err(words)?;
    assert!(cut.chars().count() <= 7 && !cut.contains('\0'));
    if let Ok(hostname) = body.hostname.check("hostname", 255)
        && let Some(read) = HostName::parse(&hostname)
    {
        assert_eq!(HostName::parse(read.as_str()).as_ref(), Some(&read));
    }
    if let Ok(address) = body.public_ip.check("public_ip", 64)
        && let Some(read) = parse_public_ip(&address, false)
    {
        assert_eq!(parse_public_ip(&read.to_string(), false), Some(read));
    }
    if let Ok(id) = body.activation_id.check("activation_id", 255)
        && let Some(read) = ActivationId::parse(&id)
    {
        assert_eq!(read.reveal(), *id);
    }
    if let Ok(id) = body.server_id.check("server_id", 255)
        && let Some(read) = ServerId::parse(&id)
    {
        assert_eq!(read.to_string(), id.to_ascii_lowercase());
    }
    InstallCode::parse(&code).map(drop).map_err(words)
}

static TOKENS: LazyLock<Tokens> = LazyLock::new(|| {
    let keys = format!("k1:{}=\n", "A".repeat(43));
    Tokens::new(&with_file(keys.as_bytes(), |path| SigningFile::read(path).expect("a good file")))
});

/// The value of a `Cookie` header.
pub fn cookie(bytes: &[u8]) -> Verdict {
    let header = HeaderValue::from_bytes(bytes).map_err(refused)?;
    let request = TestRequest::default().insert_header((COOKIE, header)).to_http_request();
    let cookie = request.cookie("slowdns_browser").ok_or("no such cookie")?;
    TOKENS.verify_session(cookie.value()).map(drop).ok_or_else(|| refused("not a session"))
}

/// A token of any kind.
pub fn token(bytes: &[u8]) -> Verdict {
    let token = text(bytes)?;
    let session = TOKENS.verify_session(token).is_some();
    let install = TOKENS.verify_install(token).is_some();
    let precheck = TOKENS.verify_precheck(token).is_some();
    match [session, install, precheck].into_iter().filter(|taken| *taken).count() {
        0 => Err("not a token of this server".into()),
        kinds => {
            assert_eq!(kinds, 1, "a token is of one kind");
            Ok(())
        }
    }
}

/// The fields of the console's forms that are parsed further.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Fields {
    key: String,
    value: String,
    find: String,
    server_id: String,
}

/// A form of the console. Taken are those that change a setting.
pub fn form(bytes: &[u8]) -> Verdict {
    let form = text(bytes)?;
    // Each of them ends with fields or with words.
    let _ = Query::<Change>::from_query(form);
    let _ = Query::<Credentials>::from_query(form);
    let _ = Query::<Ending>::from_query(form);
    let _ = Query::<Find>::from_query(form);
    let _ = Query::<ServerForm>::from_query(form);
    let Query(Fields { key, value, find, server_id }) = Query::from_query(form).map_err(refused)?;
    if let Some(hash) = KeyedHash::from_hex(&find) {
        assert_eq!(hash.to_hex(), find);
    }
    let _ = (InstallCode::parse(&find), ActivationId::parse(&find), ServerId::parse(&server_id));
    let file = Layers::of_text("").map_err(refused)?;
    let changed = file.with(&[(key, value)]).map_err(refused)?;
    let again = Layers::of_text(&changed.config.to_toml()).and_then(|layers| layers.with(&[]));
    assert!(again.is_ok(), "a changed setting cannot be read again");
    Ok(())
}

/// The most headers of a request that the HTTP parser reads.
const MOST_HEADERS: usize = 96;

/// What a connection sends, as far as the first head. What the HTTP parser takes for a whole head is one,
/// and it has the parser's path.
pub fn head(bytes: &[u8]) -> Verdict {
    let (mut whole, mut pieces) = (Framing::default(), Framing::default());
    whole.heard(bytes);
    bytes.chunks(7).for_each(|piece| pieces.heard(piece));
    assert_eq!((whole.is_within_head(), whole.path()), (pieces.is_within_head(), pieces.path()));
    let mut headers = [httparse::EMPTY_HEADER; MOST_HEADERS];
    let mut request = httparse::Request::new(&mut headers);
    let length = match request.parse(bytes).map_err(refused)? {
        httparse::Status::Complete(length) => length,
        httparse::Status::Partial => return Err("half a head".into()),
    };
    let mut framing = Framing::default();
    framing.heard(&bytes[..length]);
    assert!(!framing.is_within_head(), "the parser has read a whole head");
    let read = request.path.unwrap_or_default().trim_start_matches('/');
    // Only the beginning of a head is kept.
    let method = request.method.unwrap_or_default();
    if method.len() + read.len() < 100 && !read.contains("://") {
        assert_eq!(framing.path(), Some(format!("/{read}")));
    }
    Ok(())
}

/// A configuration file.
pub fn config(bytes: &[u8]) -> Verdict {
    let loaded =
        Layers::of_text(text(bytes)?).and_then(|layers| layers.with(&[])).map_err(refused)?;
    let printed = loaded.config.to_toml();
    let again = Layers::of_text(&printed).and_then(|layers| layers.with(&[]));
    assert!(again.is_ok(), "what print-config shows is refused: {printed}");
    Ok(())
}

/// Writes a file for a parser that takes a path.
fn with_file<T>(bytes: &[u8], read: impl FnOnce(&std::path::Path) -> T) -> T {
    let memory = PathBuf::from("/dev/shm");
    let folder = if memory.is_dir() { memory } else { std::env::temp_dir() };
    let thread = format!("{:?}", std::thread::current().id());
    let thread: String = thread.chars().filter(char::is_ascii_digit).collect();
    let path = folder.join(format!("iptunnel-feed-{}-{thread}", std::process::id()));
    std::fs::write(&path, bytes).expect("a writable folder");
    let outcome = read(&path);
    let _ = std::fs::remove_file(&path);
    outcome
}

/// A file of signing keys.
pub fn signing_keys(bytes: &[u8]) -> Verdict {
    let file = with_file(bytes, SigningFile::read).map_err(refused)?;
    assert!(!file.keys().is_empty());
    Ok(())
}

/// The file of the lookup key.
pub fn lookup(bytes: &[u8]) -> Verdict {
    with_file(bytes, lookup_key).map(drop).map_err(refused)
}

/// The file of the master token.
pub fn master(bytes: &[u8]) -> Verdict {
    let token = with_file(bytes, master_token).map_err(refused)?;
    assert!(token.len() >= 16);
    Ok(())
}

/// A file of signed heads of the audit log. Whether a signature is genuine is another question.
pub fn heads(bytes: &[u8]) -> Verdict {
    let heads = with_file(bytes, signed_head::read_file).map_err(refused)?;
    let key = LookupKey::new(&[0; LookupKey::BYTES]);
    let verifier = Verifier::with_lookup_key(key).ok_or("no key")?;
    for head in &heads {
        verifier.verify(head);
    }
    Ok(())
}

/// The manifest of a backup. What is read says the same when it is written.
pub fn manifest(bytes: &[u8]) -> Verdict {
    let manifest = Manifest::parse(text(bytes)?)?;
    manifest.size();
    let written = serde_json::to_string(&manifest).map_err(refused)?;
    assert_eq!(Manifest::parse(&written).as_ref(), Ok(&manifest));
    Ok(())
}

/// Made by `age-keygen`, for these files alone.
const AGE_KEY: &str = "AGE-SECRET-KEY-1NCZ2PXYR7X5PEJ96JY3PZP99C34LS28990D2NFPZ9T5JLSG9ASAQHRYF0G";

/// A file of age, to the address of the key above; else the file of a key, or an address.
pub fn age(bytes: &[u8]) -> Verdict {
    let opener = Opener::identities(AGE_KEY).ok_or("no key")?;
    if let Ok(text) = text(bytes) {
        let _ = Opener::identities(text);
        let _ = Recipient::address(text);
    }
    opener.decrypt(bytes).map(drop).map_err(refused)
}

/// An export of the audit log.
pub fn export(bytes: &[u8]) -> Verdict {
    for line in text(bytes)?.lines() {
        let row: Row = serde_json::from_str(line).map_err(refused)?;
        let event = row.event().ok_or("not an event")?;
        let mut written = Vec::new();
        event.encode(&mut written);
        // A text of more than 64 KB is cut.
        let (read, rest) = Event::decode(&written).expect("what was written can be read");
        let mut again = Vec::new();
        read.encode(&mut again);
        assert_eq!((again, rest), (written.clone(), &[][..]));
    }
    Ok(())
}

/// A record of the journal.
pub fn journal(bytes: &[u8]) -> Verdict {
    let changes = stored::decode_changes(bytes).map_err(refused)?;
    let written = stored::encode_changes(&changes).map_err(refused)?;
    assert_eq!(stored::decode_changes(&written).map_err(refused)?, changes);
    Ok(())
}

/// Rows of the store, and an event of the log.
pub fn rows(bytes: &[u8]) -> Verdict {
    let code = stored::decode_code(1, bytes).map(drop);
    let activation = stored::decode_activation(1, bytes).map(drop);
    let server = stored::decode_server(1, bytes).map(drop);
    let token = stored::decode_access_token(1, bytes, iptunnel_domain::Timestamp(0)).map(drop);
    let event = Event::decode(bytes);
    if let Some((event, rest)) = &event {
        let mut written = Vec::new();
        event.encode(&mut written);
        assert_eq!(Some(&*written), bytes.get(..bytes.len() - rest.len()), "an event has one form");
    }
    match event {
        Some(_) => Ok(()),
        None => code.or(activation).or(server).or(token).map_err(refused),
    }
}
