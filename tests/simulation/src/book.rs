//! The record of all requests and answers, with the checks on them. The checks use requests and answers
//! only, and nothing from inside the servers.

use iptunnel_actors::Failure;
use iptunnel_checker::history::{self, Answer, Call};
use iptunnel_domain::activation::ActivationId;
use iptunnel_domain::code::CodeHash;
use iptunnel_domain::{Refusal, Timestamp};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

/// The operation that a caller asked for.
#[derive(Clone, Debug, PartialEq)]
pub enum Asked {
    Issue,
    Precheck {
        code: usize,
        machine: usize,
    },
    Activate {
        code: usize,
        machine: usize,
        host: usize,
    },
    Confirm {
        code: usize,
        machine: usize,
        id: ActivationId,
    },
    Release {
        code: usize,
        machine: usize,
        id: ActivationId,
    },
    Register {
        agent: usize,
    },
    CheckIn {
        agent: usize,
    },
    SetRevoked {
        agent: usize,
        revoked: bool,
    },
    /// Registers with an install ticket, which was made at this time.
    Enrol {
        agent: usize,
        ticket: usize,
        made_ms: u64,
    },
    Delete {
        agent: usize,
    },
}

impl Asked {
    const fn code(&self) -> Option<usize> {
        match self {
            Self::Precheck { code, .. }
            | Self::Activate { code, .. }
            | Self::Confirm { code, .. }
            | Self::Release { code, .. } => Some(*code),
            _ => None,
        }
    }
}

/// The answer that a caller received.
#[derive(Clone, Debug, PartialEq)]
pub enum Heard {
    Issued {
        code: CodeHash,
        expires_at: Timestamp,
    },
    Ready,
    Granted {
        id: ActivationId,
        machine: usize,
        host: usize,
        expires_at: Timestamp,
    },
    Confirmed,
    Released {
        restored: bool,
    },
    AlreadyConfirmed,
    Registered,
    Enrolled {
        registered_at: Timestamp,
    },
    Active,
    Revoked,
    Deleted,
    Done,
    Refused(Refusal),
    Failed(Failure),
    /// No answer, because the answer or the server was lost.
    Nothing,
}

impl Heard {
    /// Whether the outcome is unknown: the operation may have happened.
    const fn is_perhaps(&self) -> bool {
        matches!(self, Self::Nothing | Self::Failed(Failure::OutcomeUnknown))
    }
}

/// One request.
#[derive(Clone, Debug)]
struct Operation {
    asked: Asked,
    server: usize,
    invoked: u64,
    /// The step of the answer, and the answer.
    heard: Option<(u64, Heard)>,
    /// The clock time of the request.
    at: Timestamp,
    /// The times of the request and the answer in virtual microseconds. No two times are equal.
    span: (u64, u64),
    /// The time of the precheck that allows an activate, in virtual microseconds.
    prechecked: u64,
}

/// An activation that a machine was granted.
#[derive(Clone, Debug)]
struct Grant {
    id: ActivationId,
    machine: usize,
    host: usize,
    /// The steps of the first granted request and its answer.
    invoked: u64,
    acked: u64,
    expires_at: Timestamp,
    /// Requests that may close it.
    closers: Vec<usize>,
    released: Option<u64>,
    /// The step of the first request to confirm it. From then on it may be confirmed.
    confirm_invoked: Option<u64>,
    confirmed: Option<u64>,
}

#[derive(Clone, Debug, Default)]
struct OfCode {
    grants: Vec<Grant>,
}

/// An answered revocation.
#[derive(Clone, Copy, Debug)]
struct Revoked {
    /// The steps of the request and its answer, and the server that answered.
    invoked: u64,
    acked: u64,
    server: usize,
}

/// What operators know about an agent's server.
#[derive(Clone, Copy, Debug, Default)]
struct OfAgent {
    /// The answered revocation, unless a restoration was requested since.
    revoked: Option<Revoked>,
    restore_invoked: Option<u64>,
    /// The steps of the request that registered it and of its answer, unless a deletion was requested
    /// since.
    registered: Option<(u64, u64)>,
    /// The deletions that may still take effect, and the step at which the last one had ended.
    deletes_open: usize,
    deletes_ended: u64,
}

