//! A proxy that stands between an installer and the server and spoils a chosen request of the conversation.

use crate::harness::wait_until;
use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// A request of an installation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Step {
    Script,
    Address,
    Precheck,
    Activate,
    Payload,
    Confirm,
    Release,
    Register,
    CheckIn,
}

impl Step {
    /// All of them, in the order of an installation.
    pub const ALL: [Self; 9] = [
        Self::Script,
        Self::Address,
        Self::Precheck,
        Self::Activate,
        Self::Payload,
        Self::Confirm,
        Self::Release,
        Self::Register,
        Self::CheckIn,
    ];

    fn of(path: &str) -> Option<Self> {
        let last = path.rsplit('/').next()?;
        Some(match last {
            "install.sh" => Self::Script,
            "address" => Self::Address,
            "precheck" => Self::Precheck,
            "activate" => Self::Activate,
            "payload" => Self::Payload,
            "confirm" => Self::Confirm,
            "release" => Self::Release,
            "register" => Self::Register,
            "check-in" => Self::CheckIn,
            _ => return None,
        })
    }
}

/// What happens to a request or to its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The connection closes. The server never hears of the request.
    LoseRequest,
    /// The connection closes. The server hears of the request only after the client's next one.
    DeliverLate,
    /// The server answers. Nothing of the answer arrives.
    LoseAnswer,
    /// The answer comes when the client has given up.
    AnswerLate,
    /// The connection closes in the middle of the answer's head.
    CutHead,
    /// The connection closes in the middle of the answer's body.
    CutBody,
    /// Half of the body arrives, and the head says that this is all.
    Shorten,
    /// The server gets the request twice. The second answer arrives.
    Double,
    /// A page with status 502 arrives. The server never hears of the request.
    BadGateway,
    /// A page with status 502 arrives instead of the server's answer.
    BadGatewayAfter,
    /// A page with status 200 arrives, such as a hotel's. The server never hears of the request.
    Portal,
    /// A redirect arrives, to a page with status 200. The server never hears of the request.
    Redirect,
    /// The server is killed and started again. It never hears of the request.
    KillBefore,
    /// The server is killed while it has the request, and started again.
    KillDuring,
    /// The server answers, is killed and started again. Nothing of the answer arrives.
    KillAfter,
}

impl Fault {
    /// All of them.
    pub const ALL: [Self; 15] = [
        Self::LoseRequest,
        Self::DeliverLate,
        Self::LoseAnswer,
        Self::AnswerLate,
        Self::CutHead,
        Self::CutBody,
        Self::Shorten,
        Self::Double,
        Self::BadGateway,
        Self::BadGatewayAfter,
        Self::Portal,
        Self::Redirect,
        Self::KillBefore,
        Self::KillDuring,
        Self::KillAfter,
    ];
}

impl Fault {
    /// Whether the server is killed.
    pub fn kills(self) -> bool {
        matches!(self, Self::KillBefore | Self::KillDuring | Self::KillAfter)
    }
}

/// A fault at one step: it spoils the tries from `first` on (0 is the first try), `tries` of them.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    pub step: Step,
    pub fault: Fault,
    pub first: u32,
    pub tries: u32,
}

/// Kills the server and starts it again; returns its new address.
pub type Restart = Arc<dyn Fn() -> SocketAddr + Send + Sync>;

/// A running proxy. It answers one request a connection.
#[derive(Clone)]
pub struct LosingProxy(Arc<Inner>);

struct Inner {
    address: SocketAddr,
    server: Mutex<SocketAddr>,
    /// The address of the client, as the server sees it: the server trusts this proxy.
    client: IpAddr,
    restart: Restart,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    plans: Vec<Plan>,
    /// The number of tries of each step.
    tries: HashMap<Step, u32>,
    /// The number of tries that were spoilt.
    spoilt: u32,
    /// The number of requests that are being served.
    under_way: u32,
    /// Requests that the server gets after the next one.
    held: Vec<Vec<u8>>,
    ended: bool,
}

/// Where redirects lead.
const PORTAL: &str = "/portal";

/// The longest that a request is waited for, and that a late answer waits for its client to give up.
const LATEST: Duration = Duration::from_secs(20);

