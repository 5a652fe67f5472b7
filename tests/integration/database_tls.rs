//! TLS connections to the database: `sslmode` has the same meaning as in libpq.

use crate::certificates::FUNCTIONS;
use crate::cluster::Cluster;
use crate::process::{run, said};
use tempfile::TempDir;

/// A certificate for the name `localhost` only, signed by a CA, and another CA that signed nothing.
const CERTIFICATES: &str = "
    authority ca
    authority other
    certificate server ca DNS:localhost 2
    mv server.key server.crt data
    chmod 600 data/server.key
    echo 'hostssl all all 127.0.0.1/32 trust' > data/pg_hba.conf";

#[test]
fn each_sslmode_requires_the_same_as_in_libpq() {
    let cluster = Cluster::new();
    cluster.shell(&[FUNCTIONS, CERTIFICATES].concat());
    cluster.psql("ALTER SYSTEM SET ssl = on");
    cluster.stop();
    cluster.start();
    let roots = |name: &str| cluster.folder.path().join(name).display().to_string();
    let (ca, other) = (roots("ca.crt"), roots("other.crt"));
    let folder = TempDir::new().unwrap();
    let open = |host: &str, query: &str| {
        let port = cluster.port;
        let url = format!("storage.url=postgres://postgres@{host}:{port}/postgres?{query}");
        let output =
            run(folder.path(), &["doctor", "--set", "storage.backend=postgres", "--set", &url]);
        (output.status.success(), said(&output))
    };
    let good = |host: &str, query: &str| {
        let (good, said) = open(host, query);
        assert!(good && said.contains("fsync = on"), "{host} {query}: {said}");
    };
    let refused = |host: &str, query: &str, why: &str| {
        let (good, said) = open(host, query);
        assert!(!good && said.contains(why), "{host} {query}: {said}");
    };
    // The certificate contains the name but not the address.
    let (address, name) = ("127.0.0.1", "localhost");
    refused(address, "sslmode=disable", "no encryption");
    good(address, "");
    good(address, "sslmode=allow");
    good(address, "sslmode=prefer");
    good(address, "sslmode=require");
    good(address, &format!("sslmode=require&sslrootcert={ca}"));
    refused(address, &format!("sslmode=require&sslrootcert={other}"), "certificate");
    good(address, &format!("sslmode=verify-ca&sslrootcert={ca}"));
    refused(address, &format!("sslmode=verify-ca&sslrootcert={other}"), "certificate");
    good(name, &format!("sslmode=verify-full&sslrootcert={ca}"));
    refused(address, &format!("sslmode=verify-full&sslrootcert={ca}"), "certificate");
    refused(name, &format!("sslmode=verify-full&sslrootcert={other}"), "certificate");
    // A database without TLS.
    cluster.shell("echo 'host all all 127.0.0.1/32 trust' > data/pg_hba.conf");
    cluster.stop();
    cluster.shell("sed -i s/^ssl/#ssl/ data/postgresql.auto.conf");
    cluster.start();
    good(address, "sslmode=disable");
    good(address, "sslmode=allow");
    good(address, "sslmode=prefer");
    refused(address, "sslmode=require", "TLS");
}