/// The book of one run.
#[derive(Default)]
pub struct Book {
    operations: Vec<Operation>,
    codes: Vec<OfCode>,
    agents: Vec<OfAgent>,
    /// Of each ticket: the step of the first request that is known to have registered with it, and when
    /// the server first registered.
    tickets: BTreeMap<usize, (u64, Timestamp)>,
    /// The steps at which epochs began. Changes acknowledged before may be lost.
    epochs: Vec<u64>,
    /// The servers that were killed at least once.
    killed: BTreeSet<usize>,
    /// The violations found.
    pub violations: Vec<String>,
}

/// The seconds around a deadline in which either answer is right, because the servers' clocks differ and
/// time passes during a request.
const SLACK: u64 = 30;

impl Book {
    /// Records a request and returns its number.
    pub fn invoke(
        &mut self,
        (step, moment): (u64, u64),
        server: usize,
        asked: Asked,
        at: Timestamp,
    ) -> usize {
        match &asked {
            Asked::Release { code, id, .. } => self.may_close(*code, *id),
            Asked::Confirm { code, id, .. } => {
                for grant in &mut self.of(*code).grants {
                    if grant.id == *id {
                        grant.confirm_invoked.get_or_insert(step);
                    }
                }
            }
            // An activate of the same machine with another binding replaces its activation.
            Asked::Activate { code, machine, host } => {
                let closer = self.operations.len();
                for grant in &mut self.of(*code).grants {
                    if grant.machine == *machine && grant.host != *host {
                        grant.closers.push(closer);
                    }
                }
            }
            Asked::SetRevoked { agent, revoked: false } => {
                self.agent(*agent).restore_invoked = Some(step);
                self.agent(*agent).revoked = None;
            }
            Asked::Delete { agent } => {
                let of_agent = self.agent(*agent);
                of_agent.registered = None;
                of_agent.deletes_open += 1;
            }
            _ => {}
        }
        let prechecked = match &asked {
            Asked::Activate { code, machine, .. } => self.last_precheck(*code, *machine),
            _ => 0,
        };
        let (invoked, heard, span) = (step, None, (moment, u64::MAX));
        self.operations.push(Operation { asked, server, invoked, heard, at, span, prechecked });
        self.operations.len() - 1
    }

    fn of(&mut self, code: usize) -> &mut OfCode {
        if self.codes.len() <= code {
            self.codes.resize(code + 1, OfCode::default());
        }
        &mut self.codes[code]
    }

    fn agent(&mut self, agent: usize) -> &mut OfAgent {
        if self.agents.len() <= agent {
            self.agents.resize(agent + 1, OfAgent::default());
        }
        &mut self.agents[agent]
    }

    fn may_close(&mut self, code: usize, id: ActivationId) {
        let closer = self.operations.len();
        for grant in &mut self.of(code).grants {
            if grant.id == id {
                grant.closers.push(closer);
            }
        }
    }

    /// Records that a server was killed.
    pub fn kill(&mut self, server: usize) {
        self.killed.insert(server);
    }

    /// Records that an epoch began.
    pub fn epoch(&mut self, step: u64) {
        self.epochs.push(step);
    }

    /// Whether an epoch began at this step or later.
    fn epoch_since(&self, step: u64) -> bool {
        self.epochs.iter().any(|epoch| *epoch >= step)
    }

    fn violated(&mut self, step: u64, operation: usize, what: &str) {
        let mut words = format!("step {step}: {what}");
        let code = self.operations.get(operation).and_then(|one| one.asked.code());
        for (number, one) in self.operations.iter().enumerate() {
            let same = code.is_some() && one.asked.code() == code;
            if same || number == operation {
                let _ = write!(
                    words,
                    "\n    {:>5}..{:<5} server {} {:?} -> {:?}",
                    one.invoked,
                    one.heard.as_ref().map_or_else(|| "".into(), |(at, _)| at.to_string()),
                    one.server,
                    one.asked,
                    one.heard.as_ref().map(|(_, heard)| heard),
                );
            }
        }
        self.violations.push(words);
    }

