//! The way to the database: its address, TLS as libpq's `sslmode` names it, a pool of connections.

use crate::OpenError;
use deadpool_postgres::{Manager, ManagerConfig, Pool, RecyclingMethod, Runtime, Timeouts};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio_postgres::config::SslMode;
use tokio_postgres::{Config, NoTls};
use tokio_postgres_rustls::MakeRustlsConnect;

/// Connections of one server: one commits, one charges limits, one follows; the others read.
pub(super) const CONNECTIONS: usize = 8;
/// How long a connection may take to come about, to each address.
const CONNECT: Duration = Duration::from_secs(3);
/// How long a reader waits for a connection before the store counts as away.
const PATIENCE: Duration = Duration::from_secs(5);
/// What every session is told. A server that stands still in the middle of a transaction must not
/// hold its rows for long; no statement of this program runs for minutes. Statements are planned once,
/// and by index: what is planned while a table is empty would else go on to look at all of it when it
/// is full. (Those that join an array to a table are planned anew every few seconds: see `Planned`.)
const OPTIONS: &str = "-c idle_in_transaction_session_timeout=5000 -c statement_timeout=60000 \
     -c timezone=UTC -c client_min_messages=warning -c plan_cache_mode=force_generic_plan \
     -c enable_seqscan=off -c jit=off";

/// When statements that join arrays to tables were last planned. The database takes an array for ten
/// values, and a table for as large as it was then: planned while a table was nearly empty, such a
/// statement would go on to read all of it for each value.
#[derive(Debug, Default)]
pub(super) struct Planned(Option<Instant>);

impl Planned {
    /// For how long a plan is good: a table does not grow by much in that time.
    const FOR: Duration = Duration::from_secs(5);

    /// Lets the connection plan anew, where that is due.
    pub(super) async fn anew(
        &mut self,
        client: &tokio_postgres::Client,
    ) -> Result<(), tokio_postgres::Error> {
        if self.0.is_none_or(|at| at.elapsed() >= Self::FOR) {
            client.batch_execute("DISCARD PLANS").await?;
            self.0 = Some(Instant::now());
        }
        Ok(())
    }
}

/// Where the database is and how to reach it: a URL as libpq takes it.
///
/// # Errors
/// What is wrong with it. The text never holds the URL, which may hold a password.
pub(super) fn pool(url: &str) -> Result<Pool, OpenError> {
    let wrong = |problem: String| OpenError::Engine(format!("storage.url: {problem}"));
    let (url, tls) = Tls::take_from(url).map_err(wrong)?;
    let mut config: Config = url.parse().map_err(|error: tokio_postgres::Error| {
        let cause = std::error::Error::source(&error).map(ToString::to_string);
        wrong(cause.unwrap_or_else(|| error.to_string()))
    })?;
    config.ssl_mode(tls.mode());
    config.connect_timeout(CONNECT);
    config.tcp_user_timeout(Duration::from_secs(10));
    config.keepalives_idle(Duration::from_secs(10));
    config.application_name("iptunnel-server");
    let own = config.get_options().map(|own| format!(" {own}")).unwrap_or_default();
    config.options(format!("{OPTIONS}{own}"));
    let recycling = ManagerConfig { recycling_method: RecyclingMethod::Fast };
    let manager = match tls.connector().map_err(wrong)? {
        Some(connector) => Manager::from_config(config, connector, recycling),
        None => Manager::from_config(config, NoTls, recycling),
    };
    let timeouts =
        Timeouts { wait: Some(PATIENCE), create: Some(PATIENCE * 2), recycle: Some(PATIENCE) };
    let pool = Pool::builder(manager).max_size(CONNECTIONS).timeouts(timeouts);
    pool.runtime(Runtime::Tokio1).build().map_err(|error| wrong(error.to_string()))
}

/// What `sslmode` asks for, with the meaning it has in libpq.
enum Tls {
    Disable,
    /// Encrypted where the server can, whoever it is. `allow`, which would rather do without, as well:
    /// either takes what the server gives.
    Prefer,
    /// Encrypted, whoever the server is.
    Require,
    /// The server's certificate is signed by one of these.
    VerifyCa(String),
    /// Ditto, and it is for the host that was asked for.
    VerifyFull(String),
}

