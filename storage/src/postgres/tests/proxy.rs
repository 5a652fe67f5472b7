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
    /// Answers are held back.
    holds: bool,
    /// After the answers to so many commits the connection breaks.
    answers: Option<usize>,
    /// After so many commits, what is sent over their connection arrives only when it is let through.
    arrivals: Option<usize>,
    /// Not even the first commit arrives, so no answer will come.
    nothing_arrives: bool,
    /// How many commits were sent.
    commits: usize,
    /// The connection of which something arrives later, and whether its answers are lost.
    late: Option<(TcpStream, Arc<Mutex<bool>>)>,
}

#[derive(Clone)]
pub(super) struct Proxy {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
}

/// The end of an answer: the database is ready, and in no transaction.
const READY: &[u8] = b"Z\0\0\0\x05I";
/// The end of a batch.
const COMMIT: &[u8] = b"Q\0\0\0\x0bCOMMIT\0";
/// Its answer, before that the database is ready.
const COMMITTED: &[u8] = b"C\0\0\0\x0bCOMMIT\0";

/// Returns where each `part` in `bytes` begins.
fn places(bytes: &[u8], part: &[u8]) -> Vec<usize> {
    (0..bytes.len()).filter(|at| bytes[*at..].starts_with(part)).collect()
}

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

    /// Holds answers back until [`Proxy::answer`], and all that is sent after so many commits.
    pub(super) fn hold(&self, arrivals: Option<usize>) {
        let mut state = self.state.lock().unwrap();
        (state.holds, state.commits, state.arrivals) = (true, 0, arrivals);
        state.nothing_arrives = arrivals == Some(0);
    }

    /// Lets answers pass: those to so many commits, before their connection breaks.
    pub(super) fn answer(&self, answers: Option<usize>) {
        let mut state = self.state.lock().unwrap();
        let none_will_come = state.nothing_arrives;
        state.holds = false;
        match state.late.take() {
            Some((client, lost)) if none_will_come => {
                *lost.lock().unwrap() = true;
                client.shutdown(Shutdown::Both).unwrap();
                state.arrivals = None;
            }
            _ => state.answers = answers,
        }
        if answers.is_none() {
            state.arrivals = None;
        }
    }

    pub(super) fn has_delayed(&self) -> bool {
        !self.state.lock().unwrap().delayed.is_empty()
    }

    pub(super) fn commits(&self) -> usize {
        self.state.lock().unwrap().commits
    }

    /// Returns how many bytes of a message arrive now.
    fn arrives(&self, message: &[u8]) -> usize {
        let mut state = self.state.lock().unwrap();
        let commits = places(message, COMMIT);
        state.commits += commits.len();
        let Some(arrivals) = &mut state.arrivals else { return message.len() };
        if let Some(last) = arrivals.checked_sub(1).and_then(|last| commits.get(last)) {
            *arrivals = 0;
            return last + COMMIT.len();
        }
        let is_of_batch = !places(message, b"BEGIN").is_empty() || !commits.is_empty();
        if *arrivals == 0 && is_of_batch {
            return 0;
        }
        *arrivals -= commits.len().min(*arrivals);
        message.len()
    }

    /// Returns how many bytes of an answer pass, and whether the connection breaks then.
    fn passes(&self, answer: &[u8]) -> (usize, bool) {
        while self.state.lock().unwrap().holds {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        let mut state = self.state.lock().unwrap();
        let Some(answers) = &mut state.answers else { return (answer.len(), false) };
        let committed = places(answer, COMMITTED);
        let pass = match answers.checked_sub(1).map(|last| committed.get(last)) {
            None => 0,
            Some(Some(last)) => answer.len().min(last + COMMITTED.len() + READY.len()),
            Some(None) => {
                *answers -= committed.len();
                return (answer.len(), false);
            }
        };
        (state.answers, state.arrivals) = (None, None);
        (pass, true)
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
            self.state.lock().unwrap().answered >= delayed.len()
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
        let answering = self.clone();
        std::thread::spawn(move || {
            let mut buffer = vec![0; 65_536];
            while let Ok(length @ 1..) = from_server.read(&mut buffer) {
                let answer = &buffer[..length];
                let was_lost = *is_lost.lock().unwrap();
                if !was_lost {
                    let (pass, breaks) = answering.passes(answer);
                    if to_client.write_all(&answer[..pass]).is_err() {
                        break;
                    }
                    if breaks {
                        *is_lost.lock().unwrap() = true;
                        let _ = to_client.shutdown(Shutdown::Both);
                    }
                } else if answer.ends_with(READY) {
                    // The next may be that to something late.
                    state.lock().unwrap().answered += 1;
                }
            }
            let _ = to_client.shutdown(Shutdown::Both);
        });
        let proxy = self.clone();
        std::thread::spawn(move || {
            let mut buffer = vec![0; 65_536];
            let mut late: Vec<u8> = Vec::new();
            while let Ok(length @ 1..) = client.read(&mut buffer) {
                let message = &buffer[..length];
                let arrives = if late.is_empty() { proxy.arrives(message) } else { 0 };
                if arrives < length {
                    let mut state = proxy.state.lock().unwrap();
                    if late.is_empty() {
                        state.late = Some((client.try_clone().unwrap(), Arc::clone(&lost)));
                    } else {
                        state.commits += places(message, COMMIT).len();
                    }
                    drop(state);
                    late.extend_from_slice(&message[arrives..]);
                    if server.write_all(&message[..arrives]).is_err() {
                        break;
                    }
                    continue;
                }
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
            if !late.is_empty() {
                return proxy.state.lock().unwrap().delayed.push((late, server));
            }
            let _ = server.shutdown(Shutdown::Write);
            let _ = client.shutdown(Shutdown::Both);
        });
    }
}