impl LosingProxy {
    /// Starts a proxy in front of `server`, for a client with the address `client`.
    pub fn start(server: SocketAddr, client: IpAddr, plans: &[Plan], restart: Restart) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let state = Mutex::new(State { plans: plans.to_vec(), ..State::default() });
        let server = Mutex::new(server);
        let proxy = Self(Arc::new(Inner { address, server, client, restart, state }));
        let serving = proxy.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if serving.0.state.lock().unwrap().ended {
                    return;
                }
                let (Ok(stream), serving) = (stream, serving.clone()) else { return };
                serving.0.state.lock().unwrap().under_way += 1;
                std::thread::spawn(move || {
                    // A client that hangs up gets no answer. That is no fault of the proxy.
                    let _ = serving.serve(stream);
                    serving.0.state.lock().unwrap().under_way -= 1;
                });
            }
        });
        proxy
    }

    /// Where clients find it.
    pub fn url(&self) -> String {
        format!("http://{}", self.0.address)
    }

    /// The number of tries that were spoilt so far.
    pub fn spoilt(&self) -> u32 {
        self.0.state.lock().unwrap().spoilt
    }

    /// Whether a step was asked for.
    pub fn has_seen(&self, step: Step) -> bool {
        self.0.state.lock().unwrap().tries.contains_key(&step)
    }

    /// Waits until nothing is under way any more, so that no server is killed while a test asks it.
    pub fn settle(&self) {
        wait_until("the proxy is idle", || self.0.state.lock().unwrap().under_way == 0);
    }

    /// Lets everything pass from now on.
    pub fn heal(&self) {
        self.0.state.lock().unwrap().plans.clear();
    }

    /// Stops listening.
    pub fn end(&self) {
        self.0.state.lock().unwrap().ended = true;
        // Wakes the thread that accepts connections.
        let _ = TcpStream::connect(self.0.address);
    }

    /// Counts a try and returns the fault that is planned for it.
    fn fault_at(&self, path: &str) -> Option<Fault> {
        let step = Step::of(path)?;
        let mut state = self.0.state.lock().unwrap();
        let counted = state.tries.entry(step).or_default();
        let this = *counted;
        *counted += 1;
        let hits = |plan: &&Plan| {
            plan.step == step && this.checked_sub(plan.first).is_some_and(|nth| nth < plan.tries)
        };
        let fault = state.plans.iter().find(hits).map(|plan| plan.fault);
        state.spoilt += u32::from(fault.is_some());
        fault
    }

    fn serve(&self, mut client: TcpStream) -> Option<()> {
        client.set_read_timeout(Some(LATEST)).ok()?;
        let (head, body) = read_message(&mut client)?;
        let path = head.split(' ').nth(1)?.to_owned();
        let request = self.request(&head, &body);
        let forward = || {
            let held = std::mem::take(&mut self.0.state.lock().unwrap().held);
            let answer = self.forward(&request);
            for late in &held {
                self.forward(late);
            }
            answer
        };
        let answer = match self.fault_at(&path) {
            None if path == PORTAL => page("200 OK", ""),
            None => forward()?,
            Some(Fault::LoseRequest) => return None,
            Some(Fault::DeliverLate) => {
                self.0.state.lock().unwrap().held.push(request);
                return None;
            }
            Some(Fault::LoseAnswer) => {
                forward()?;
                return None;
            }
            Some(Fault::AnswerLate) => {
                let answer = forward()?;
                wait_for_hang_up(&mut client);
                answer
            }
            Some(Fault::CutHead) => {
                let answer = forward()?;
                answer[..body_of(&answer) / 2].to_vec()
            }
            Some(Fault::CutBody) => half(&forward()?),
            Some(Fault::Shorten) => with_true_length(&half(&forward()?)),
            Some(Fault::Double) => {
                forward()?;
                forward()?
            }
            Some(Fault::BadGateway) => page("502 Bad Gateway", ""),
            Some(Fault::BadGatewayAfter) => {
                forward()?;
                page("502 Bad Gateway", "")
            }
            Some(Fault::Portal) => page("200 OK", ""),
            Some(Fault::Redirect) => {
                page("302 Found", &format!("Location: {}{PORTAL}\r\n", self.url()))
            }
            Some(Fault::KillBefore) => return self.restart(),
            Some(Fault::KillDuring) => {
                let sent = self.send(&request);
                let killed = self.restart();
                drop(sent);
                return killed;
            }
            Some(Fault::KillAfter) => {
                forward()?;
                return self.restart();
            }
        };
        client.write_all(&answer).ok()?;
        client.shutdown(Shutdown::Write).ok()
    }

    /// Kills the server and starts it again. Nobody gets an answer meanwhile.
    fn restart(&self) -> Option<()> {
        let mut server = self.0.server.lock().unwrap();
        *server = (self.0.restart)();
        None
    }

    /// The request as the server gets it.
    fn request(&self, head: &str, body: &[u8]) -> Vec<u8> {
        let dropped = ["connection:", "x-forwarded-for:"];
        let is_kept =
            |line: &&str| !dropped.iter().any(|name| line.to_lowercase().starts_with(name));
        let kept: Vec<&str> = head.trim_end().lines().filter(is_kept).collect();
        let from = self.0.client;
        let head = kept.join("\r\n");
        let head = format!("{head}\r\nConnection: close\r\nX-Forwarded-For: {from}\r\n\r\n");
        [head.as_bytes(), body].concat()
    }

    fn send(&self, request: &[u8]) -> Option<TcpStream> {
        let server = *self.0.server.lock().unwrap();
        let mut server = TcpStream::connect(server).ok()?;
        server.write_all(request).ok()?;
        Some(server)
    }

    /// Sends the request to the server and reads its answer. `None`: the server is away.
    fn forward(&self, request: &[u8]) -> Option<Vec<u8>> {
        let mut server = self.send(request)?;
        let mut answer = Vec::new();
        server.read_to_end(&mut answer).ok()?;
        (!answer.is_empty()).then_some(answer)
    }
}

