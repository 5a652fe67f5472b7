//! The packages that scripts/package makes: their bytes, and the life of the one for Debian in a Debian of its
//! own, which scripts/test makes with debootstrap.

use crate::process::{Api, listening, said};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output};
use std::sync::LazyLock;
use tempfile::TempDir;

const VERSION: &str = env!("CARGO_PKG_VERSION");
/// A version before this one.
const BEFORE: &str = "0.1.99";
const PROJECT: &str = env!("CARGO_MANIFEST_DIR");
const NEEDED: &str =
    "DEBIAN_ROOT names a folder that debootstrap has made: run scripts/test packages::";

/// The folder with packages of this program. Nobody removes it, but the next run makes it anew.
static MADE: LazyLock<PathBuf> = LazyLock::new(|| {
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("packages");
    // There is none the first time.
    let _ = fs::remove_dir_all(&folder);
    make(&folder, "umask 022; export TZ=UTC", VERSION);
    folder
});

/// Makes packages with some version, after these commands of a shell.
fn make(folder: &Path, first: &str, version: &str) {
    let script = format!("{first}; exec \"$0\" \"$@\"");
    let package = format!("{PROJECT}/scripts/package");
    let binary = env!("CARGO_BIN_EXE_iptunnel-server");
    let output = Command::new("bash")
        .args([
            "-c",
            &script,
            &package,
            "--fast",
            "--binary",
            binary,
            "--version",
            version,
            "--out",
        ])
        .arg(folder)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", said(&output));
}

/// The file of a folder whose name ends so.
fn file(folder: &Path, end: &str) -> PathBuf {
    let mut files = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    files.find(|path| path.to_str().unwrap().ends_with(end)).unwrap()
}

#[test]
fn one_program_makes_the_same_packages_whatever_surrounds_it() {
    let again = tempfile::tempdir().unwrap();
    make(again.path(), "umask 077; export TZ=Asia/Tokyo LC_ALL=C.UTF-8; cd /", VERSION);
    let [sums, others] =
        [&MADE, again.path()].map(|folder| fs::read_to_string(folder.join("SHA256SUMS")).unwrap());
    assert_eq!(sums, others);
    let checked =
        Command::new("sha256sum").args(["-c", "SHA256SUMS"]).current_dir(&*MADE).output().unwrap();
    assert!(checked.status.success() && said(&checked).lines().count() == 3, "{}", said(&checked));
}

#[test]
fn the_sbom_names_every_crate_once_with_the_checksum_of_the_lock_file() {
    let text = fs::read_to_string(file(&MADE, ".cdx.json")).unwrap();
    assert!(!text.contains(PROJECT));
    let bom: Value = serde_json::from_str(&text).unwrap();
    let lock: toml::Table =
        fs::read_to_string(format!("{PROJECT}/Cargo.lock")).unwrap().parse().unwrap();
    let locked = |name: &Value, version: &Value| {
        let packages = lock["package"].as_array().unwrap();
        let is_meant = |one: &&toml::Value| {
            one["name"].as_str() == name.as_str() && one["version"].as_str() == version.as_str()
        };
        packages.iter().find(is_meant).unwrap_or_else(|| panic!("{name} {version}")).clone()
    };
    let mut seen = BTreeSet::new();
    for component in bom["components"].as_array().unwrap() {
        assert!(seen.insert(component["bom-ref"].as_str().unwrap()), "{component}");
        assert!(component["licenses"][0]["expression"].is_string(), "{component}");
        if component["name"] != "rust-std" {
            let package = locked(&component["name"], &component["version"]);
            let checksum = package.get("checksum").and_then(toml::Value::as_str);
            assert_eq!(component["hashes"][0]["content"].as_str(), checksum, "{component}");
        }
    }
    let scope = |name: &str| {
        let components = bom["components"].as_array().unwrap();
        components.iter().find(|one| one["name"] == name).map(|one| one["scope"].clone())
    };
    assert_eq!(scope("redb").unwrap(), "required");
    assert_eq!(scope("serde_derive").unwrap(), "excluded", "it is not in the program");
    assert_eq!(scope("proptest"), None, "only tests need it");
    for dependency in bom["dependencies"].as_array().unwrap() {
        for on in dependency["dependsOn"].as_array().unwrap() {
            assert!(seen.contains(on.as_str().unwrap()), "{on}");
        }
    }
    let tarball = file(&MADE, ".tar.gz");
    let program = format!("iptunnel-server-{VERSION}/iptunnel-server");
    let unpacked = Command::new("tar").arg("-xOzf").arg(tarball).arg(program).output().unwrap();
    let sum = iptunnel_domain::hex::hex(&Sha256::digest(&unpacked.stdout));
    assert_eq!(bom["metadata"]["component"]["hashes"][0]["content"], sum);
}