impl Tls {
    /// What a URL says of TLS, and the URL without it: tokio-postgres does not know all of it.
    fn take_from(url: &str) -> Result<(String, Self), String> {
        let (base, query) = url.split_once('?').unwrap_or((url, ""));
        let (mut mode, mut roots, mut rest) = ("prefer", None, Vec::new());
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            match pair.split_once('=') {
                Some(("sslmode", value)) => mode = value,
                Some(("sslrootcert", value)) => {
                    let decoded = percent_encoding::percent_decode_str(value).decode_utf8();
                    roots = Some(decoded.map_err(|error| error.to_string())?.into_owned());
                }
                _ => rest.push(pair),
            }
        }
        let tls = match (mode, roots) {
            ("disable", _) => Self::Disable,
            ("allow" | "prefer", _) => Self::Prefer,
            ("require", None) => Self::Require,
            ("require" | "verify-ca", Some(roots)) => Self::VerifyCa(roots),
            ("verify-full", Some(roots)) => Self::VerifyFull(roots),
            ("verify-ca" | "verify-full", None) => {
                return Err(format!("sslmode={mode} needs sslrootcert=FILE beside it"));
            }
            _ => {
                return Err(
                    "sslmode must be disable, allow, prefer, require, verify-ca or verify-full"
                        .into(),
                );
            }
        };
        let query = rest.join("&");
        let url = if query.is_empty() { base.to_owned() } else { format!("{base}?{query}") };
        Ok((url, tls))
    }

    fn mode(&self) -> SslMode {
        match self {
            Self::Disable => SslMode::Disable,
            Self::Prefer => SslMode::Prefer,
            _ => SslMode::Require,
        }
    }

    fn connector(&self) -> Result<Option<MakeRustlsConnect>, String> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?;
        let config = match self {
            Self::Disable => return Ok(None),
            Self::VerifyFull(roots) => {
                builder.with_root_certificates(read_roots(roots)?).with_no_client_auth()
            }
            Self::Prefer | Self::Require => {
                let anybody = Lenient { provider, signed_by: None };
                let dangerous = builder.dangerous();
                dangerous.with_custom_certificate_verifier(Arc::new(anybody)).with_no_client_auth()
            }
            Self::VerifyCa(roots) => {
                let roots = Arc::new(read_roots(roots)?);
                let signed_by =
                    WebPkiServerVerifier::builder_with_provider(roots, Arc::clone(&provider))
                        .build()
                        .map_err(|error| error.to_string())?;
                let any_host = Lenient { provider, signed_by: Some(signed_by) };
                let dangerous = builder.dangerous();
                dangerous.with_custom_certificate_verifier(Arc::new(any_host)).with_no_client_auth()
            }
        };
        Ok(Some(MakeRustlsConnect::new(config)))
    }
}

fn read_roots(path: &str) -> Result<RootCertStore, String> {
    let failed = |error: String| format!("sslrootcert {path}: {error}");
    let mut roots = RootCertStore::empty();
    let certificates = CertificateDer::pem_file_iter(path).map_err(|e| failed(e.to_string()))?;
    for certificate in certificates {
        let certificate = certificate.map_err(|error| failed(error.to_string()))?;
        roots.add(certificate).map_err(|error| failed(error.to_string()))?;
    }
    if roots.is_empty() { Err(failed("holds no certificate".into())) } else { Ok(roots) }
}

/// Looks at less of a certificate than the web does, as the modes below `verify-full` promise.
#[derive(Debug)]
struct Lenient {
    provider: Arc<CryptoProvider>,
    /// Who must have signed it; `None` where anybody may.
    signed_by: Option<Arc<WebPkiServerVerifier>>,
}

impl ServerCertVerifier for Lenient {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        host: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let Some(signed_by) = &self.signed_by else {
            return Ok(ServerCertVerified::assertion());
        };
        match signed_by.verify_server_cert(certificate, intermediates, host, ocsp, now) {
            Err(Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) => Ok(ServerCertVerified::assertion()),
            verdict => verdict,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_with_a_url_is_said_without_its_password() {
        for (url, words) in [
            ("postgres://u:geheim@h/d?sslmode=maybe", "sslmode must be"),
            ("postgres://u:geheim@h/d?sslmode=verify-full", "sslrootcert"),
            ("postgres://u:geheim@h:port/d", "storage.url"),
            ("postgres://u:geheim@h/d?nonsense=1", "nonsense"),
            ("postgres://u:geheim@h/d?sslmode=verify-ca&sslrootcert=/none", "/none"),
        ] {
            let error = pool(url).err().map(|error| error.to_string()).unwrap_or_default();
            assert!(error.contains(words) && !error.contains("geheim"), "{url}: {error}");
        }
    }

    #[test]
    fn several_hosts_and_all_modes_are_taken() {
        for query in [
            "",
            "?sslmode=disable",
            "?sslmode=allow",
            "?sslmode=prefer&target_session_attrs=read-write",
            "?target_session_attrs=read-write&sslmode=require",
        ] {
            assert!(pool(&format!("postgres://u:p@h1:5432,h2:5433/d{query}")).is_ok(), "{query}");
        }
    }
}
