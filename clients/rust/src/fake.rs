//! For tests: a server as the API describes it, in memory, behind a network that loses things, and a machine
//! that may die at any point. Everything that happens follows from a seed.

use crate::client::Binding;
use crate::environment::Environment;
use crate::error::Problem;
use crate::state::State;
use crate::store::Store;
use crate::transport::{Request, Response, Transport};
use base64::Engine;
use rand_chacha::ChaCha8Rng;
use rand_core::{Rng, SeedableRng};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

/// The payload of the product.
pub(crate) const SCRIPT: &[u8] = b"#!/bin/sh\necho installed\n";

/// How an activation stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    Open,
    Confirmed,
    Released,
}

#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) standing: Standing,
    machine: Value,
    pub(crate) binding: Value,
    /// The agent token that its install token has registered.
    registered: Option<String>,
    opened: Duration,
}

/// The server: one code and its activations.
#[derive(Debug, Default)]
pub(crate) struct Server {
    pub(crate) activations: Vec<Held>,
    /// By their agent token.
    pub(crate) servers: BTreeMap<String, Value>,
    pub(crate) revoked: bool,
    /// The precheck tokens and when they were made.
    prechecks: Vec<Duration>,
    /// The paths that were asked for, to their last part.
    pub(crate) asked: Vec<String>,
}

