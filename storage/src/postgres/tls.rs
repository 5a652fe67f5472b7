//! TLS for connections to the database, according to libpq's `sslmode`.

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
};
use std::sync::Arc;
use tokio_postgres::config::SslMode;
use tokio_postgres_rustls::MakeRustlsConnect;

/// The values of `sslmode`, with their meaning in libpq.
pub(super) enum Tls {
    Disable,
    /// Encrypted if the server supports it, without a check of the server. Also used for `allow`,
    /// which prefers no encryption: both accept what the server offers.
    Prefer,
    /// Encrypted, without a check of the server.
    Require,
    /// The server's certificate must be signed by one of these.
    VerifyCa(String),
    /// The certificate must be signed by one of these and name the host.
    VerifyFull(String),
}

impl Tls {
    /// Splits a URL into its TLS options and the rest: tokio-postgres does not know all of them.
    pub(super) fn take_from(url: &str) -> Result<(String, Self), String> {
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

    pub(super) fn mode(&self) -> SslMode {
        match self {
            Self::Disable => SslMode::Disable,
            Self::Prefer => SslMode::Prefer,
            _ => SslMode::Require,
        }
    }

    pub(super) fn connector(&self) -> Result<Option<MakeRustlsConnect>, String> {
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

/// Checks less of a certificate than browsers do, as the modes below `verify-full` promise.
#[derive(Debug)]
struct Lenient {
    provider: Arc<CryptoProvider>,
    /// The required signers; `None` if anybody may have signed it.
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
