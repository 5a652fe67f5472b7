//! Certificates for tests, made by openssl.

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use tempfile::TempDir;

/// Functions of a shell. Each leaves NAME.crt and NAME.key: `authority NAME` signs others, `certificate NAME
/// SIGNER NAMES DAYS` is for the names that it is given, such as `DNS:localhost,IP:127.0.0.1`.
pub const FUNCTIONS: &str = "
    new_key='-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes'
    authority() {
        openssl req -x509 $new_key -days 3650 -subj /CN=$1 -keyout $1.key -out $1.crt
    }
    certificate() {
        openssl req $new_key -subj /CN=$1 -keyout $1.key -out $1.csr
        echo subjectAltName=$3 > $1.names
        openssl x509 -req -in $1.csr -CA $2.crt -CAkey $2.key -CAcreateserial -days $4 \\
            -extfile $1.names -out $1.crt
    }
";

/// A folder with two authorities, `ca` and `other`, and certificates of theirs that a test makes.
pub struct Certificates {
    folder: TempDir,
}

impl Certificates {
    /// Makes a certificate `server` for this machine, signed by `ca`, and what `script` makes.
    pub fn new(script: &str) -> Self {
        let new = Self { folder: TempDir::new().unwrap() };
        new.shell("authority ca; authority other");
        new.shell("certificate server ca DNS:localhost,IP:127.0.0.1 3650");
        new.shell(script);
        new
    }

    /// Runs a script in the folder, with [`FUNCTIONS`].
    pub fn shell(&self, script: &str) {
        let script = format!("{FUNCTIONS}\n{script}");
        let mut shell = Command::new("/bin/sh");
        let output = shell.args(["-ec", &script]).current_dir(self.folder.path()).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    /// The path of a file.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The path of a file as text.
    pub fn file(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    /// A client that trusts `ca`, speaks one protocol, and may show the certificate of a name.
    pub fn client(&self, protocol: &str, shown: Option<&str>) -> Arc<ClientConfig> {
        let mut roots = RootCertStore::empty();
        roots.add(certificate(&self.path("ca.crt"))).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        let mut config = match shown {
            None => builder.with_no_client_auth(),
            Some(name) => {
                let chain = vec![certificate(&self.path(&format!("{name}.crt")))];
                let key = PrivateKeyDer::from_pem_file(self.path(&format!("{name}.key"))).unwrap();
                builder.with_client_auth_cert(chain, key).unwrap()
            }
        };
        config.alpn_protocols = vec![protocol.as_bytes().to_vec()];
        Arc::new(config)
    }
}

/// Reads the first certificate of a file.
pub fn certificate(path: &Path) -> CertificateDer<'static> {
    CertificateDer::from_pem_file(path).unwrap()
}
