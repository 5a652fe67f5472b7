//! Requests in flight, and the callers who sent them: installers, agents and operators as they
//! really behave.

use crate::book::{Asked, Heard};
use crate::server::{Common, life};
use iptunnel_actors::activation::{Confirm, Release, ReleaseOutcome};
use iptunnel_actors::code_registry::{Activate, Issue, PrecheckCode};
use iptunnel_actors::server_registry::{CheckIn, CheckedIn, Delete, Register, SetRevoked};
use iptunnel_actors::{Answer, Failure, Handles, Limited, LimitedCommand, Pending};
use iptunnel_domain::access::TokenNumber;
use iptunnel_domain::activation::{ActivationId, Binding, Holder, Request};
use iptunnel_domain::address::HostName;
use iptunnel_domain::code::{CodeHash, ProductLetters};
use iptunnel_domain::limit::{Policy, Subject};
use iptunnel_domain::lookup::KeyedHash;
use iptunnel_domain::server::{Bearer, Credential, EnrolledBy, ServerId};
use iptunnel_domain::{Refusal, Timestamp};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

const FROM: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
/// The hosts that machines want to be known by.
pub const HOSTS: [&str; 2] = ["a.example.com", "b.example.com"];
/// The token that registers servers.
const TOKEN: KeyedHash = KeyedHash([6; 16]);

/// A request without an answer so far.
pub struct Call {
    /// Its number in the book.
    pub operation: usize,
    pub server: usize,
    /// The deadline of its caller, in virtual milliseconds.
    pub deadline: u64,
    /// Its answer is lost.
    pub lost: bool,
    waits: Box<dyn Waits>,
}

trait Waits {
    fn answered(&mut self) -> Option<(Heard, Option<u32>)>;
    fn abandon(&self) -> Option<Failure>;
}

struct Waiting<T, F> {
    pending: Pending<T>,
    heard: F,
}

impl<T, F: Fn(T) -> Heard> Waits for Waiting<T, F> {
    fn answered(&mut self) -> Option<(Heard, Option<u32>)> {
        let Answer { outcome, rates } = self.pending.answered()?;
        let heard = match outcome {
            Ok(Ok(answer)) => (self.heard)(answer),
            Ok(Err(refusal)) => Heard::Refused(refusal),
            Err(failure) => Heard::Failed(failure),
        };
        let most = rates.and_then(|rates| rates.iter().map(|standing| standing.used).max());
        Some((heard, most))
    }

    fn abandon(&self) -> Option<Failure> {
        self.pending.abandon()
    }
}

impl Call {
    /// Returns the answer, if it has arrived, and the count of the tightest limit.
    pub fn answered(&mut self) -> Option<(Heard, Option<u32>)> {
        self.waits.answered()
    }

    /// Stops waiting. Returns what the caller hears, unless the answer has been sent.
    pub fn abandon(&self) -> Option<Failure> {
        self.waits.abandon()
    }
}

fn hash(kind: u8, number: usize) -> KeyedHash {
    let mut bytes = [kind; 16];
    bytes[..8].copy_from_slice(&(number as u64 + 1).to_be_bytes());
    KeyedHash(bytes)
}

fn holder(machine: usize) -> Holder {
    Holder { machine: hash(1, machine), fingerprint: hash(2, machine) }
}

/// The id of an agent's server.
pub fn server_id(agent: usize) -> ServerId {
    ServerId(0xABCD_0000 + agent as u64)
}

/// The subject to which the activates of a machine are charged.
pub fn activates_of(machine: usize) -> Subject {
    Subject { policy: Policy::ActivatePerMachineDay, who: holder(machine).machine }
}

/// The details of a request.
pub struct Details {
    pub now: Timestamp,
    /// The hash of the code.
    pub code: Option<CodeHash>,
    /// The time of the precheck that allows an activate.
    pub prechecked_at: Timestamp,
    /// The edge's check of an install token.
    pub token: Result<(), Refusal>,
    /// The browser session.
    pub session: usize,
}