    /// Records an answer and checks it.
    pub fn hear(
        &mut self,
        (step, moment): (u64, u64),
        operation: usize,
        heard: Heard,
        now: Timestamp,
    ) {
        let Some(one) = self.operations.get_mut(operation) else { return };
        one.heard = Some((step, heard.clone()));
        one.span.1 = moment;
        let (asked, invoked, at, server) = (one.asked.clone(), one.invoked, one.at, one.server);
        let checked = match &asked {
            Asked::Activate { code, machine, host } => self.activated(
                step,
                (operation, invoked),
                at,
                (*code, *machine, *host),
                &heard,
                now,
            ),
            Asked::Precheck { code, machine } => {
                self.prechecked((operation, invoked), at, (*code, *machine), &heard, now)
            }
            Asked::Confirm { code, id, .. } => {
                self.confirmed(step, invoked, *code, *id, &heard, now)
            }
            Asked::Release { code, id, .. } => self.released(step, invoked, *code, *id, &heard),
            Asked::Register { agent } => self.registered(step, invoked, *agent, &heard),
            Asked::Enrol { agent, ticket, .. } => self
                .enrolled(invoked, *ticket, &heard)
                .and_then(|()| self.registered(step, invoked, *agent, &heard)),
            Asked::Delete { agent } => {
                // After an unknown outcome it may take effect at any time.
                if !heard.is_perhaps() {
                    let of_agent = self.agent(*agent);
                    of_agent.deletes_open -= 1;
                    of_agent.deletes_ended = step;
                }
                Ok(())
            }
            Asked::CheckIn { agent } => self.checked_in(invoked, server, *agent, &heard),
            Asked::SetRevoked { agent, revoked } => {
                self.set_revoked(step, invoked, server, (*agent, *revoked), &heard)
            }
            Asked::Issue => Ok(()),
        };
        if let Err(what) = checked {
            self.violated(step, operation, &what);
        }
    }

    fn activated(
        &mut self,
        step: u64,
        (operation, invoked): (usize, u64),
        at: Timestamp,
        (code, machine, host): (usize, usize, usize),
        heard: &Heard,
        now: Timestamp,
    ) -> Result<(), String> {
        match heard {
            Heard::Granted { id, machine: holder, host: bound, expires_at } => {
                if *holder != machine || *bound != host {
                    let what = format!("the activation of machine {holder} for host {bound}");
                    return Err(format!("machine {machine} got {what}"));
                }
                // Earlier activates with another binding that may still take effect, or did so unseen.
                let replaces = |one: &Operation| {
                    let another = matches!(one.asked,
                        Asked::Activate { code: c, machine: m, host: h }
                            if c == code && m == machine && h != host);
                    let over = |(at, heard): &(u64, Heard)| !heard.is_perhaps() && *at <= invoked;
                    another && !one.heard.as_ref().is_some_and(over)
                };
                let all = self.operations.iter().enumerate();
                let replaced: Vec<usize> =
                    all.filter(|(_, one)| replaces(one)).map(|(number, _)| number).collect();
                let fenced: Vec<u64> = self.epochs.clone();
                let mut known = self.of(code).grants.iter();
                // This answer may have come late, when the activation was already closed.
                let may_be_over = !replaced.is_empty()
                    || known.any(|grant| grant.id == *id && !grant.closers.is_empty());
                for other in &self.of(code).grants {
                    if other.id == *id {
                        if other.released.is_some_and(|released| released < invoked) {
                            return Err("an activation was granted after its release".into());
                        }
                        continue;
                    }
                    if other.confirmed.is_some_and(|confirmed| confirmed < invoked || !may_be_over)
                    {
                        return Err(format!("granted {id:?}, though {:?} is confirmed", other.id));
                    }
                    let lapsed = at.plus(SLACK) >= other.expires_at;
                    let lost = fenced.iter().any(|epoch| *epoch >= other.invoked);
                    let same = other.machine == machine && other.host == host;
                    let untouched = other.closers.is_empty() && other.confirm_invoked.is_none();
                    if same && untouched && !lapsed && !lost && !may_be_over {
                        return Err(format!("granted a new activation instead of {:?}", other.id));
                    }
                    if other.machine != machine && other.closers.is_empty() && !may_be_over {
                        return Err(format!(
                            "granted to machine {machine}, though machine {} holds the code with {:?}",
                            other.machine, other.id
                        ));
                    }
                }
                let grants = &mut self.of(code).grants;
                if !grants.iter().any(|grant| grant.id == *id) {
                    grants.push(Grant {
                        id: *id,
                        machine,
                        host,
                        invoked,
                        acked: step,
                        expires_at: *expires_at,
                        closers: replaced,
                        released: None,
                        confirm_invoked: None,
                        confirmed: None,
                    });
                }
                Ok(())
            }
            Heard::Refused(Refusal::CodeUsed) => {
                self.not_burnt((operation, invoked), at, (code, machine), now)
            }
            Heard::Refused(Refusal::CodeNotFound) if !self.epoch_since(0) => {
                Err("a code that was issued is not found".into())
            }
            _ => Ok(()),
        }
    }

