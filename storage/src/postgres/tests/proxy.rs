//! A proxy between a store and its database that loses messages on request.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};

/// What the proxy does with the next statement that is executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mishap {
    None,
    /// The database executes it; the connection breaks before the answer arrives.
    AnswerLost,
    /// The connection breaks; the statement arrives when it is let through.
    Delayed,
    /// No connection gets through any more.
    Away,
}

#[derive(Default)]
struct State {
    mishap: Option<Mishap>,
    /// What follows after it.
    then: Option<Mishap>,
    delayed: Vec<(Vec<u8>, UnixStream)>,
    /// Answers to statements whose connection had broken.
    answered: usize,
    /// The connection that sends this text hangs.
    stalls: Option<&'static str>,
    stalled: usize,
}

#[derive(Clone)]
pub(super) struct Proxy {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
}

/// The end of an answer: the database is ready, and in no transaction.
const READY: &[u8] = b"Z\0\0\0\x05I";

impl Proxy {
    /// Starts a proxy for the cluster at `url`, which names a socket.
    pub(super) fn before(url: &str) -> Self {
        let folder = url.split('@').nth(1).unwrap();
        let folder = percent_encoding::percent_decode_str(folder).decode_utf8().unwrap();
        let socket = format!("{folder}/.s.PGSQL.5432");
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let new = Self { address: listener.local_addr().unwrap(), state: Arc::default() };
        let proxy = new.clone();
        std::thread::spawn(move || {
            for client in listener.incoming() {
                if proxy.mishap() == Mishap::Away {
                    continue;
                }
                proxy.pass(client.unwrap(), UnixStream::connect(&socket).unwrap());
            }
        });
        new
    }

    pub(super) fn url(&self, database: &str) -> String {
        format!("postgres://postgres@{}/{database}?sslmode=disable", self.address)
    }

    fn mishap(&self) -> Mishap {
        self.state.lock().unwrap().mishap.unwrap_or(Mishap::None)
    }

    /// Sets what happens to the next statement, and then to those after it.
    pub(super) fn set(&self, mishap: Mishap, then: Mishap) {
        let mut state = self.state.lock().unwrap();
        (state.mishap, state.then) = (Some(mishap), Some(then));
    }

    /// From now on a connection that prepares a statement with this beginning hangs, until the
    /// database ends it.
    pub(super) fn stall_at(&self, statement: &'static str) {
        self.state.lock().unwrap().stalls = Some(statement);
    }

    pub(super) fn has_stalled(&self) -> bool {
        self.state.lock().unwrap().stalled > 0
    }

    fn stalls(&self, message: &[u8]) -> bool {
        let mut state = self.state.lock().unwrap();
        let at = state.stalls.map(str::as_bytes).unwrap_or_default();
        let stalls = !at.is_empty() && message.windows(at.len()).any(|part| part == at);
        state.stalled += usize::from(stalls);
        stalls
    }

    /// Delivers what was delayed, and waits until the database has handled it.
    pub(super) fn let_through(&self) {
        let delayed = {
            let mut state = self.state.lock().unwrap();
            state.answered = 0;
            std::mem::take(&mut state.delayed)
        };
        assert!(!delayed.is_empty(), "nothing is delayed");
        for (statement, server) in &delayed {
            (&*server).write_all(statement).unwrap();
        }
        super::wait_until("an answer to what was delayed", || {
            self.state.lock().unwrap().answered == delayed.len()
        });
    }

    /// Returns what happens to this message. Only messages that execute a prepared statement are
    /// affected.
    fn befalls(&self, message: &[u8]) -> Mishap {
        if message.first() != Some(&b'B') {
            return Mishap::None;
        }
        let mut state = self.state.lock().unwrap();
        let mishap = state.mishap.unwrap_or(Mishap::None);
        if mishap != Mishap::Away {
            state.mishap = state.then.take();
        }
        mishap
    }

    fn pass(&self, mut client: TcpStream, mut server: UnixStream) {
        let lost = Arc::new(Mutex::new(false));
        let (mut to_client, mut from_server) =
            (client.try_clone().unwrap(), server.try_clone().unwrap());
        let (is_lost, state) = (Arc::clone(&lost), Arc::clone(&self.state));
        std::thread::spawn(move || {
            let mut buffer = vec![0; 65_536];
            while let Ok(length @ 1..) = from_server.read(&mut buffer) {
                let answer = &buffer[..length];
                if !*is_lost.lock().unwrap() {
                    if to_client.write_all(answer).is_err() {
                        break;
                    }
                } else if answer.ends_with(READY) {
                    state.lock().unwrap().answered += 1;
                    break;
                }
            }
            let _ = to_client.shutdown(Shutdown::Both);
        });
        let proxy = self.clone();
        std::thread::spawn(move || {
            let mut buffer = vec![0; 65_536];
            while let Ok(length @ 1..) = client.read(&mut buffer) {
                let message = &buffer[..length];
                if proxy.stalls(message) {
                    while client.read(&mut buffer).is_ok_and(|length| length > 0) {}
                    return;
                }
                match proxy.befalls(message) {
                    Mishap::None => {}
                    Mishap::AnswerLost => *lost.lock().unwrap() = true,
                    Mishap::Delayed => {
                        let mut state = proxy.state.lock().unwrap();
                        state.delayed.push((message.to_vec(), server));
                        *lost.lock().unwrap() = true;
                        let _ = client.shutdown(Shutdown::Both);
                        return;
                    }
                    Mishap::Away => break,
                }
                if server.write_all(message).is_err() {
                    break;
                }
            }
            let _ = server.shutdown(Shutdown::Write);
            let _ = client.shutdown(Shutdown::Both);
        });
    }
}