/// Reads a request with its body. `None`: the client hung up.
fn read_message(stream: &mut TcpStream) -> Option<(String, Vec<u8>)> {
    let (mut all, mut piece) = (Vec::new(), [0; 4096]);
    let mut more = |all: &mut Vec<u8>| {
        let count = stream.read(&mut piece).ok().filter(|count| *count > 0)?;
        all.extend_from_slice(&piece[..count]);
        Some(())
    };
    while !all.windows(4).any(|four| four == b"\r\n\r\n") {
        more(&mut all)?;
    }
    let begin = body_of(&all);
    let head = String::from_utf8(all[..begin].to_vec()).ok()?;
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok())?
    });
    while all.len() < begin + length.unwrap_or(0) {
        more(&mut all)?;
    }
    Some((head, all[begin..].to_vec()))
}

/// Where the body of a message begins.
fn body_of(message: &[u8]) -> usize {
    message.windows(4).position(|four| four == b"\r\n\r\n").map_or(message.len(), |end| end + 4)
}

/// The message with the first half of its body.
fn half(message: &[u8]) -> Vec<u8> {
    let begin = body_of(message);
    message[..begin + (message.len() - begin) / 2].to_vec()
}

/// The message with a `Content-Length` that agrees with its body.
fn with_true_length(message: &[u8]) -> Vec<u8> {
    let begin = body_of(message);
    let head = String::from_utf8_lossy(&message[..begin]);
    let is_kept = |line: &&str| {
        let line = line.to_lowercase();
        !line.is_empty()
            && !line.starts_with("content-length:")
            && !line.starts_with("transfer-encoding:")
    };
    let kept: Vec<&str> = head.lines().filter(is_kept).collect();
    let head =
        format!("{}\r\nContent-Length: {}\r\n\r\n", kept.join("\r\n"), message.len() - begin);
    [head.as_bytes(), &message[begin..]].concat()
}

/// A page that is not the server's.
fn page(status: &str, headers: &str) -> Vec<u8> {
    let body = "<!DOCTYPE html>\n<html><title>Welcome</title><p>Please sign in.</p></html>\n";
    let length = body.len();
    format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/html\r\nContent-Length: {length}\r\n{headers}\
         Connection: close\r\n\r\n{body}"
    )
    .into_bytes()
}

/// Waits until the client closes its side, which is when it has given up.
fn wait_for_hang_up(client: &mut TcpStream) {
    while let Ok(1..) = client.read(&mut [0; 64]) {}
}
