//! A bare actix-web server: what the framework and the kernel cost on this machine, without anything of ours. All
//! steps are compared with it, because `healthz` gets cheaper or dearer with our own code.
//!
//! It answers the path of `healthz` with the same bytes. It is this program in a process of its own, which ends
//! when the load generator closes its standard input.

use std::io::{self, BufRead, BufReader, Read};
use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::Duration;

use actix_web::http::header::{CACHE_CONTROL, CONTENT_TYPE, X_CONTENT_TYPE_OPTIONS};
use actix_web::{App, HttpResponse, HttpServer, rt, web};

use crate::client::Connection;
use crate::failure::{Context, Failure, Result};
use crate::interrupt;
use crate::requests::{Caller, RequestWriter};
use crate::scenario::HEALTHZ_PATH;
use crate::server::Server;

/// The argument with which this program becomes the bare server.
pub const ARGUMENT: &str = "--bare-actix";

/// Longer than a round: its connections must survive the steps in which they are idle.
const KEEP_ALIVE: Duration = Duration::from_secs(3600);

/// A bare server that runs. It is killed when it is dropped.
pub struct Bare {
    child: Child,
    address: SocketAddr,
}

impl Bare {
    /// Starts it, and checks that its answer is as long as that of `server`.
    pub async fn start(server: &Server) -> Result<Self> {
        let doing = "cannot start the bare server";
        let program = std::env::current_exe().context(doing)?;
        let mut command = Command::new(program);
        command.arg(ARGUMENT).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = interrupt::let_through(|| command.spawn())?.context(doing)?;
        let output = child.stdout.take().context(doing)?;
        let mut bare = Self { child, address: (Ipv4Addr::LOCALHOST, 0).into() };
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line).context(doing)?;
        bare.address.set_port(line.trim().parse().context(doing)?);
        let (ours, its) = (answer_length(server.public).await?, answer_length(bare.address).await?);
        if ours != its {
            return Err(Failure::new(format!(
                "the bare server answers {its:?} bytes of head and body where the server answers {ours:?}: make it \
                 answer the same"
            )));
        }
        Ok(bare)
    }

    /// Opens connections to it.
    pub async fn open_callers(&self, count: usize) -> Result<Vec<Caller>> {
        let mut callers = Vec::with_capacity(count);
        for _ in 0..count {
            callers.push(Caller {
                connection: Connection::open(self.address).await?,
                writer: RequestWriter::new(self.address.to_string()),
                cookie: String::new(),
            });
        }
        Ok(callers)
    }
}

impl Drop for Bare {
    fn drop(&mut self) {
        // Both fail only if the process has already ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Returns the bytes of the head and of the body of an answer to `healthz`.
async fn answer_length(address: SocketAddr) -> Result<(usize, usize)> {
    let mut writer = RequestWriter::new(address.to_string());
    writer.get(HEALTHZ_PATH);
    let mut connection = Connection::open(address).await?;
    let answer = connection.exchange(writer.bytes()).await?;
    match answer.status {
        200 => Ok(answer.length()),
        _ => Err(answer.unexpected(HEALTHZ_PATH, 200)),
    }
}

/// Is the bare server. It prints its port, and runs until standard input ends.
pub fn run() -> ExitCode {
    match rt::System::new().block_on(serve()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("the bare server failed: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn serve() -> io::Result<()> {
    let server = HttpServer::new(|| App::new().route(HEALTHZ_PATH, web::get().to(answer)))
        .keep_alive(KEEP_ALIVE)
        .disable_signals()
        .bind((Ipv4Addr::LOCALHOST, 0))?;
    let port = server.addrs().first().map_or(0, SocketAddr::port);
    let running = server.run();
    let handle = running.handle();
    std::thread::spawn(move || {
        println!("{port}");
        // Ends when the load generator has ended, however it ended.
        let _ = io::stdin().read_to_end(&mut Vec::new());
        rt::System::new().block_on(handle.stop(false));
    });
    running.await
}

/// The answer of `healthz`, with a request id of the usual length.
async fn answer() -> HttpResponse {
    HttpResponse::Ok()
        .insert_header((CACHE_CONTROL, "no-store"))
        .insert_header((CONTENT_TYPE, "application/json"))
        .insert_header(("x-request-id", "0123456789abcdef"))
        .insert_header((X_CONTENT_TYPE_OPTIONS, "nosniff"))
        .body(r#"{"data":{"status":"ok"},"meta":{"message":"OK"}}"#)
}
