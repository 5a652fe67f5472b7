//! Signed tokens: precheck, install, and the browser's session.
//!
//! Tokens are JWTs whose header is exactly `{"alg":"HS256"}`. Each kind has its own audience and its
//! own key, so that no kind is accepted as another. The library signs and checks signatures. Here the
//! constant header is compared as text, and the claims are read once, which takes half the time of the
//! library's own decoding. This server checks expiry, with [`Lifespan`]: a token whose issue time is in
//! the future also counts as expired.

use crate::secrets::SigningFile;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit, Mac};
use iptunnel_domain::activation::{Activation, ActivationId, Holder};
use iptunnel_domain::code::CodeHash;
use iptunnel_domain::lookup::KeyedHash;
use iptunnel_domain::time::{Lifespan, Timestamp};
use jsonwebtoken::crypto::{CryptoProvider, JwtSigner, JwtVerifier, KeyUtils};
use jsonwebtoken::signature::{Error as SignatureError, Signer, Verifier};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, crypto};
use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize};
use sha2::{Digest, Sha256};
use std::sync::Arc;

const ISSUER: &str = "iptunnel";
/// `{"alg":"HS256"}` in base64url, with the dot behind it.
const HEADER: &str = "eyJhbGciOiJIUzI1NiJ9.";
/// The usual length of a token's claims, in bytes. Longer ones grow the buffer once.
const TYPICAL_CLAIMS: usize = 512;

/// The kinds of token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Precheck,
    Install,
    Session,
}

impl Kind {
    const ALL: [Self; 3] = [Self::Precheck, Self::Install, Self::Session];

    const fn audience(self) -> &'static str {
        match self {
            Self::Precheck => "iptunnel:precheck",
            Self::Install => "iptunnel:install",
            Self::Session => "iptunnel:session",
        }
    }

    /// Checks that claims are by our issuer and for this kind.
    fn check(self, iss: &str, aud: &str) -> Option<()> {
        ((iss, aud) == (ISSUER, self.audience())).then_some(())
    }
}

/// HS256 with the HMAC and SHA-2 crates: the only cryptography that these tokens need.
struct Hs256(Hmac<Sha256>);

impl Hs256 {
    fn new(key: &[u8]) -> jsonwebtoken::errors::Result<Self> {
        Hmac::new_from_slice(key)
            .map(Self)
            .map_err(|_| jsonwebtoken::errors::ErrorKind::InvalidKeyFormat.into())
    }
}

impl Signer<Vec<u8>> for Hs256 {
    fn try_sign(&self, message: &[u8]) -> Result<Vec<u8>, SignatureError> {
        let mut mac = self.0.clone();
        mac.update(message);
        Ok(mac.finalize().into_bytes().to_vec())
    }
}

impl Verifier<Vec<u8>> for Hs256 {
    fn verify(&self, message: &[u8], signature: &Vec<u8>) -> Result<(), SignatureError> {
        let mut mac = self.0.clone();
        mac.update(message);
        // The library compares in constant time.
        mac.verify_slice(signature).map_err(|_| SignatureError::new())
    }
}

impl JwtSigner for Hs256 {
    fn algorithm(&self) -> Algorithm {
        Algorithm::HS256
    }
}

impl JwtVerifier for Hs256 {
    fn algorithm(&self) -> Algorithm {
        Algorithm::HS256
    }
}

static PROVIDER: CryptoProvider = CryptoProvider {
    signer_factory: |_, key| Ok(Box::new(Hs256::new(key.as_bytes())?)),
    verifier_factory: |_, key| Ok(Box::new(Hs256::new(key.try_get_as_bytes()?)?)),
    key_utils: KeyUtils::new_unimplemented(),
};

/// One signing key, with the key derived from it for each kind of token.
struct Key {
    kid: Arc<str>,
    /// SHA-256 of the secret: shows that a key was replaced under the same name.
    digest: [u8; 32],
    kinds: [(EncodingKey, DecodingKey); 3],
}

