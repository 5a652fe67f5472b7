//! Guarded commits, reads and scans: all that the crates above know of a database.
//!
//! A [`Store`] keeps records and checks guards. It knows no rule about codes, activations or
//! servers. [`EmbeddedStore`] keeps the records of one server in two files: a journal, and a redb
//! database behind it. [`PostgresStore`] keeps them in a database that several servers share. Code
//! above this crate does not know which of the two it uses, only whether [`Store::shared`] is set.
//!
//! **Durability**: when [`Store::commit`] returns, every change that it reports as written is on
//! disk. The change survives the end of the process and a loss of power, provided that the disk
//! keeps what it reports as synced.

mod backup;
mod change;
mod copy;
mod embedded;
mod epoch;
mod feed;
mod outage;
mod postgres;
mod record;
mod store;
mod walk;
mod watermark;

pub use backup::{BackupError, Contents, Pace, examine_copy};
pub use change::{
    ATTEMPTS, Attempts, Change, Charged, CheckIn, CheckInOf, CommitError, Counted, Counter,
    CounterRow, Entry, Finding, Grade, LastNumbers, OpenError, ReadError, Setting, Verdict, Write,
};
pub use copy::{CopyError, Sum, copy, sums};
#[cfg(any(test, feature = "simulated"))]
pub use embedded::simulated;
pub use embedded::{Disk, Disks, EmbeddedStore, FORMAT_VERSION, FileDisk, OpenDisk};
pub use feed::Listener;
pub use outage::Outage;
pub use postgres::{Inspection, Others, PostgresStore};
pub use store::{
    AuditLog, Ended, Epochs, LOOKUP_KEY, OUT_OF_ORDER, Records, Shared, Store, WebhookStates,
};
pub use watermark::Watermark;

/// What is stored, as bytes: for tests that feed it damaged ones.
pub mod stored {
    pub use crate::record::{
        decode_access_token, decode_activation, decode_changes, decode_code, decode_server,
        encode_changes,
    };
}