type Answer = Result<Value, (u16, &'static str)>;

impl Server {
    pub(crate) fn open(&self) -> Option<usize> {
        self.activations.iter().position(|held| held.standing == Standing::Open)
    }

    pub(crate) fn confirmed(&self) -> usize {
        let is_confirmed = |held: &&Held| held.standing == Standing::Confirmed;
        self.activations.iter().filter(is_confirmed).count()
    }

    /// Whether the holder of an open activation asks; `used` if somebody else holds the code.
    fn holds(&self, body: &Value, now: Duration) -> Result<Option<usize>, (u16, &'static str)> {
        let Some(held) = self.activations.last() else { return Ok(None) };
        match held.standing {
            Standing::Released => Ok(None),
            Standing::Open
                if held.machine == machine(body)
                    && now < held.opened + Duration::from_secs(600) =>
            {
                Ok(Some(self.activations.len() - 1))
            }
            _ => Err((403, "install_code_used")),
        }
    }

    fn activate(&mut self, body: &Value, now: Duration) -> Answer {
        let token = body["precheck_token"].as_str().and_then(|token| token.parse::<usize>().ok());
        let made = token.and_then(|token| self.prechecks.get(token));
        if made.is_none_or(|made| now >= *made + Duration::from_secs(900)) {
            return Err((403, "precheck_token_invalid"));
        }
        let binding = json!([body["hostname"], body["public_ip"]]);
        let mut number = self.activations.len();
        match self.holds(body, now)? {
            Some(held) if self.activations[held].binding == binding => number = held,
            held => {
                if let Some(held) = held {
                    self.activations[held].standing = Standing::Released;
                }
                let (standing, machine) = (Standing::Open, machine(body));
                let held = Held { standing, machine, binding, registered: None, opened: now };
                self.activations.push(held);
            }
        }
        Ok(json!({"activation_id": format!("act_{number}"), "install_token": number.to_string()}))
    }

    fn by_id(&mut self, body: &Value) -> Option<&mut Held> {
        let number = body["activation_id"].as_str()?.strip_prefix("act_")?.parse().ok();
        number.and_then(|number: usize| self.activations.get_mut(number))
    }

    fn by_token(&mut self, token: &str) -> Option<&mut Held> {
        token.parse().ok().and_then(|number: usize| self.activations.get_mut(number))
    }

    fn confirm(&mut self, body: &Value, now: Duration) -> Answer {
        let held = self.by_id(body).ok_or((404, "activation_not_found"))?;
        if now >= held.opened + Duration::from_secs(600) {
            return Err((403, "token_invalid"));
        }
        match held.standing {
            Standing::Released => Err((404, "activation_not_found")),
            Standing::Confirmed => Err((409, "token_used")),
            Standing::Open => {
                held.standing = Standing::Confirmed;
                Ok(json!({"status": "confirmed"}))
            }
        }
    }

    fn release(&mut self, body: &Value, now: Duration) -> Answer {
        let held = self.by_id(body).ok_or((404, "activation_not_found"))?;
        let restored = now < held.opened + Duration::from_secs(600);
        match held.standing {
            Standing::Released => Err((404, "activation_not_found")),
            Standing::Confirmed => {
                Ok(json!({"status": "confirmed", "install_code_restored": false}))
            }
            Standing::Open => {
                if restored {
                    held.standing = Standing::Released;
                }
                Ok(json!({"status": "released", "install_code_restored": restored}))
            }
        }
    }

    fn register(&mut self, body: &Value) -> Answer {
        let agent = body["agent_token"].as_str().unwrap_or_default().to_owned();
        let token = body["token"].as_str().unwrap_or_default().to_owned();
        let held = self.by_token(&token).ok_or((401, "unauthorized"))?;
        let is_bound = held.binding == json!([body["hostname"], body["ip"]]);
        if held.standing != Standing::Confirmed || !is_bound {
            return Err((401, "unauthorized"));
        }
        if held.registered.as_ref().is_some_and(|used| *used != agent) {
            return Err((403, "credential_used"));
        }
        held.registered = Some(agent.clone());
        let binding = held.binding.clone();
        self.servers.insert(agent, binding);
        Ok(json!({"server_id": "0123456789abcdef"}))
    }

    fn check_in(&self, bearer: &str) -> Answer {
        match (self.servers.contains_key(bearer), self.revoked) {
            (false, _) => Err((401, "unauthorized")),
            (true, true) => Err((403, "revoked")),
            (true, false) => Ok(json!({"status": "ok", "next_checkin_seconds": 3600})),
        }
    }

    fn payload(&mut self, bearer: &str) -> Response {
        let standing = self.by_token(bearer).map(|held| held.standing);
        if !matches!(standing, Some(Standing::Open | Standing::Confirmed)) {
            return failure(401, "token_invalid");
        }
        let sum = base64::engine::general_purpose::STANDARD.encode(Sha256::digest(SCRIPT));
        let headers = vec![("Repr-Digest".to_owned(), format!("sha-256=:{sum}:"))];
        Response { status: 200, headers, body: SCRIPT.to_vec() }
    }

    fn answer(&mut self, request: &Request, now: Duration) -> Response {
        let path = request.url.rsplit('/').next().unwrap();
        self.asked.push(path.to_owned());
        let body: Value =
            request.body.as_ref().map_or(Value::Null, |body| serde_json::from_str(body).unwrap());
        let bearer = request.bearer.as_ref().map_or("", |token| token.as_str());
        let answer = match path {
            "address" => Ok(json!({"ip": "192.0.2.7"})),
            "precheck" => self.holds(&body, now).map(|_| {
                self.prechecks.push(now);
                json!({"precheck_token": (self.prechecks.len() - 1).to_string()})
            }),
            "activate" => self.activate(&body, now),
            "payload" => return self.payload(bearer),
            "confirm" => self.confirm(&body, now),
            "release" => self.release(&body, now),
            "register" => self.register(&body),
            "check-in" => self.check_in(bearer),
            _ => Err((404, "not_found")),
        };
        match answer {
            Ok(data) => success(&data),
            Err((status, code)) => failure(status, code),
        }
    }
}

fn machine(body: &Value) -> Value {
    json!([body["machine_id"], body["ssh_fingerprint"]])
}

fn success(data: &Value) -> Response {
    let body = json!({"data": data, "meta": {"message": "OK"}}).to_string().into_bytes();
    Response { status: 200, headers: vec![], body }
}

fn failure(status: u16, code: &str) -> Response {
    let body = json!({"error": {"code": code, "message": "No."}}).to_string().into_bytes();
    let headers = match status {
        429 | 503 => vec![("Retry-After".to_owned(), "2".to_owned())],
        _ => vec![],
    };
    Response { status, headers, body }
}

fn html(status: u16) -> Response {
    Response { status, headers: vec![], body: b"<html>Bad Gateway</html>".to_vec() }
}

/// What happens to one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    Passes,
    RequestLost,
    AnswerLost,
    AnswerCut,
    AnswerReplaced,
    RequestReplaced,
    Redirected,
    Doubled,
    Overloaded,
    OutcomeUnknown,
    /// A proxy on the way has a limit of its own.
    Limited,
}

impl Fate {
    pub(crate) const ALL: [Self; 11] = [
        Self::Passes,
        Self::RequestLost,
        Self::AnswerLost,
        Self::AnswerCut,
        Self::AnswerReplaced,
        Self::RequestReplaced,
        Self::Redirected,
        Self::Doubled,
        Self::Overloaded,
        Self::OutcomeUnknown,
        Self::Limited,
    ];
}

