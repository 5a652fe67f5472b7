//! The files of a certificate: how they are read, and what is wrong with them.

use crate::config::Config;
use crate::private_file::{self, Stamp, stamp};
use iptunnel_domain::Timestamp;
use rustls::crypto::CryptoProvider;
use rustls::crypto::ring::{default_provider, sign::any_supported_type};
use rustls::pki_types::pem::{Error as PemError, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::sign::{CertifiedKey, SigningKey, SingleCertAndKey};
use rustls::{Error as RustlsError, InconsistentKeys, RootCertStore, ServerConfig};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::{fs, io};
use x509_cert::Certificate as X509;
use x509_cert::der::Decode;
use zeroize::Zeroize;

/// What is wrong with a file of a certificate. The message says which setting and which file, and what to do.
#[derive(Debug, thiserror::Error)]
#[error("{setting}: {} {problem}", path.display())]
pub struct FileError {
    setting: &'static str,
    path: PathBuf,
    problem: Problem,
}

#[derive(Debug, thiserror::Error)]
enum Problem {
    #[error("does not exist; check the path")]
    Missing,
    #[error(
        "cannot be read: {0}; check that the server's user may read the file and enter its folder"
    )]
    Io(io::Error),
    #[error(
        "holds no certificate; it must hold, in PEM, the certificate and behind it those that signed it"
    )]
    NoCertificate,
    #[error("holds a certificate that cannot be read: {0}; write the file anew")]
    Certificate(String),
    #[error(
        "holds no private key that can be used; it must hold one in PEM (BEGIN PRIVATE KEY, BEGIN RSA \
         PRIVATE KEY or BEGIN EC PRIVATE KEY) that is not encrypted"
    )]
    NoKey,
    #[error(
        "holds a private key that cannot be used; it must be RSA of 2048 to 8192 bits, ECDSA or Ed25519"
    )]
    Key,
    #[error("is not the key of the certificate in {}; name the two files of one pair", .0.display())]
    OtherKey(PathBuf),
}

/// The names of a listener's settings.
#[derive(Debug)]
struct Names {
    cert: &'static str,
    key: &'static str,
}

const PUBLIC: Names = Names { cert: "server.tls_cert", key: "server.tls_key" };
const OPERATORS: Names = Names { cert: "admin.tls_cert", key: "admin.tls_key" };
const CLIENT_CA: &str = "admin.tls_client_ca";

/// The files of one listener's certificate.
#[derive(Debug)]
pub struct Files {
    /// The name of the listener, as in the log.
    pub listener: &'static str,
    names: Names,
    /// The certificate, with those that signed it.
    pub cert: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    client_ca: Option<PathBuf>,
}

fn given(path: &Path) -> Option<PathBuf> {
    (!path.as_os_str().is_empty()).then(|| path.to_owned())
}

/// A certificate that can be served.
#[derive(Debug)]
pub struct Certificate {
    /// How connections are accepted with it.
    pub config: Arc<ServerConfig>,
    /// The certificate itself.
    pub leaf: CertificateDer<'static>,
    /// The time from which it is valid.
    pub begins: Timestamp,
    /// The time until which it is valid.
    pub ends: Timestamp,
}

impl Files {
    /// Returns the files of the public listener. `None`: it speaks plain HTTP.
    pub fn of_public(config: &Config) -> Option<Self> {
        let server = &config.server;
        let cert = given(&server.tls_cert)?;
        let key = server.tls_key.clone();
        Some(Self { listener: "public", names: PUBLIC, cert, key, client_ca: None })
    }

    /// Returns the files of the operators' listener. `None`: it speaks plain HTTP.
    pub fn of_operators(config: &Config) -> Option<Self> {
        let admin = &config.admin;
        let (cert, client_ca) = (given(&admin.tls_cert)?, given(&admin.tls_client_ca));
        let key = admin.tls_key.clone();
        Some(Self { listener: "operators", names: OPERATORS, cert, key, client_ca })
    }

    /// Returns the files of all listeners that speak HTTPS.
    pub fn of_all(config: &Config) -> impl Iterator<Item = Self> {
        [Self::of_public(config), Self::of_operators(config)].into_iter().flatten()
    }