/// A Debian of a test's own, with a systemctl that only writes down what it is told.
struct Debian(TempDir);

impl Debian {
    /// `None` without the rights that it needs.
    fn new() -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("left out: only root can install a package");
            return None;
        }
        let root = tempfile::tempdir().unwrap();
        let made = std::env::var("DEBIAN_ROOT").expect(NEEDED);
        let copied =
            Command::new("cp").args(["-a", &format!("{made}/.")]).arg(root.path()).status();
        assert!(copied.unwrap().success(), "{NEEDED}");
        let debian = Self(root);
        fs::create_dir_all(debian.path("run/systemd/system")).unwrap();
        let systemctl = debian.path("usr/bin/systemctl");
        let script = "#!/bin/sh\necho \"$*\" >> /systemctl.log\ncase $* in *is-enabled*) echo enabled ;; esac\n";
        fs::write(&systemctl, script).unwrap();
        fs::set_permissions(&systemctl, fs::Permissions::from_mode(0o755)).unwrap();
        Some(debian)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// A command inside, as this user.
    fn command(&self, user: &str, command: &[&str]) -> Command {
        let mut inside = Command::new("chroot");
        inside.arg(format!("--userspec={user}:{user}")).arg(self.0.path()).args(command);
        inside.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("LC_ALL", "C.UTF-8");
        inside.current_dir("/");
        inside
    }

    fn run(&self, user: &str, command: &[&str]) -> String {
        let output: Output = self.command(user, command).output().unwrap();
        assert!(output.status.success(), "{command:?}: {}", said(&output));
        said(&output)
    }

    /// Runs dpkg, and returns what it said and what systemd was told about the server.
    fn dpkg(&self, arguments: &[&str]) -> (String, Vec<String>) {
        fs::write(self.path("systemctl.log"), "").unwrap();
        // A power cut does no harm here.
        let said = self.run("root", &[&["dpkg", "--force-unsafe-io"], arguments].concat());
        let told = fs::read_to_string(self.path("systemctl.log")).unwrap();
        let orders = ["preset", "start", "restart", "stop", "daemon-reload"];
        let is_order = |line: &&str| line.split(' ').any(|word| orders.contains(&word));
        (said, told.lines().filter(is_order).map(str::to_owned).collect())
    }

    /// Installs the package in a folder.
    fn install(&self, folder: &Path) -> (String, Vec<String>) {
        fs::copy(file(folder, ".deb"), self.path("package.deb")).unwrap();
        self.dpkg(&["-i", "/package.deb"])
    }

    /// What an operator does: other ports, which are free ones here.
    fn change_ports(&self) -> String {
        let path = self.path(CONFIG);
        let shipped = fs::read_to_string(&path).unwrap();
        let changed = shipped
            .replace("127.0.0.1:8080\"\n# The address that", "127.0.0.1:0\"\n# The address that");
        let changed = changed.replace("bind = \"127.0.0.1:9090\"", "bind = \"127.0.0.1:0\"");
        assert_ne!(shipped, changed);
        fs::write(path, &changed).unwrap();
        changed
    }

    /// Starts the server as its unit does, lets somebody use it, and ends it.
    fn serve<T>(&self, using: impl FnOnce(&Api) -> T) -> T {
        let files = ["stdout", "stderr"].map(|name| self.path(name));
        let [stdout, stderr] = files.each_ref().map(|path| File::create(path).unwrap());
        let mut command =
            self.command("iptunnel", &["iptunnel-server", "--config", "/etc/iptunnel/config.toml"]);
        let mut running = Running(command.stdout(stdout).stderr(stderr).spawn().unwrap());
        let api = listening(&mut running.0, &files, &self.path(DATA).join("data/master.token"));
        let used = using(&api);
        let id = running.0.id().try_into().unwrap();
        kill(Pid::from_raw(id), Signal::SIGTERM).unwrap();
        assert!(running.0.wait().unwrap().success());
        used
    }

    /// Each file of the server with its owner, its rights and its content.
    fn data(&self) -> BTreeMap<PathBuf, (u32, u32, Vec<u8>)> {
        let folder = self.path(DATA).join("data");
        let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        let files = entries.filter(|path| path.is_file());
        files
            .map(|path| {
                let metadata = path.metadata().unwrap();
                (path.clone(), (metadata.uid(), metadata.mode(), fs::read(path).unwrap()))
            })
            .collect()
    }
}

/// A process that ends with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

const CONFIG: &str = "etc/iptunnel/config.toml";
const DATA: &str = "var/lib/iptunnel-server";
const UNIT: &str = "iptunnel-server.service";

/// Whether systemd was told last to do this with the unit.
fn was_told(told: &[String], order: &str) -> bool {
    told.last().is_some_and(|last| last.ends_with(&format!(" {order} {UNIT}")))
}