/// Everything that the tests look at.
pub(crate) struct Inside {
    pub(crate) server: Server,
    pub(crate) now: Duration,
    pub(crate) chance: ChaCha8Rng,
    /// How many of a hundred requests have another fate than to pass.
    pub(crate) faults: u32,
    /// The fates of the next requests, before chance decides.
    pub(crate) next: Vec<Fate>,
    /// After so many more events the machine dies: a save or a request begins or ends.
    pub(crate) dies_after: Option<u32>,
    /// What the store has kept, as text.
    pub(crate) disk: Option<String>,
    /// The pauses between tries.
    pub(crate) pauses: Vec<Duration>,
}

/// A world with one server, one machine and the network between them. Clones are the same world.
#[derive(Clone)]
pub(crate) struct World(Arc<Mutex<Inside>>);

impl World {
    pub(crate) fn new(seed: u64) -> Self {
        Self(Arc::new(Mutex::new(Inside {
            server: Server::default(),
            now: Duration::ZERO,
            chance: ChaCha8Rng::seed_from_u64(seed),
            faults: 0,
            next: vec![],
            dies_after: None,
            disk: None,
            pauses: vec![],
        })))
    }

    pub(crate) fn look(&self) -> MutexGuard<'_, Inside> {
        self.0.lock().unwrap()
    }

    pub(crate) fn below(&self, bound: u32) -> u32 {
        self.look().chance.next_u32() % bound
    }

    pub(crate) fn is_dead(&self) -> bool {
        self.look().dies_after == Some(0)
    }

    /// The state that the next program finds.
    pub(crate) fn kept(&self) -> Option<State> {
        self.look().disk.as_ref().map(|text| serde_json::from_str(text).unwrap())
    }
}

impl Inside {
    /// One more event. False once the machine is dead.
    fn lives_on(&mut self) -> bool {
        match &mut self.dies_after {
            None => true,
            Some(0) => false,
            Some(left) => {
                *left -= 1;
                *left > 0
            }
        }
    }

    fn fate(&mut self) -> Fate {
        if !self.next.is_empty() {
            return self.next.remove(0);
        }
        let (dice, kind) = (self.chance.next_u32() % 100, self.chance.next_u32() as usize);
        if dice < self.faults { Fate::ALL[kind % Fate::ALL.len()] } else { Fate::Passes }
    }

    fn carry(&mut self, request: &Request) -> Result<Response, Problem> {
        let lost = || Problem::Network("lost".to_owned());
        let fate = self.fate();
        match fate {
            Fate::RequestLost => return Err(lost()),
            Fate::RequestReplaced => return Ok(html(502)),
            Fate::Redirected => return Ok(html(302)),
            Fate::Overloaded => return Ok(failure(503, "overloaded")),
            Fate::Limited => return Ok(failure(429, "rate_limit_exceeded")),
            _ => {}
        }
        let mut answer = self.server.answer(request, self.now);
        match fate {
            Fate::AnswerLost => Err(lost()),
            Fate::AnswerReplaced => Ok(html(502)),
            Fate::OutcomeUnknown => Ok(failure(503, "outcome_unknown")),
            Fate::Doubled => Ok(self.server.answer(request, self.now)),
            Fate::AnswerCut => {
                answer.body.truncate(answer.body.len() / 2);
                Ok(answer)
            }
            _ => Ok(answer),
        }
    }
}

impl Transport for World {
    fn send(&self, request: &Request, _: Duration) -> Result<Response, Problem> {
        let dead = || Problem::Network("this machine is dead".to_owned());
        let mut inside = self.look();
        if !inside.lives_on() {
            return Err(dead());
        }
        let answer = inside.carry(request);
        if inside.lives_on() { answer } else { Err(dead()) }
    }
}

impl Store for World {
    fn save(&mut self, state: &State) -> io::Result<()> {
        let dead = || io::Error::other("this machine is dead");
        let mut inside = self.look();
        if !inside.lives_on() {
            return Err(dead());
        }
        inside.disk = Some(serde_json::to_string(state).unwrap());
        if inside.lives_on() { Ok(()) } else { Err(dead()) }
    }
}

impl Environment for World {
    fn now(&self) -> Duration {
        self.look().now
    }
    fn sleep(&self, pause: Duration) {
        let mut inside = self.look();
        inside.now += pause;
        inside.pauses.push(pause);
    }
    fn random(&self, bytes: &mut [u8]) -> io::Result<()> {
        self.look().chance.fill_bytes(bytes);
        Ok(())
    }
}

/// The binding with this host name.
pub(crate) fn binding(hostname: &str) -> Binding {
    Binding { hostname: hostname.to_owned(), public_ip: [192, 0, 2, 7].into() }
}
