//! Writes past activations into the store with the storage crate while no server has it open.
//!
//! They look like the records of a real server: hashes with its lookup key, ids all over their range, rising
//! numbers, old times within the retention. Only their versions are 1 instead of 2, which takes the same space.

use std::net::{IpAddr, Ipv4Addr};
use std::ops::Range;

use iptunnel_domain::Timestamp;
use iptunnel_domain::activation::{
    Activation, ActivationId, ActivationNumber, ActivationRef, Binding, Holder, Request,
};
use iptunnel_domain::address::HostName;
use iptunnel_domain::code::{Code, CodeNumber, InstallCode, ProductLetters};
use iptunnel_domain::lookup::{KeyedHash, LookupKey};
use iptunnel_domain::time::Lifetimes;
use iptunnel_server::os::{Clock, SystemClock};
use iptunnel_server::secrets;
use iptunnel_server::store::files::files;
use iptunnel_storage::{Change, EmbeddedStore, LastNumbers, Records, Store, Verdict, Write};

use super::PAST;
use crate::failure::{Context, Failure, Result};
use crate::server::Workspace;
use crate::steps::scatter;

/// The progress is printed once per this many installations.
const TOLD_EVERY: u64 = 1 << 20;
const DAY: u64 = 24 * 3600;
/// The age of the first past installation. A server keeps installations for 90 days.
const FIRST_AGE: u64 = 60 * DAY;
/// The age of the last past installation. Its tokens have expired.
const LAST_AGE: u64 = DAY;
/// The time from issue to activate, and from activate to confirm.
const STEP_SECONDS: u64 = 60;
/// 48.0.0.0, the address of the first of ten million machines.
const FIRST_IPV4: u32 = 0x3000_0000;

/// The code of a past installation.
pub fn code(past: u64) -> Result<InstallCode> {
    let product = ProductLetters::parse("SD").context("the letters of a product")?;
    Ok(InstallCode::from_random_bits(product, scatter_wide(past, Use::Code)))
}

/// The id of the activation of a past installation.
pub fn id(past: u64) -> ActivationId {
    ActivationId(scatter_wide(past, Use::Id) as u64)
}

/// Adds the past installations with these numbers to the store, `batch` of them in a commit.
pub async fn write(workspace: &Workspace, numbers: Range<u64>, batch: u64) -> Result<()> {
    let doing = "cannot write past activations";
    if numbers.is_empty() {
        return Ok(());
    }
    eprintln!("writing {} past activations", numbers.end - numbers.start);
    let store = EmbeddedStore::open(files(&workspace.store())).context(doing)?;
    let history = History {
        key: secrets::lookup_key(&workspace.lookup_key()).context(doing)?,
        offset: store.frontier().context(doing)?,
        first: numbers.start,
        now: SystemClock::default().now(),
    };
    let mut start = numbers.start;
    while start < numbers.end {
        let end = numbers.end.min(start + batch);
        let changes: Vec<Change> =
            (start..end).map(|past| history.change(past)).collect::<Result<_>>()?;
        let verdicts = store.commit(&changes).context(doing)?;
        if verdicts.iter().any(|verdict| *verdict != Verdict::Written) {
            return Err(Failure::new(
                "the store already has other records with the numbers of past activations",
            ));
        }
        if start / TOLD_EVERY != end / TOLD_EVERY {
            eprintln!("  {end} of {}", numbers.end);
        }
        start = end;
        // No other task does work here, but an interruption is noticed.
        tokio::task::yield_now().await;
    }
    store.close();
    Ok(())
}

/// The common properties of past installations.
struct History {
    key: LookupKey,
    /// The last numbers in the store before the new ones.
    offset: LastNumbers,
    /// The number of the first new installation.
    first: u64,
    now: Timestamp,
}

impl History {
    /// A consumed code and its confirmed activation.
    fn change(&self, past: u64) -> Result<Change> {
        let life = Lifetimes::default();
        let issued_at = self.issued_at(past);
        let (opened_at, confirmed_at) =
            (issued_at.plus(STEP_SECONDS), issued_at.plus(STEP_SECONDS * 2));
        let place = past - self.first + 1;
        let at = ActivationRef {
            number: ActivationNumber(self.offset.activation.0 + place),
            id: id(past),
        };
        let code = code(past)?;
        let hash = code.hash(&self.key);
        let session = keyed_hash(past, Use::Session);
        let number = CodeNumber(self.offset.code.0 + place);
        let issued = Code::issue(number, hash, code.product(), session, issued_at, &life);
        let opened = Activation::open(at, hash, request(past)?.into(), opened_at, &life);
        let confirmed = opened
            .confirm(confirmed_at)
            .map_err(|_| Failure::new("a past activation cannot be confirmed"))?;
        Ok(Change(vec![
            Write::Code(Code { version: 1, ..issued.consumed_by(at) }),
            Write::Activation(Activation { version: 1, ..confirmed }),
        ]))
    }

    /// The issue time of an installation. The installations are spread evenly over time.
    fn issued_at(&self, past: u64) -> Timestamp {
        let most = PAST.into_iter().max().unwrap_or(1);
        let since_first = past * (FIRST_AGE - LAST_AGE) / most;
        Timestamp(self.now.0.saturating_sub(FIRST_AGE)).plus(since_first)
    }
}

fn request(past: u64) -> Result<Request> {
    let hostname = format!("ns{past}.past.example.com");
    let offset = u32::try_from(past).context("the number of a past installation")?;
    Ok(Request {
        holder: Holder {
            machine: keyed_hash(past, Use::Machine),
            fingerprint: keyed_hash(past, Use::Fingerprint),
        },
        binding: Binding {
            hostname: HostName::parse(&hostname).context("the host name of a past installation")?,
            public_ip: IpAddr::V4(Ipv4Addr::from_bits(FIRST_IPV4 + offset)),
        },
        requested_ref: "main".into(),
        installer_version: "2026.03.31".into(),
        signing_key: "k00000000".into(),
    })
}

/// The use of pseudo-random bits. No two uses share bits.
#[derive(Clone, Copy)]
enum Use {
    Code,
    Id,
    Session,
    Machine,
    Fingerprint,
}

fn keyed_hash(past: u64, purpose: Use) -> KeyedHash {
    KeyedHash(scatter_wide(past, purpose).to_be_bytes())
}

/// 128 pseudo-random bits, the same for every call with these arguments.
fn scatter_wide(past: u64, purpose: Use) -> u128 {
    let seed = past | ((purpose as u64) << 48);
    u128::from(scatter(seed)) << 64 | u128::from(scatter(!seed))
}