#[test]
fn a_package_is_installed_upgraded_removed_and_purged_and_the_data_survives() {
    let Some(debian) = Debian::new() else { return };
    let before = tempfile::tempdir().unwrap();
    make(before.path(), "true", BEFORE);

    let (words, told) = debian.install(before.path());
    assert!(was_told(&told, "start"), "{told:?} {words}");
    assert!(
        told.iter().any(|line| line.ends_with(&format!("preset {UNIT}"))),
        "it is enabled: {told:?}"
    );
    let id: u32 = debian.run("root", &["id", "-u", "iptunnel"]).trim().parse().unwrap();
    let folder = debian.path(DATA).metadata().unwrap();
    assert_eq!((folder.uid(), folder.mode() & 0o7777), (id, 0o700));
    let settings = debian.path(CONFIG).metadata().unwrap();
    assert_eq!((settings.uid(), settings.mode() & 0o7777), (0, 0o640));
    let changed = debian.change_ports();
    let code = debian.serve(Api::issue);
    let data = debian.data();
    let names: Vec<_> = data.keys().filter_map(|path| path.file_name()?.to_str()).collect();
    assert!(
        ["iptunnel.redb", "lookup.key", "signing.keys"].iter().all(|name| names.contains(name))
    );

    let (words, told) = debian.install(&MADE);
    assert!(words.contains(&format!("({VERSION}-1) over ({BEFORE}-1)")), "{words}");
    assert!(was_told(&told, "restart"), "{told:?}");
    assert!(!told.iter().any(|line| line.contains("stop") || line.contains("preset")), "{told:?}");
    assert_eq!(fs::read_to_string(debian.path(CONFIG)).unwrap(), changed);
    assert_eq!(debian.path(CONFIG).metadata().unwrap().mode() & 0o7777, 0o640);
    assert_eq!(debian.data(), data);
    let show = ["iptunnel-server", "--config", "/etc/iptunnel/config.toml", "codes", "show", &code];
    let story = debian.serve(|_| debian.run("iptunnel", &show));
    assert!(story.contains("issued"), "{story}");
    let data = debian.data();

    let (_, told) = debian.dpkg(&["-r", "iptunnel-server"]);
    assert!(told.iter().any(|line| line.ends_with(&format!("stop {UNIT}"))), "{told:?}");
    assert!(!debian.path("usr/bin/iptunnel-server").exists());
    assert_eq!(fs::read_to_string(debian.path(CONFIG)).unwrap(), changed);
    assert_eq!(debian.data(), data);

    let (words, _) = debian.dpkg(&["-P", "iptunnel-server"]);
    assert!(
        words.contains("the store and its keys are kept in /var/lib/iptunnel-server"),
        "{words}"
    );
    assert!(!debian.path("etc/iptunnel").exists());
    assert_eq!(debian.data(), data);

    let (_, told) = debian.install(&MADE);
    assert!(was_told(&told, "start"), "{told:?}");
    assert_eq!(debian.data(), data);
    debian.change_ports();
    let story = debian.serve(|_| debian.run("iptunnel", &show));
    assert!(story.contains("issued"), "{story}");
}

#[test]
fn a_store_of_an_installation_by_hand_is_not_passed_over_for_a_new_one() {
    let Some(debian) = Debian::new() else { return };
    fs::create_dir_all(debian.path("var/lib/iptunnel/data")).unwrap();
    let (words, told) = debian.install(&MADE);
    assert!(words.contains("mv /var/lib/iptunnel/data /var/lib/iptunnel-server/"), "{words}");
    assert!(!told.iter().any(|line| line.contains("start")), "{told:?}");
}

#[test]
fn the_packaged_unit_is_the_one_in_deploy_with_the_program_of_the_package() {
    let deb = file(&MADE, ".deb");
    let unpacked = tempfile::tempdir().unwrap();
    let done = Command::new("dpkg-deb").arg("-x").arg(deb).arg(unpacked.path()).status();
    assert!(done.unwrap().success());
    let unit = unpacked.path().join("usr/lib/systemd/system").join(UNIT);
    let unit = fs::read_to_string(unit).unwrap();
    let (_, by_hand) =
        include_str!("../../deploy/iptunnel-server.service").split_once("\n\n").unwrap();
    let program = "ExecStart=/usr/bin/iptunnel-server ";
    assert_eq!(unit, by_hand.replace("ExecStart=/usr/local/bin/iptunnel-server ", program));
    assert!(unit.contains(program) && unit.contains("StateDirectory=iptunnel-server\n"));
    let settings = fs::read_to_string(unpacked.path().join(CONFIG)).unwrap();
    assert!(!settings.contains("\"data/"), "commands work in every folder");
}
