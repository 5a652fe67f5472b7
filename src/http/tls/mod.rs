//! The certificates of the listeners: read at the start, on SIGHUP, and when their files change. A file
//! that cannot be used changes nothing: the earlier certificate stays in use.
//!
//! * [`files`]: how the files are read, and what is wrong with them
//! * [`examine`]: findings for `doctor`, and what the start warns of

pub mod examine;
pub mod files;

use crate::http::respond::rfc3339;
use crate::os::Clock;
use arc_swap::ArcSwap;
use examine::ends_soon;
use files::{Certificate, FileError, Files, Stamps};
use iptunnel_domain::Timestamp;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};
use rustls::ServerConfig;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How often the files are looked at.
const LOOK: Duration = Duration::from_secs(1);
/// How often the log says that a certificate ends soon.
const DAILY: Duration = Duration::from_secs(24 * 3600);

/// The mark of a request that came over TLS.
#[derive(Clone, Copy, Debug)]
pub struct Secure;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Of {
    listener: &'static str,
}

/// The metrics of all certificates.
#[derive(Debug)]
pub struct Figures {
    left: Family<Of, Gauge>,
    refused: Family<Of, Gauge>,
}

impl Figures {
    /// Makes the metrics and registers them.
    pub fn new(registry: &mut Registry) -> Self {
        let (left, refused) = (Family::default(), Family::default());
        let help = "Time until the certificate of a listener ends; negative once it has ended";
        registry.register_with_unit(
            "tls_certificate_left",
            help,
            Unit::Seconds,
            Family::clone(&left),
        );
        let help = "1 while the files of a listener's certificate cannot be used, so that the earlier \
                    certificate stays in use";
        registry.register("tls_files_refused", help, Family::clone(&refused));
        Self { left, refused }
    }
}

/// What is known of the files.
#[derive(Debug)]
struct Watched {
    /// The files that were read last, whether they could be used or not.
    read: Stamps,
    /// The files that were seen last.
    seen: Stamps,
    /// The last time the log said that the certificate ends soon.
    warned: Option<Instant>,
}

/// The certificate of one listener.
#[derive(Debug)]
pub struct Tls {
    files: Files,
    current: ArcSwap<Certificate>,
    watched: Mutex<Watched>,
    left: Gauge,
    refused: Gauge,
}

impl Tls {
    /// Reads the certificate of a listener at the start.
    ///
    /// # Errors
    /// The files cannot be used.
    pub fn open(files: Files, figures: &Figures, now: Timestamp) -> Result<Self, FileError> {
        let stamps = files.stamps();
        let certificate = files.read()?;
        let of = Of { listener: files.listener };
        let watched = Watched { read: stamps, seen: stamps, warned: None };
        let tls = Self {
            left: figures.left.get_or_create_owned(&of),
            refused: figures.refused.get_or_create_owned(&of),
            current: ArcSwap::from_pointee(certificate),
            watched: Mutex::new(watched),
            files,
        };
        tls.note_end(&mut tls.lock(), now);
        Ok(tls)
    }

    /// Returns how connections are accepted now.
    pub fn config(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.current.load().config)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Watched> {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads the files again.
    pub fn reload(&self, now: Timestamp) {
        let stamps = self.files.stamps();
        self.read_again(&mut self.lock(), stamps, now);
    }

    /// Reads the files again if they have changed since they were read, and not since the last look: certificate
    /// and key are usually written one after the other.
    fn look(&self, now: Timestamp) {
        let stamps = self.files.stamps();
        let mut watched = self.lock();
        let has_settled = std::mem::replace(&mut watched.seen, stamps) == stamps;
        if has_settled && stamps != watched.read {
            self.read_again(&mut watched, stamps, now);
        }
        self.note_end(&mut watched, now);
    }

    fn read_again(&self, watched: &mut Watched, stamps: Stamps, now: Timestamp) {
        watched.read = stamps;
        let (listener, read) = (self.files.listener, self.files.read());
        match read {
            Ok(certificate) => {
                let ends = rfc3339(certificate.ends);
                if certificate.leaf != self.current.load().leaf {
                    watched.warned = None;
                }
                self.current.store(Arc::new(certificate));
                self.refused.set(0);
                tracing::info!(listener, ends, "the certificate has been read again");
                self.note_end(watched, now);
            }
            Err(error) => {
                self.refused.set(1);
                let error = error.to_string();
                tracing::error!(listener, error, "the earlier certificate stays in use");
            }
        }
    }

    /// Updates the metric, and warns once a day of a certificate that ends soon.
    fn note_end(&self, watched: &mut Watched, now: Timestamp) {
        let current = self.current.load();
        let signed = |time: Timestamp| i64::try_from(time.0).unwrap_or(i64::MAX);
        self.left.set(signed(current.ends).saturating_sub(signed(now)));
        if !ends_soon(&current, now) || watched.warned.is_some_and(|last| last.elapsed() < DAILY) {
            return;
        }
        watched.warned = Some(Instant::now());
        let (listener, ends) = (self.files.listener, rfc3339(current.ends));
        if current.ends <= now {
            tracing::error!(
                listener,
                ends,
                "the certificate has ended: callers refuse it; renew it"
            );
        } else {
            tracing::warn!(listener, ends, "the certificate ends soon; renew it");
        }
    }
}

/// The certificates of both listeners, where they have one.
#[derive(Debug)]
pub struct Certificates {
    /// That of the public listener.
    pub public: Option<Arc<Tls>>,
    /// That of the operators' listener.
    pub operators: Option<Arc<Tls>>,
}

impl Certificates {
    fn all(&self) -> impl Iterator<Item = &Arc<Tls>> {
        self.public.iter().chain(&self.operators)
    }

    /// Reads all files again.
    pub fn reload(&self, now: Timestamp) {
        self.all().for_each(|tls| tls.reload(now));
    }

    /// Looks at the files for as long as the server runs.
    pub async fn keep(self: Arc<Self>, clock: Arc<dyn Clock>) {
        if self.all().next().is_none() {
            return;
        }
        let mut interval = tokio::time::interval(LOOK);
        interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            interval.tick().await;
            let (certificates, now) = (Arc::clone(&self), clock.now());
            // A file system may make its callers wait.
            let look = move || certificates.all().for_each(|tls| tls.look(now));
            let _ = actix_web::web::block(look).await;
        }
    }
}
