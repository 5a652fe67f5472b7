//! A code survives the reload of its page: the browser keeps it in a cookie that only this server can read.
//!
//! The cookie is encrypted and authenticated, with a key that is derived from the lookup key, so that each
//! server of a store reads it and none has to remember it. It is bound to the browser session that got the
//! code, and goes to the page alone. It is of no use without that session's cookie.

use super::session::session;
use super::watch::{Standing, standing};
use crate::config::Product;
use crate::http::cookies::cookies;
use crate::os::random_bytes;
use crate::state::State;
use actix_web::HttpRequest;
use actix_web::cookie::time::Duration;
use actix_web::cookie::{Cookie, SameSite};
use actix_web::web::Data;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use iptunnel_domain::Timestamp;
use iptunnel_domain::code::InstallCode;
use iptunnel_domain::lookup::{KeyedHash, LookupKey, Purpose};
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};

/// Returns the name of the cookie with the code.
fn cookie_name(product: &str) -> String {
    format!("{product}_code")
}

/// Returns the key of the cookies. Its halves are two keyed hashes, as one has half its length.
fn key(lookup: &LookupKey) -> Option<LessSafeKey> {
    let half = |name: &[u8]| lookup.hash(Purpose::CodeCookie, name).0;
    let bytes = [half(b"first"), half(b"second")].concat();
    UnboundKey::new(&CHACHA20_POLY1305, &bytes).ok().map(LessSafeKey::new)
}

/// Encrypts a code for a browser session. `None` if there is no randomness.
fn seal(lookup: &LookupKey, session: KeyedHash, code: &InstallCode) -> Option<String> {
    let nonce: [u8; NONCE_LEN] = random_bytes().ok()?;
    let mut text = code.reveal().into_bytes();
    let (unique, bound) = (Nonce::assume_unique_for_key(nonce), Aad::from(session.0));
    key(lookup)?.seal_in_place_append_tag(unique, bound, &mut text).ok()?;
    Some(URL_SAFE_NO_PAD.encode([&nonce[..], &text].concat()))
}

/// Decrypts a cookie of this session. `None` if it is another's, or not one that [`seal`] made.
fn unseal(lookup: &LookupKey, session: KeyedHash, cookie: &str) -> Option<InstallCode> {
    let bytes = URL_SAFE_NO_PAD.decode(cookie).ok()?;
    let (nonce, text) = bytes.split_first_chunk::<NONCE_LEN>()?;
    let mut text = text.to_vec();
    let (unique, bound) = (Nonce::assume_unique_for_key(*nonce), Aad::from(session.0));
    let text = key(lookup)?.open_in_place(unique, bound, &mut text).ok()?;
    InstallCode::parse(std::str::from_utf8(text).ok()?).ok()
}

fn build<'c>(state: &State, product: &Product, value: String, seconds: u64) -> Cookie<'c> {
    Cookie::build(cookie_name(&product.name), value)
        // The page alone shows the code again.
        .path(format!("/{}", product.name))
        .http_only(true)
        .same_site(SameSite::Strict)
        .secure(state.live.config.load().server.public_url.is_https())
        .max_age(Duration::seconds(i64::try_from(seconds).unwrap_or(i64::MAX)))
        .finish()
}

fn session_hash(state: &State, request: &HttpRequest, product: &Product) -> Option<KeyedHash> {
    let pass = session(state, request, &product.name).ok()?;
    Some(state.live.lookup.hash(Purpose::Session, pass.id.as_bytes()))
}

/// Returns the cookie by which the page shows a new code again. `None` if there is no session, or no
/// randomness: then a reload loses the code.
pub(super) fn keep<'c>(
    state: &State,
    request: &HttpRequest,
    product: &Product,
    code: &InstallCode,
) -> Option<Cookie<'c>> {
    let value = seal(&state.live.lookup, session_hash(state, request, product)?, code)?;
    // A code that is given back may live for so long.
    Some(build(state, product, value, state.live.tuning.load().lifetimes.max_lifetime))
}

/// A code that its page shows again.
pub(super) struct Again {
    /// The full code, a secret.
    pub code: String,
    /// Where it stands.
    pub standing: Standing,
}

/// What the cookie of a request says.
pub(super) enum Kept<'c> {
    /// There is no code to show.
    Nothing,
    /// The code of the session, neither used nor over.
    Code(Again),
    /// The code is used or over. The cookie, which removes it.
    Over(Cookie<'c>),
}

/// Returns the code of the browser session that it may see again.
pub(super) async fn kept<'c>(
    state: &Data<State>,
    request: &HttpRequest,
    product: &Product,
    now: Timestamp,
) -> Kept<'c> {
    let name = cookie_name(&product.name);
    let Some(session) = session_hash(state, request, product) else { return Kept::Nothing };
    let found =
        cookies(request, &name).find_map(|cookie| unseal(&state.live.lookup, session, cookie));
    let Some(code) = found else { return Kept::Nothing };
    let hash = code.hash(&state.live.lookup);
    match standing(state, hash, session, now).await {
        Ok(Some(standing)) => Kept::Code(Again { code: code.reveal(), standing }),
        Ok(None) => Kept::Over(build(state, product, String::new(), 0)),
        // The next reload may show it.
        Err(_) => Kept::Nothing,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_is_read_by_its_own_session_alone_and_not_seen_in_the_cookie() {
        let (lookup, other) = (LookupKey::new(&[7; 32]), LookupKey::new(&[8; 32]));
        let (mine, theirs) = (KeyedHash([1; 16]), KeyedHash([2; 16]));
        let code = InstallCode::parse("IPT-SD-V8LXPQ-7SRSDT-QM5V2S").unwrap();
        let cookie = seal(&lookup, mine, &code).unwrap();
        assert!(unseal(&lookup, mine, &cookie) == Some(code.clone()));
        assert!(unseal(&lookup, theirs, &cookie).is_none());
        assert!(unseal(&other, mine, &cookie).is_none());
        let bytes = URL_SAFE_NO_PAD.decode(&cookie).unwrap();
        assert!(!String::from_utf8_lossy(&bytes).contains("V8LXPQ"));
        for (index, _) in bytes.iter().enumerate() {
            let mut changed = bytes.clone();
            changed[index] ^= 1;
            assert!(unseal(&lookup, mine, &URL_SAFE_NO_PAD.encode(changed)).is_none());
        }
        assert!(unseal(&lookup, mine, "").is_none() && unseal(&lookup, mine, "AAAA").is_none());
        assert_ne!(cookie, seal(&lookup, mine, &code).unwrap(), "each has a nonce of its own");
    }
}