    /// Reads the files and checks that they belong together. Dates are not checked: callers refuse a
    /// certificate that is over, and the server must start nevertheless.
    ///
    /// # Errors
    /// One of the files cannot be read or used, or the key is that of another certificate.
    pub fn read(&self) -> Result<Certificate, FileError> {
        let provider = Arc::new(default_provider());
        let chain = read_certificates(self.names.cert, &self.cert)?;
        let at = |problem| FileError::new(self.names.cert, &self.cert, problem);
        let leaf = chain.first().cloned().ok_or_else(|| at(Problem::NoCertificate))?;
        let (begins, ends) = validity(&leaf).map_err(|why| at(Problem::Certificate(why)))?;
        // Callers refuse the whole chain for one that they cannot read.
        for certificate in &chain {
            validity(certificate).map_err(|why| at(Problem::Certificate(why)))?;
        }
        let certified = CertifiedKey::new(chain, self.read_key()?);
        match certified.keys_match() {
            Ok(()) | Err(RustlsError::InconsistentKeys(InconsistentKeys::Unknown)) => {}
            Err(RustlsError::InconsistentKeys(_)) => {
                let problem = Problem::OtherKey(self.cert.clone());
                return Err(FileError::new(self.names.key, &self.key, problem));
            }
            Err(error) => return Err(at(Problem::Certificate(error.to_string()))),
        }
        let config = self.accept_with(certified, provider)?;
        Ok(Certificate { config: Arc::new(config), leaf, begins, ends })
    }

    fn accept_with(
        &self,
        certified: CertifiedKey,
        provider: Arc<CryptoProvider>,
    ) -> Result<ServerConfig, FileError> {
        let unusable = |error: &dyn ToString| {
            let problem = Problem::Certificate(error.to_string());
            FileError::new(self.names.cert, &self.cert, problem)
        };
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(|error| unusable(&error))?;
        let builder = match &self.client_ca {
            None => builder.with_no_client_auth(),
            Some(path) => {
                let at = |problem| FileError::new(CLIENT_CA, path, problem);
                let mut roots = RootCertStore::empty();
                for root in read_certificates(CLIENT_CA, path)? {
                    let added = roots.add(root);
                    added.map_err(|error| at(Problem::Certificate(error.to_string())))?;
                }
                let verifier =
                    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
                let verifier =
                    verifier.map_err(|error| at(Problem::Certificate(error.to_string())))?;
                builder.with_client_cert_verifier(verifier)
            }
        };
        let mut config = builder.with_cert_resolver(Arc::new(SingleCertAndKey::from(certified)));
        config.alpn_protocols = vec![HTTP_2.to_vec(), b"http/1.1".to_vec()];
        Ok(config)
    }

    fn read_key(&self) -> Result<Arc<dyn SigningKey>, FileError> {
        let at = |problem| FileError::new(self.names.key, &self.key, problem);
        let content = read_file(self.names.key, &self.key)?;
        let mut key = PrivateKeyDer::from_pem_slice(&content).map_err(|_| at(Problem::NoKey))?;
        let signing = any_supported_type(&key);
        key.zeroize();
        // The error of the library is not shown: it may have looked at the key.
        signing.map_err(|_| at(Problem::Key))
    }

    /// Returns what changes when one of the files changes. `None` for a file that is not there.
    pub fn stamps(&self) -> Stamps {
        let of = |path: &Path| fs::metadata(path).ok().map(|found| stamp(&found));
        [of(&self.cert), of(&self.key), self.client_ca.as_deref().and_then(of)]
    }
}

/// The stamps of the files of a certificate.
pub type Stamps = [Option<Stamp>; 3];

/// The name of HTTP/2 in a TLS handshake (RFC 9113, section 3.2).
pub const HTTP_2: &[u8] = b"h2";

impl FileError {
    fn new(setting: &'static str, path: &Path, problem: Problem) -> Self {
        Self { setting, path: path.to_owned(), problem }
    }
}

fn read_file(setting: &'static str, path: &Path) -> Result<zeroize::Zeroizing<Vec<u8>>, FileError> {
    let content = private_file::read(path);
    let content = content.map_err(|error| FileError::new(setting, path, Problem::Io(error)))?;
    content.ok_or_else(|| FileError::new(setting, path, Problem::Missing))
}

/// Reads the certificates of a file, at least one.
///
/// # Errors
/// The file cannot be read, or holds none.
pub fn read_certificates(
    setting: &'static str,
    path: &Path,
) -> Result<Vec<CertificateDer<'static>>, FileError> {
    let at = |problem| FileError::new(setting, path, problem);
    let content = read_file(setting, path)?;
    let all: Result<Vec<_>, PemError> = CertificateDer::pem_slice_iter(&content).collect();
    let all = all.map_err(|error| at(Problem::Certificate(error.to_string())))?;
    if all.is_empty() { Err(at(Problem::NoCertificate)) } else { Ok(all) }
}

/// Returns the times between which a certificate is valid.
fn validity(certificate: &CertificateDer<'_>) -> Result<(Timestamp, Timestamp), String> {
    let read = X509::from_der(certificate).map_err(|error| error.to_string())?;
    let validity = read.tbs_certificate.validity;
    let at = |time: x509_cert::time::Time| Timestamp(time.to_unix_duration().as_secs());
    Ok((at(validity.not_before), at(validity.not_after)))
}
