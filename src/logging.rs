//! The log: text on a terminal, JSON otherwise. Its level can change at run time.

use crate::config::{LogFormat, LogLevel};
use crate::escape::{escaped, escaped_lines};
use std::fmt::Debug;
use std::io::{self, IsTerminal, Write};
use tracing::field::Field;
use tracing_appender::non_blocking::{NonBlocking, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::field::MakeExt;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::fmt::format::{Writer, debug_fn};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::reload;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, Registry, fmt};

/// The lines that wait for a slow reader. The queue takes 40 bytes of memory for each, from the start on; the
/// library's own 128,000 lines took 5 MB and a tenth of the time of a start.
const WAITING: usize = 16_384;

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
        // It logs each frame.
        .with_target("h2", level.min(LevelFilter::WARN))
}

/// Writes a field of a line of text. What callers sent, such as a host name, may be in any of them.
fn write_field(writer: &mut Writer<'_>, field: &Field, value: &dyn Debug) -> std::fmt::Result {
    let value = format!("{value:?}");
    match field.name() {
        "message" => write!(writer, "{}", escaped(&value)),
        name => write!(writer, "{name}={}", escaped(&value)),
    }
}

/// Writes lines of JSON with the characters escaped that JSON leaves as they are.
#[derive(Clone)]
struct Escaping<W>(W);

impl MakeWriter<'_> for Escaping<NonBlocking> {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}

impl<W: Write> Write for Escaping<W> {
    /// Receives whole lines.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.write_all(escaped_lines(&String::from_utf8_lossy(line)).as_bytes())?;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

impl Logging {
    /// Starts the log on standard error. A separate thread writes it, so that a slow reader does not
    /// delay the server. Lines that do not fit its buffer are dropped.
    pub fn start(format: LogFormat, level: LogLevel) -> Self {
        let (writer, guard) =
            NonBlockingBuilder::default().buffered_lines_limit(WAITING).finish(std::io::stderr());
        let (level, handle) = reload::Layer::new(filter(level));
        let on_terminal = std::io::stderr().is_terminal();
        let as_text = match format {
            LogFormat::Auto => on_terminal,
            LogFormat::Text => true,
            LogFormat::Json => false,
        };
        let layer = if as_text {
            let fields = debug_fn(write_field).delimited(" ");
            fmt::layer()
                .fmt_fields(fields)
                .with_writer(writer)
                .with_ansi(on_terminal)
                .with_target(false)
                .boxed()
        } else {
            let writer = Escaping(writer);
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_line_of_text_is_one_line_that_no_terminal_obeys() {
        let lines = Lines::default();
        let writer = lines.clone();
        let layer = fmt::layer()
            .fmt_fields(debug_fn(write_field).delimited(" "))
            .with_writer(move || writer.clone())
            .with_ansi(true);
        let evil = "a\u{1b}]0;b\u{202e}\nc";
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
            tracing::info!(text = evil, shown = %evil, "said {evil}");
        });
        let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
        assert!(text.contains("said a\\u001b]0;b\\u202e\\nc text="), "{text}");
        assert!(text.contains("shown=a\\u001b]0;b\\u202e\\nc"), "{text}");
        assert!(!text.contains("\u{1b}]") && !text.contains('\u{202e}'), "{text}");
        assert_eq!(text.matches('\n').count(), 1, "{text}");
    }

    #[test]
    fn a_line_of_json_keeps_its_content_and_no_terminal_obeys_it() {
        let mut writer = Escaping(Vec::new());
        writer.write_all("{\"a\":\"\u{9b}2J\u{202e}\"}\n".as_bytes()).unwrap();
        assert_eq!(writer.0, b"{\"a\":\"\\u009b2J\\u202e\"}\n");
    }
}