    /// Checks that the machine that hears that a code is used does not hold it.
    fn not_burnt(
        &mut self,
        (operation, invoked): (usize, u64),
        at: Timestamp,
        (code, machine): (usize, usize),
        now: Timestamp,
    ) -> Result<(), String> {
        let fenced = |grant: &Grant| self.epochs.iter().any(|epoch| *epoch >= grant.invoked);
        let holds = self.codes.get(code).and_then(|of_code| {
            of_code.grants.iter().find(|grant| {
                grant.machine == machine
                    && grant.acked < invoked
                    && grant.closers.iter().all(|closer| *closer == operation)
                    && grant.confirm_invoked.is_none()
                    && at.plus(SLACK) < grant.expires_at
                    && now.plus(SLACK) < grant.expires_at
                    && !fenced(grant)
            })
        });
        match holds {
            Some(grant) => {
                Err(format!("code used, for the machine that holds it with {:?}", grant.id))
            }
            None => Ok(()),
        }
    }

    fn prechecked(
        &mut self,
        (operation, invoked): (usize, u64),
        at: Timestamp,
        (code, machine): (usize, usize),
        heard: &Heard,
        now: Timestamp,
    ) -> Result<(), String> {
        match heard {
            Heard::Refused(Refusal::CodeUsed) => {
                self.not_burnt((operation, invoked), at, (code, machine), now)
            }
            Heard::Refused(Refusal::CodeNotFound) if !self.epoch_since(0) => {
                Err("a code that was issued is not found".into())
            }
            Heard::Ready => {
                let of_code = self.of(code);
                let taken = of_code.grants.iter().find(|grant| {
                    grant.acked < invoked && grant.confirmed.is_some_and(|by| by < invoked)
                });
                match taken {
                    Some(grant) => Err(format!("ready, though {:?} is confirmed", grant.id)),
                    None => Ok(()),
                }
            }
            _ => Ok(()),
        }
    }

    fn confirmed(
        &mut self,
        step: u64,
        invoked: u64,
        code: usize,
        id: ActivationId,
        heard: &Heard,
        now: Timestamp,
    ) -> Result<(), String> {
        let epochs = self.epochs.clone();
        let of_code = self.of(code);
        let Some(grant) = of_code.grants.iter().find(|grant| grant.id == id).cloned() else {
            return Ok(());
        };
        match heard {
            Heard::Confirmed => {
                if grant.confirmed.is_some_and(|before| before < invoked) {
                    return Err("confirmed twice".into());
                }
                if grant.released.is_some_and(|before| before < invoked) {
                    return Err("confirmed after its release".into());
                }
                let other =
                    of_code.grants.iter().find(|one| one.id != id && one.confirmed.is_some());
                if let Some(other) = other {
                    return Err(format!("confirmed, though {:?} is confirmed too", other.id));
                }
                for one in &mut of_code.grants {
                    if one.id == id {
                        one.confirmed = Some(step);
                    }
                }
                Ok(())
            }
            Heard::Refused(Refusal::ActivationNotFound | Refusal::TokenInvalid) => {
                let closed = !grant.closers.is_empty();
                let fenced = epochs.iter().any(|epoch| *epoch >= grant.invoked);
                if closed || fenced || now.plus(SLACK) >= grant.expires_at {
                    Ok(())
                } else {
                    Err("an activation that was granted cannot be confirmed".into())
                }
            }
            Heard::Refused(Refusal::TokenUsed) => Ok(()),
            _ => Ok(()),
        }
    }