impl Key {
    fn of(&self, kind: Kind) -> &(EncodingKey, DecodingKey) {
        let [precheck, install, session] = &self.kinds;
        match kind {
            Kind::Precheck => precheck,
            Kind::Install => install,
            Kind::Session => session,
        }
    }
}

/// The keys that sign and verify tokens. The first one signs.
pub struct Tokens {
    keys: Vec<Key>,
}

impl std::fmt::Debug for Tokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.keys.iter().map(|key| &key.kid)).finish()
    }
}

/// The claims to write: those of every token, and those of its kind.
#[derive(Serialize)]
struct Claims<'a, Own> {
    iss: &'static str,
    aud: &'static str,
    sub: &'a str,
    iat: u64,
    exp: u64,
    jti: &'a str,
    #[serde(flatten)]
    own: Own,
}

#[derive(Serialize)]
struct PrecheckOwn<'a> {
    code_hash: &'a str,
    machine_id_hash: &'a str,
    ssh_fingerprint_hash: &'a str,
    product: &'a str,
    installer_version: &'a str,
}

#[derive(Serialize)]
struct InstallOwn<'a> {
    machine_id_hash: String,
    ssh_fingerprint_hash: String,
    public_ip: String,
    hostname: &'a str,
    requested_ref: &'a str,
    installer_version: &'a str,
}

#[derive(Serialize)]
struct SessionOwn<'a> {
    user_agent_hash: &'a str,
}

/// The claims that are read from a precheck token.
#[derive(Deserialize)]
struct PrecheckClaims<'a> {
    iss: &'a str,
    aud: &'a str,
    iat: u64,
    exp: u64,
    code_hash: Hex,
    machine_id_hash: Hex,
    ssh_fingerprint_hash: Hex,
    product: String,
}

/// The claims that are read from an install token.
#[derive(Deserialize)]
struct InstallClaims<'a> {
    iss: &'a str,
    aud: &'a str,
    sub: &'a str,
    iat: u64,
    exp: u64,
}

/// The claims that are read from a session cookie.
#[derive(Deserialize)]
struct SessionClaims<'a> {
    iss: &'a str,
    aud: &'a str,
    sub: &'a str,
    iat: u64,
    exp: u64,
    user_agent_hash: Hex,
}

/// A keyed hash in hexadecimal digits.
struct Hex(KeyedHash);

impl<'de> Deserialize<'de> for Hex {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <&str>::deserialize(deserializer)?;
        KeyedHash::from_hex(text).map(Self).ok_or_else(|| D::Error::custom("not a hash"))
    }
}

/// The content of a precheck token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PrecheckPass {
    /// The code that was prechecked.
    pub code: CodeHash,
    /// The machine that prechecked it.
    pub holder: Holder,
    /// The product's name.
    pub product: String,
    /// From the precheck until the token expires.
    pub life: Lifespan,
}

/// The content of a session cookie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionPass {
    /// The session's id.
    pub id: String,
    /// The keyed hash of the browser's `User-Agent`.
    pub user_agent: KeyedHash,
    /// From the signing of the cookie until it expires.
    pub life: Lifespan,
}

impl SessionPass {
    /// Returns whether the session may be renewed under its id: it expired at most `grace` seconds ago.
    pub const fn is_renewable(&self, now: Timestamp, grace: u64) -> bool {
        !Lifespan { until: self.life.until.plus(grace), ..self.life }.is_over(now)
    }
}

/// The part of an install token that the server uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InstallPass {
    /// The activation that the token belongs to.
    pub activation: ActivationId,
    /// From the opening of the activation until the token expires.
    pub life: Lifespan,
}

/// Returns the lifespan from the claims `iat` and `exp`.
const fn lifespan(iat: u64, exp: u64) -> Lifespan {
    Lifespan { from: Timestamp(iat), until: Timestamp(exp) }
}

