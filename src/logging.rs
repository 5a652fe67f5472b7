//! The log: text on a terminal, JSON otherwise. Its level can change at run time.

use crate::config::{LogFormat, LogLevel};
use std::io::IsTerminal;
use tracing_appender::non_blocking::WorkerGuard;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::reload;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, Registry, fmt};

/// The running log. Dropping it writes the buffered lines.
pub struct Logging {
    level: reload::Handle<Targets, Registry>,
    _writer: WorkerGuard,
}

fn filter(level: LogLevel) -> Targets {
    let level = match level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    };
    // The start and stop of actix's workers is not logged, only its warnings and errors. Its HTTP
    // parser logs every malformed request as an error: any caller could fill the log with them.
    let of_parser = if level >= LevelFilter::DEBUG { level } else { LevelFilter::OFF };
    Targets::new()
        .with_default(level)
        .with_target("actix_server", level.min(LevelFilter::WARN))
        .with_target("actix_http", of_parser)
}

impl Logging {
    /// Starts the log on standard error. A separate thread writes it, so that a slow reader does not
    /// delay the server. Lines that do not fit its buffer are dropped.
    pub fn start(format: LogFormat, level: LogLevel) -> Self {
        let (writer, guard) = tracing_appender::non_blocking(std::io::stderr());
        let (level, handle) = reload::Layer::new(filter(level));
        let on_terminal = std::io::stderr().is_terminal();
        let as_text = match format {
            LogFormat::Auto => on_terminal,
            LogFormat::Text => true,
            LogFormat::Json => false,
        };
        let layer = if as_text {
            fmt::layer().with_writer(writer).with_ansi(on_terminal).with_target(false).boxed()
        } else {
            fmt::layer().with_writer(writer).json().flatten_event(true).with_target(false).boxed()
        };
        // Fails only if the process already has a log: the first one stays.
        let _ = tracing_subscriber::registry().with(level).with(layer).try_init();
        Self { level: handle, _writer: guard }
    }

    /// Changes the lowest level that is logged.
    pub fn set_level(&self, level: LogLevel) {
        // Fails only if the subscriber no longer exists.
        let _ = self.level.reload(filter(level));
    }
}