    fn released(
        &mut self,
        step: u64,
        invoked: u64,
        code: usize,
        id: ActivationId,
        heard: &Heard,
    ) -> Result<(), String> {
        let fenced = self.epochs.clone();
        let of_code = self.of(code);
        let Some(grant) = of_code.grants.iter_mut().find(|grant| grant.id == id) else {
            return Ok(());
        };
        match heard {
            // The activation had lapsed or the code had expired. It may not have been released at all.
            Heard::Released { restored: false } => Ok(()),
            Heard::Released { restored: true } => {
                let lost = fenced.iter().any(|epoch| *epoch >= grant.invoked);
                if grant.confirmed.is_some_and(|before| before < invoked) && !lost {
                    return Err("released after it was confirmed".into());
                }
                grant.released = Some(step);
                Ok(())
            }
            Heard::AlreadyConfirmed => {
                if grant.released.is_some_and(|before| before < invoked) {
                    return Err("confirmed after its release".into());
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn registered(
        &mut self,
        step: u64,
        invoked: u64,
        agent: usize,
        heard: &Heard,
    ) -> Result<(), String> {
        let of_agent = *self.agent(agent);
        if matches!(heard, Heard::Registered | Heard::Enrolled { .. }) {
            if of_agent
                .revoked
                .is_some_and(|by| by.acked < invoked && !self.epoch_since(by.invoked))
            {
                return Err("a revoked server registered again".into());
            }
            if of_agent.deletes_open == 0 && of_agent.deletes_ended < invoked {
                self.agent(agent).registered.get_or_insert((invoked, step));
            }
        }
        Ok(())
    }

    /// A ticket registers one server, once.
    fn enrolled(&mut self, invoked: u64, ticket: usize, heard: &Heard) -> Result<(), String> {
        let Heard::Enrolled { registered_at } = heard else { return Ok(()) };
        let (first, known) = *self.tickets.entry(ticket).or_insert((invoked, *registered_at));
        if known == *registered_at || self.epoch_since(first.min(invoked)) {
            return Ok(());
        }
        Err(format!(
            "ticket {ticket} has registered two servers, at {known:?} and {registered_at:?}"
        ))
    }

    fn checked_in(
        &mut self,
        invoked: u64,
        server: usize,
        agent: usize,
        heard: &Heard,
    ) -> Result<(), String> {
        let of_agent = *self.agent(agent);
        let lost = |by: u64| self.epoch_since(by);
        match heard {
            // Other servers learn it within a second. The one that answered the revocation knows it at once.
            Heard::Active
                if of_agent.revoked.is_some_and(|by| {
                    by.acked < invoked && by.server == server && !lost(by.invoked)
                }) =>
            {
                Err("a revoked server is active".into())
            }
            Heard::Refused(Refusal::ServerNotFound)
                if of_agent.registered.is_some_and(|(since, by)| by < invoked && !lost(since)) =>
            {
                Err("a registered server is not found".into())
            }
            _ => Ok(()),
        }
    }

    fn set_revoked(
        &mut self,
        step: u64,
        invoked: u64,
        server: usize,
        (agent, revoked): (usize, bool),
        heard: &Heard,
    ) -> Result<(), String> {
        if *heard == Heard::Done && revoked {
            let of_agent = self.agent(agent);
            // A restoration requested in between may have taken effect later.
            if of_agent.restore_invoked.is_none_or(|by| by < invoked) {
                let pending_restore = self.operations.iter().any(|one| {
                    one.asked == Asked::SetRevoked { agent, revoked: false }
                        && one
                            .heard
                            .as_ref()
                            .is_none_or(|(at, heard)| heard.is_perhaps() || *at > invoked)
                });
                if !pending_restore {
                    self.agent(agent).revoked = Some(Revoked { invoked, acked: step, server });
                }
            }
        }
        Ok(())
    }

    fn last_precheck(&self, code: usize, machine: usize) -> u64 {
        let ready = |one: &&Operation| {
            one.asked == Asked::Precheck { code, machine }
                && matches!(&one.heard, Some((_, Heard::Ready)))
        };
        self.operations.iter().filter(ready).map(|one| one.span.1).max().unwrap_or(0)
    }

    /// Returns the requests and answers about codes, for the search for one order that explains them.
    pub fn history(&self) -> Vec<history::Operation> {
        let mut names: Vec<ActivationId> = Vec::new();
        let mut name = |id: ActivationId| {
            let known = names.iter().position(|one| *one == id);
            let place = known.unwrap_or_else(|| {
                names.push(id);
                names.len() - 1
            });
            place as u32
        };
        let mut all = Vec::new();
        for (client, one) in self.operations.iter().enumerate() {
            let call = match one.asked {
                Asked::Issue => {
                    // A code's number is its place in the order of the answers.
                    let Some((_, Heard::Issued { .. })) = &one.heard else { continue };
                    Call::Issue { code: self.place_of_issue(one.span.1) }
                }
                Asked::Precheck { code, machine } => {
                    Call::Precheck { code: code as u32, machine: machine as u32 }
                }
                Asked::Activate { code, machine, host } => Call::Activate {
                    code: code as u32,
                    machine: machine as u32,
                    binding: host as u32,
                    prechecked: (one.prechecked, one.prechecked),
                },
                Asked::Confirm { code, id, .. } => {
                    Call::Confirm { code: code as u32, activation: name(id) }
                }
                Asked::Release { code, id, .. } => {
                    Call::Release { code: code as u32, activation: name(id) }
                }
                _ => continue,
            };
            let answer = match one.heard.as_ref().map(|(_, heard)| heard) {
                None | Some(Heard::Nothing | Heard::Failed(Failure::OutcomeUnknown)) => {
                    Answer::Perhaps
                }
                Some(Heard::Failed(_) | Heard::Refused(Refusal::RateLimited { .. })) => {
                    Answer::Nothing
                }
                Some(Heard::Issued { .. }) => Answer::Issued,
                Some(Heard::Ready) => Answer::Ready,
                Some(Heard::Granted { id, .. }) => {
                    let activation = name(*id);
                    Answer::Granted(history::Grant { activation, token: activation })
                }
                Some(Heard::Confirmed) => Answer::Confirmed,
                Some(Heard::Released { restored }) => Answer::Released { restored: *restored },
                Some(Heard::AlreadyConfirmed) => Answer::StaysConfirmed,
                Some(Heard::Refused(Refusal::CodeUsed)) => Answer::Used,
                Some(Heard::Refused(Refusal::CodeExpired)) => Answer::Expired,
                Some(Heard::Refused(Refusal::CodeMaxActivations)) => Answer::MaxActivations,
                Some(Heard::Refused(Refusal::TokenInvalid)) => Answer::TokenInvalid,
                Some(Heard::Refused(Refusal::TokenUsed)) => Answer::TokenUsed,
                Some(Heard::Refused(Refusal::ActivationNotFound)) => Answer::ActivationNotFound,
                Some(other) => Answer::Other(format!("{other:?}")),
            };
            let (invoked, returned) = one.span;
            let (client, server) = (client as u32, one.server as u32);
            all.push(history::Operation { client, server, invoked, returned, call, answer });
        }
        all
    }

    fn place_of_issue(&self, heard: u64) -> u32 {
        let issued = self.operations.iter().filter(|one| {
            matches!(&one.heard, Some((_, Heard::Issued { .. }))) && one.span.1 < heard
        });
        issued.count() as u32
    }

    /// The number of requests.
    pub fn operations(&self) -> usize {
        self.operations.len()
    }

    /// The requests without an answer.
    pub fn unanswered(&self) -> Vec<usize> {
        let open = self.operations.iter().enumerate().filter(|(_, one)| one.heard.is_none());
        open.map(|(number, _)| number).collect()
    }

    /// Records a violation that another part of the simulation found.
    pub fn found(&mut self, step: u64, operation: Option<usize>, what: &str) {
        self.violated(step, operation.unwrap_or(usize::MAX), what);
    }

    /// Returns the machine that certainly holds `code` at `now`, with its activation and its host. The
    /// activation was granted, no request may have closed it, and its token is valid for a while.
    pub fn holder(&self, code: usize, now: Timestamp) -> Option<(usize, ActivationId, usize)> {
        let of_code = self.codes.get(code)?;
        let grant = of_code.grants.iter().find(|grant| {
            grant.closers.is_empty()
                && grant.confirm_invoked.is_none()
                && now.plus(2 * SLACK) < grant.expires_at
                && !self.epoch_since(grant.invoked)
        })?;
        Some((grant.machine, grant.id, grant.host))
    }

    /// The granted activations that no epoch may have lost.
    pub fn granted_for_sure(&self) -> Vec<ActivationId> {
        let all = self.codes.iter().flat_map(|of_code| &of_code.grants);
        all.filter(|grant| !self.epoch_since(grant.invoked)).map(|grant| grant.id).collect()
    }

    /// The last machine that was granted the code.
    pub fn was_granted(&self, code: usize) -> Option<usize> {
        Some(self.codes.get(code)?.grants.last()?.machine)
    }

    /// Whether any epoch has begun.
    pub fn fenced(&self) -> bool {
        !self.epochs.is_empty()
    }

    /// Whether an agent's server is certainly revoked.
    pub fn is_revoked(&self, agent: usize) -> bool {
        let of_agent = self.agents.get(agent).copied().unwrap_or_default();
        of_agent.revoked.is_some_and(|by| !self.epoch_since(by.invoked))
    }

    /// Returns the operation of a request.
    pub fn asked(&self, operation: usize) -> Option<Asked> {
        self.operations.get(operation).map(|one| one.asked.clone())
    }

    /// The most charges that a machine's activates may have caused: one for each activation, for each
    /// refusal except by a limit, and for each unknown outcome. A killed server gives no charge back.
    pub fn most_activates_charged(&self, machine: usize) -> u32 {
        let (mut granted, mut others) = (Vec::new(), 0);
        for one in &self.operations {
            if !matches!(one.asked, Asked::Activate { machine: of, .. } if of == machine) {
                continue;
            }
            match one.heard.as_ref().map(|(_, heard)| heard) {
                Some(Heard::Granted { id, .. }) if granted.contains(id) => {}
                Some(Heard::Granted { id, .. }) => granted.push(*id),
                Some(Heard::Refused(Refusal::RateLimited { .. })) => {}
                Some(Heard::Refused(_)) => others += 1,
                Some(heard) if heard.is_perhaps() => others += 1,
                Some(Heard::Failed(_)) if self.killed.contains(&one.server) => others += 1,
                None => others += 1,
                Some(_) => {}
            }
        }
        granted.len() as u32 + others
    }

    /// The clock time of a request.
    pub fn at(&self, operation: usize) -> Timestamp {
        self.operations.get(operation).map_or(Timestamp(0), |one| one.at)
    }

    /// Returns the answer to a request.
    pub fn heard(&self, operation: usize) -> Option<Heard> {
        self.operations.get(operation)?.heard.clone().map(|(_, heard)| heard)
    }

    /// The machines that may have activated a code: their activates were not refused.
    pub fn perhaps_taken(&self, code: usize) -> Vec<usize> {
        let taken = self.operations.iter().filter_map(|one| match (&one.asked, &one.heard) {
            (Asked::Activate { code: of, machine, .. }, heard) if *of == code => {
                let may_have = heard.as_ref().is_none_or(|(_, heard)| {
                    heard.is_perhaps() || matches!(heard, Heard::Granted { .. })
                });
                may_have.then_some(*machine)
            }
            _ => None,
        });
        taken.collect()
    }

    /// The requests on `code` without an answer.
    pub fn under_way(&self, code: usize) -> Vec<&Asked> {
        let open = self.operations.iter().filter(|one| one.heard.is_none());
        open.map(|one| &one.asked).filter(|asked| asked.code() == Some(code)).collect()
    }
}
