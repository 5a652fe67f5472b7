//! The log: readable text on a terminal, JSON otherwise, level changeable at run time.

use crate::config::{LogFormat, LogLevel};
use std::io::IsTerminal;
use tracing_appender::non_blocking::WorkerGuard;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::reload;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, Registry, fmt};

/// Keeps the log going; what is buffered is written when it is dropped.
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
    // What actix's workers do at start and stop is their business, unless something is wrong. Its
    // HTTP parser calls every malformed request an error: any caller could fill the log with them.
    let of_parser = if level >= LevelFilter::DEBUG { level } else { LevelFilter::OFF };
    Targets::new()
        .with_default(level)
        .with_target("actix_server", level.min(LevelFilter::WARN))
        .with_target("actix_http", of_parser)
}

impl Logging {
    /// Starts the log on standard error, through a thread of its own: a reader that is slow must
    /// not hold the server up. Lines that do not fit its buffer are dropped.
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
        // A second log in one process would be a mistake of ours; the first one stays.
        let _ = tracing_subscriber::registry().with(level).with(layer).try_init();
        Self { level: handle, _writer: guard }
    }

    /// Changes what is logged from now on.
    pub fn set_level(&self, level: LogLevel) {
        // Fails only when the subscriber is gone, and the log with it.
        let _ = self.level.reload(filter(level));
    }
}