impl Tokens {
    /// Creates the tokens' keys from the file of signing keys.
    pub fn new(file: &SigningFile) -> Self {
        // Only the first call in a process has an effect; later calls would install the same provider.
        let _ = PROVIDER.install_default();
        let keys = file
            .keys()
            .iter()
            .map(|secret| Key {
                kid: secret.kid.as_str().into(),
                digest: Sha256::digest(*secret.bytes).into(),
                kinds: Kind::ALL.map(|kind| derive(&*secret.bytes, kind)),
            })
            .collect();
        Self { keys }
    }

    /// Returns the name of the signing key.
    pub fn signing_key(&self) -> Arc<str> {
        self.keys.first().map_or_else(|| "".into(), |key| Arc::clone(&key.kid))
    }

    /// Returns whether both have the same keys in the same order.
    pub fn has_keys_of(&self, other: &Self) -> bool {
        let keys = |tokens: &'_ Self| -> Vec<(Arc<str>, [u8; 32])> {
            tokens.keys.iter().map(|key| (Arc::clone(&key.kid), key.digest)).collect()
        };
        keys(self) == keys(other)
    }

    /// Returns a hash of all keys with their names, in whatever order they are.
    pub fn digest(&self) -> [u8; 32] {
        let mut keys: Vec<_> = self.keys.iter().map(|key| (&*key.kid, key.digest)).collect();
        keys.sort_unstable();
        let mut hash = Sha256::new();
        for (kid, digest) in keys {
            hash.update(digest);
            hash.update(kid);
            hash.update(b"\n");
        }
        hash.finalize().into()
    }

    /// Returns the names of all keys, the signing key first.
    pub fn key_names(&self) -> String {
        self.keys.iter().map(|key| &*key.kid).collect::<Vec<_>>().join(", ")
    }

    fn sign(&self, kind: Kind, kid: Option<&str>, claims: &impl Serialize) -> Option<String> {
        let named = self.keys.iter().find(|key| kid.is_some_and(|kid| *key.kid == *kid));
        let key = named.or(self.keys.first())?;
        let mut json = Vec::with_capacity(TYPICAL_CLAIMS);
        serde_json::to_writer(&mut json, claims).ok()?;
        // A signature takes 43 characters, and the dot before it one.
        let length = HEADER.len() + json.len().div_ceil(3) * 4 + 44;
        let mut token = String::with_capacity(length);
        token.push_str(HEADER);
        URL_SAFE_NO_PAD.encode_string(&json, &mut token);
        let signature = crypto::sign(token.as_bytes(), &key.of(kind).0, Algorithm::HS256).ok()?;
        token.push('.');
        token.push_str(&signature);
        Some(token)
    }

    /// Returns the claims of a token, as JSON, if one of the keys for this kind has signed it.
    fn verify(&self, kind: Kind, token: &str) -> Option<Vec<u8>> {
        let (message, signature) = token.rsplit_once('.')?;
        let claims = message.strip_prefix(HEADER)?;
        let is_signed_by = |key: &Key| {
            let key = &key.of(kind).1;
            crypto::verify(signature, message.as_bytes(), key, Algorithm::HS256).unwrap_or(false)
        };
        self.keys.iter().any(is_signed_by).then(|| URL_SAFE_NO_PAD.decode(claims).ok())?
    }

    /// Returns a signed precheck token. `None` only if there is no key.
    pub fn sign_precheck(
        &self,
        pass: &PrecheckPass,
        installer_version: &str,
        jti: &str,
    ) -> Option<String> {
        let code_hash = pass.code.0.to_hex();
        let (machine, fingerprint) =
            (pass.holder.machine.to_hex(), pass.holder.fingerprint.to_hex());
        let claims = Claims {
            iss: ISSUER,
            aud: Kind::Precheck.audience(),
            sub: &code_hash,
            iat: pass.life.from.0,
            exp: pass.life.until.0,
            jti,
            own: PrecheckOwn {
                code_hash: &code_hash,
                machine_id_hash: &machine,
                ssh_fingerprint_hash: &fingerprint,
                product: &pass.product,
                installer_version,
            },
        };
        self.sign(Kind::Precheck, None, &claims)
    }

    /// Returns the content of a genuine precheck token. It may have expired.
    pub fn verify_precheck(&self, token: &str) -> Option<PrecheckPass> {
        let json = self.verify(Kind::Precheck, token)?;
        let claims: PrecheckClaims<'_> = serde_json::from_slice(&json).ok()?;
        Kind::Precheck.check(claims.iss, claims.aud)?;
        Some(PrecheckPass {
            code: CodeHash(claims.code_hash.0),
            holder: Holder {
                machine: claims.machine_id_hash.0,
                fingerprint: claims.ssh_fingerprint_hash.0,
            },
            product: claims.product,
            life: lifespan(claims.iat, claims.exp),
        })
    }

    /// Returns the install token of an activation. It is the same, byte for byte, as long as the key
    /// exists that signed it first. If that key was removed, the old token is invalid, and the current
    /// signing key signs a new one. `None` only if there is no key.
    pub fn sign_install(&self, activation: &Activation) -> Option<String> {
        let request = &activation.request;
        let id = activation.at.id.reveal();
        let claims = Claims {
            iss: ISSUER,
            aud: Kind::Install.audience(),
            sub: &id,
            iat: activation.opened_at.0,
            exp: activation.expires_at.0,
            // An activation has one token, so its id without the prefix also identifies the token.
            jti: id.trim_start_matches("act_"),
            own: InstallOwn {
                machine_id_hash: request.holder.machine.to_hex(),
                ssh_fingerprint_hash: request.holder.fingerprint.to_hex(),
                public_ip: request.binding.public_ip.to_string(),
                hostname: request.binding.hostname.as_str(),
                requested_ref: &request.requested_ref,
                installer_version: &request.installer_version,
            },
        };
        self.sign(Kind::Install, Some(&request.signing_key), &claims)
    }

    /// Returns the content of a genuine install token. It may have expired.
    pub fn verify_install(&self, token: &str) -> Option<InstallPass> {
        let json = self.verify(Kind::Install, token)?;
        let claims: InstallClaims<'_> = serde_json::from_slice(&json).ok()?;
        Kind::Install.check(claims.iss, claims.aud)?;
        Some(InstallPass {
            activation: ActivationId::parse(claims.sub)?,
            life: lifespan(claims.iat, claims.exp),
        })
    }

    /// Returns a signed session cookie. `None` only if there is no key.
    pub fn sign_session(&self, pass: &SessionPass) -> Option<String> {
        let user_agent_hash = pass.user_agent.to_hex();
        let claims = Claims {
            iss: ISSUER,
            aud: Kind::Session.audience(),
            sub: &pass.id,
            iat: pass.life.from.0,
            exp: pass.life.until.0,
            jti: &pass.id,
            own: SessionOwn { user_agent_hash: &user_agent_hash },
        };
        self.sign(Kind::Session, None, &claims)
    }

    /// Returns the content of a genuine session cookie. It may have expired.
    pub fn verify_session(&self, token: &str) -> Option<SessionPass> {
        let json = self.verify(Kind::Session, token)?;
        let claims: SessionClaims<'_> = serde_json::from_slice(&json).ok()?;
        Kind::Session.check(claims.iss, claims.aud)?;
        Some(SessionPass {
            user_agent: claims.user_agent_hash.0,
            id: claims.sub.to_owned(),
            life: lifespan(claims.iat, claims.exp),
        })
    }
}