/// Sends a request. Returns its pending answer, or the answer that the edge gives at once.
pub fn send(
    handles: &Handles,
    asked: &Asked,
    details: &Details,
    common: &Common,
) -> Result<Sent, Failure> {
    let now = details.now;
    let code = details.code.unwrap_or(CodeHash(KeyedHash([0; 16])));
    let sent = match asked {
        Asked::Issue => {
            let product = ProductLetters::parse("SD").unwrap_or_else(|| unreachable!());
            let session = hash(3, details.session);
            let issue = Issue { product, session, from: FROM, life: life(), now };
            let key = common.key.clone();
            let subject = Subject { policy: Policy::IssuePerSessionHour, who: session };
            limited(handles, vec![subject], issue, now, move |issued| Heard::Issued {
                code: issued.code.hash(&key),
                expires_at: issued.expires_at,
            })?
        }
        Asked::Precheck { machine, .. } => {
            let holder = holder(*machine);
            let who = holder.machine;
            let precheck = PrecheckCode { code, holder, from: FROM, life: life(), now };
            let subject = Subject { policy: Policy::PrecheckPerMachineDay, who };
            limited(handles, vec![subject], precheck, now, |()| Heard::Ready)?
        }
        Asked::Activate { machine, host, .. } => {
            let hostname = HOSTS.get(*host).and_then(|host| HostName::parse(host));
            let hostname = hostname.unwrap_or_else(|| unreachable!());
            let request = Arc::new(Request {
                holder: holder(*machine),
                binding: Binding { hostname, public_ip: IpAddr::from([9, 9, 9, *host as u8]) },
                requested_ref: "main".into(),
                installer_version: "1".into(),
                signing_key: "k".into(),
            });
            let prechecked_at = details.prechecked_at;
            let activate = Activate { code, prechecked_at, request, from: FROM, life: life(), now };
            limited(handles, vec![activates_of(*machine)], activate, now, |answer| {
                let request = &answer.activation.request;
                let machine = request.holder.machine.as_u64() as usize;
                let host = request.binding.hostname.as_str();
                Heard::Granted {
                    id: answer.activation.at.id,
                    machine: machine.wrapping_sub(1),
                    host: HOSTS.iter().position(|one| *one == host).unwrap_or(usize::MAX),
                    expires_at: answer.activation.expires_at,
                }
            })?
        }
        Asked::Confirm { id, .. } => {
            let confirm = Confirm { id: *id, token: details.token.clone(), from: FROM, now };
            waiting(handles.confirm(confirm)?, |()| Heard::Confirmed)
        }
        Asked::Release { id, .. } => {
            let (token, proven) = (Ok(()), !details.session.is_multiple_of(3));
            let release = Release { id: *id, token, proven, from: FROM, life: life(), now };
            waiting(handles.release(release)?, |outcome| match outcome {
                ReleaseOutcome::Released { code_restored } => {
                    Heard::Released { restored: code_restored }
                }
                ReleaseOutcome::Confirmed => Heard::AlreadyConfirmed,
            })
        }
        Asked::Enrol { agent, ticket, made_ms } => {
            let by = EnrolledBy::Token(TokenNumber(1));
            let made_ms = Some(*made_ms);
            let register =
                registration(*agent, Credential { hash: hash(4, *ticket), by, made_ms }, now);
            waiting(handles.register(register)?, |server| Heard::Enrolled {
                registered_at: server.registered_at,
            })
        }
        Asked::Delete { agent } => {
            let id = server_id(*agent);
            let delete = Delete { id, by: String::new(), from: FROM, now };
            waiting(handles.delete_server(delete)?, |()| Heard::Deleted)
        }
        Asked::Register { agent } => {
            let credential = Credential { hash: TOKEN, by: EnrolledBy::Master, made_ms: None };
            let register = registration(*agent, credential, now);
            waiting(handles.register(register)?, |_| Heard::Registered)
        }
        Asked::CheckIn { agent } => {
            let (id, bearer) = (server_id(*agent), Bearer::Nobody);
            let check_in = CheckIn { id, bearer, from: FROM, now };
            waiting(handles.check_in(check_in)?, |answer| match answer {
                CheckedIn::Active => Heard::Active,
                CheckedIn::Revoked => Heard::Revoked,
            })
        }
        Asked::SetRevoked { agent, revoked } => {
            let id = server_id(*agent);
            let set = SetRevoked { id, revoked: *revoked, by: String::new(), from: FROM, now };
            waiting(handles.set_revoked(set)?, |()| Heard::Done)
        }
    };
    Ok(sent)
}

fn registration(agent: usize, credential: Credential, now: Timestamp) -> Register {
    Register {
        address_id: server_id(agent),
        ip: IpAddr::from([8, 8, 8, agent as u8]),
        hostname: format!("s{agent}.example.com"),
        credential,
        code: None,
        // More than there are agents: it is counted, and never reached.
        max_servers: 9,
        is_good: Arc::new(|_| true),
        by: String::new(),
        from: FROM,
        from_its_address: false,
        now,
    }
}

/// The pending answer of a request.
pub struct Sent(Box<dyn Waits>);

impl Sent {
    pub fn into_call(self, operation: usize, server: usize, deadline: u64, lost: bool) -> Call {
        Call { operation, server, deadline, lost, waits: self.0 }
    }
}

fn waiting<T: 'static>(pending: Pending<T>, heard: impl Fn(T) -> Heard + 'static) -> Sent {
    Sent(Box::new(Waiting { pending, heard }))
}

fn limited<C: LimitedCommand>(
    handles: &Handles,
    subjects: Vec<Subject>,
    command: C,
    now: Timestamp,
    heard: impl Fn(C::Answer) -> Heard + 'static,
) -> Result<Sent, Failure> {
    let pending =
        handles.limited(|reply| Limited { subjects, command: Ok(command), now, reply })?;
    Ok(waiting(pending, heard))
}

/// What a machine knows about one code.
#[derive(Clone, Debug, Default)]
pub struct Machine {
    /// The time of its last successful precheck.
    pub prechecked_at: Option<Timestamp>,
    /// Its activation, and the time until which its token is valid.
    pub granted: Option<(ActivationId, Timestamp)>,
    /// It has a request in flight.
    pub busy: bool,
    /// It has finished or given up.
    pub done: bool,
}

/// A code that its callers know.
#[derive(Clone, Debug)]
pub struct Known {
    pub hash: CodeHash,
    pub expires_at: Timestamp,
    pub machines: [Machine; 2],
}