/// Derives the key for one kind of token.
fn derive(secret: &[u8], kind: Kind) -> (EncodingKey, DecodingKey) {
    let derived = match Hs256::new(secret) {
        Ok(Hs256(mut mac)) => {
            mac.update(kind.audience().as_bytes());
            mac.finalize().into_bytes()
        }
        // HMAC accepts keys of any length.
        Err(_) => Default::default(),
    };
    (EncodingKey::from_secret(&derived), DecodingKey::from_secret(&derived))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file() -> (tempfile::TempDir, SigningFile) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys");
        let key = base64::engine::general_purpose::STANDARD.encode([1; 32]);
        std::fs::write(&path, format!("k1:{key}\n")).unwrap();
        let file = SigningFile::read(&path).unwrap();
        (folder, file)
    }

    fn pass() -> PrecheckPass {
        PrecheckPass {
            code: CodeHash(KeyedHash([1; 16])),
            holder: Holder { machine: KeyedHash([2; 16]), fingerprint: KeyedHash([3; 16]) },
            product: "slowdns".into(),
            life: lifespan(100, 1000),
        }
    }

    #[test]
    fn the_header_is_exactly_the_one_in_the_api_reference() {
        let (_folder, file) = file();
        let token = Tokens::new(&file).sign_precheck(&pass(), "1", "j").unwrap();
        let header = URL_SAFE_NO_PAD.decode(token.split('.').next().unwrap()).unwrap();
        assert_eq!(header, br#"{"alg":"HS256"}"#);
        assert!(token.starts_with("eyJhbGciOiJIUzI1NiJ9."));
    }

    #[test]
    fn a_token_verifies_with_an_older_key_too_and_is_refused_as_any_other_kind() {
        let (_folder, mut file) = file();
        let token = Tokens::new(&file).sign_precheck(&pass(), "1", "j").unwrap();
        file.add(Timestamp(1)).unwrap();
        file.promote(None).unwrap();
        let tokens = Tokens::new(&file);
        assert_eq!(tokens.verify_precheck(&token), Some(pass()));
        assert_eq!(tokens.verify_install(&token), None);
        assert_eq!(tokens.verify_session(&token), None);
        file.prune(None).unwrap();
        assert_eq!(Tokens::new(&file).verify_precheck(&token), None);
    }

    #[test]
    fn a_token_of_each_kind_contains_its_lifespan() {
        let (_folder, file) = file();
        let tokens = Tokens::new(&file);
        let user_agent = KeyedHash([4; 16]);
        let session = SessionPass { id: "s".into(), user_agent, life: lifespan(7, 9) };
        let cookie = tokens.sign_session(&session).unwrap();
        assert_eq!(tokens.verify_session(&cookie), Some(session.clone()));
        assert!(session.is_renewable(Timestamp(9), 1) && !session.is_renewable(Timestamp(10), 1));
        let ahead = SessionPass { life: lifespan(1_000_000, 1_000_900), ..session };
        assert!(ahead.life.is_over(Timestamp(7)) && !ahead.is_renewable(Timestamp(7), 86_400));
    }

    #[test]
    fn another_key_under_the_same_name_is_another_key() {
        let (folder, file) = file();
        let tokens = Tokens::new(&file);
        assert!(Tokens::new(&file).has_keys_of(&tokens));
        let path = folder.path().join("other.keys");
        let secret = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, [7; 32]);
        std::fs::write(&path, format!("{}:{secret}\n", tokens.key_names())).unwrap();
        let other = Tokens::new(&SigningFile::read(&path).unwrap());
        assert_eq!(other.key_names(), tokens.key_names());
        assert!(!other.has_keys_of(&tokens));
    }

    #[test]
    fn a_token_that_this_server_did_not_sign_is_refused() {
        let (_folder, file) = file();
        let tokens = Tokens::new(&file);
        let token = tokens.sign_precheck(&pass(), "1", "j").unwrap();
        let (head, signature) = token.rsplit_once('.').unwrap();
        let (_, claims) = head.split_once('.').unwrap();
        let unsigned = URL_SAFE_NO_PAD.encode(br#"{"alg":"none"}"#);
        for wrong in [
            "".to_owned(),
            "a.b.c".to_owned(),
            head.to_owned(),
            format!("{unsigned}.{claims}."),
            format!("{unsigned}.{claims}.{signature}"),
            format!("{}.{claims}.{signature}", URL_SAFE_NO_PAD.encode(br#"{"alg": "HS256"}"#)),
            format!("{head}.{signature}="),
            format!("{head}.{}", URL_SAFE_NO_PAD.encode([0; 32])),
            format!("{token}x"),
        ] {
            assert_eq!(tokens.verify_precheck(&wrong), None, "{wrong}");
        }
    }
}
