//! One install code and its activations according to the contract: the possible answers in each state, and
//! the states that follow.
//!
//! Times are spans, because only the server knows the instant of its decision. An answer is allowed if it is
//! right at *some* instant between request and answer, within the tolerance. Without [`Rules::lifetimes`],
//! nothing expires or lapses.

use crate::history::{Answer, Call, Grant};
use crate::search::Span;

/// The configuration of the servers.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// The most activations of one code.
    pub max_activations: u32,
    /// The lifetimes. `None` if the run ends long before anything can expire.
    pub lifetimes: Option<Lifetimes>,
    /// The microseconds after which all servers apply a revocation that one server has answered.
    pub revocation_reaches: u64,
    /// Whether the recorder tried to finish every code. If so, a code that is not confirmed is burnt.
    pub finished: bool,
}

/// The lifetimes in microseconds.
#[derive(Clone, Copy, Debug)]
pub struct Lifetimes {
    /// The time from issue until a code expires.
    pub code: u64,
    /// The time for which a precheck token is valid.
    pub precheck_token: u64,
    /// The time for which an activation stays open.
    pub install_token: u64,
    /// The least time for which a restored code is valid.
    pub restored: u64,
    /// The age of a code beyond which a release does not prolong it.
    pub max_lifetime: u64,
    /// The most by which the servers' clocks may differ from the history's. Servers count whole seconds,
    /// so it is at least one second.
    pub tolerance: u64,
}

/// Later than every time in a history.
const NEVER: u64 = u64::MAX;
/// The latest time of an event whose time is unknown. Adding a lifetime to it does not overflow.
const FAR: u64 = u64::MAX / 2;

/// A code and its activations.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct State {
    /// The span in which the code expires.
    expires: Span,
    /// The number of its activations.
    activations: u32,
    standing: Standing,
    /// The released and replaced activations, sorted by their ids.
    closed: Vec<Known>,
}

/// The state of the code itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Standing {
    /// The next machine that activates the code gets it.
    Issued,
    /// A machine holds it.
    Open(Hold),
    /// The code is used for good.
    Confirmed(Known),
}

/// An activation that is open, or has lapsed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Hold {
    machine: u32,
    binding: u32,
    /// Its id, or `None` if the answer with it was lost.
    activation: Option<u32>,
    /// Its token, or `None` if the answer with it was lost.
    token: Option<u32>,
    /// The span in which its token expires.
    expires: Span,
}

/// An activation whose id is known from an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Known {
    activation: u32,
    expires: Span,
}

/// The outcome of a call: an answer, or a grant whose id and token the answer will show.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Outcome {
    Plain(Answer),
    /// A new activation.
    Opened,
    /// The activation that is already open.
    Again,
}
use Outcome::{Again, Opened, Plain};

/// The sequential model of one code.
#[derive(Clone, Copy, Debug)]
pub struct Model {
    rules: Rules,
    issued: Span,
}

impl Model {
    /// Creates the model of a code that was issued within `issued`.
    pub const fn new(rules: Rules, issued: Span) -> Self {
        Self { rules, issued }
    }

    /// The state of the code after its issue.
    pub fn initial(&self) -> State {
        State {
            expires: self.end(self.issued, |life| life.code),
            activations: 0,
            standing: Standing::Issued,
            closed: Vec::new(),
        }
    }

    /// Returns the possible states after `call`, made within `at` and answered with `answer`. There is none
    /// if this answer is not possible in `state`.
    pub fn after(&self, state: &State, call: &Call, answer: &Answer, at: Span) -> Vec<State> {
        let at = Span { from: at.from, to: at.to.min(FAR) };
        if *answer == Answer::Nothing {
            return vec![state.clone()];
        }
        let mut after: Vec<State> = Vec::new();
        for (outcome, next) in self.outcomes(state, call, at) {
            let next = match (&outcome, answer) {
                (_, Answer::Perhaps) => Some(next),
                (Opened | Again, Answer::Granted(grant)) => with_grant(next, *grant),
                (Plain(possible), _) if possible == answer => Some(next),
                _ => None,
            };
            if let Some(next) = next
                && !after.contains(&next)
            {
                after.push(next);
            }
        }
        after
    }

    /// Returns all possible outcomes of `call`.
    fn outcomes(&self, state: &State, call: &Call, at: Span) -> Vec<(Outcome, State)> {
        match *call {
            Call::Precheck { machine, .. } => self.precheck(state, machine, at),
            Call::Activate { machine, binding, prechecked, .. } => {
                let prechecked = Span { from: prechecked.0, to: prechecked.1 };
                self.activate(state, machine, binding, prechecked, at)
            }
            Call::Confirm { activation, .. } => {
                self.named(state, activation, |state, known| self.confirm(state, known, at))
            }
            Call::Release { activation, .. } => {
                self.named(state, activation, |state, known| self.release(state, known, at))
            }
            Call::Issue { .. }
            | Call::Register { .. }
            | Call::Revoke { .. }
            | Call::CheckIn { .. } => vec![],
        }
    }

    fn precheck(&self, state: &State, machine: u32, at: Span) -> Vec<(Outcome, State)> {
        let mut answers = Vec::new();
        match state.standing {
            Standing::Issued => {
                if self.may_be_over(state.expires, at) {
                    answers.push(Answer::Expired);
                }
                if self.may_be_good(state.expires, at) {
                    let ready = !self.is_worn_out(state);
                    answers.push(if ready { Answer::Ready } else { Answer::MaxActivations });
                }
            }
            Standing::Open(hold) => {
                let holds = hold.machine == machine;
                if holds && self.may_be_good(hold.expires, at) {
                    answers.push(Answer::Ready);
                }
                if !holds || self.may_be_over(hold.expires, at) {
                    answers.push(Answer::Used);
                }
            }
            Standing::Confirmed(_) => answers.push(Answer::Used),
        }
        unchanged(state, answers)
    }

    fn activate(
        &self,
        state: &State,
        machine: u32,
        binding: u32,
        prechecked: Span,
        at: Span,
    ) -> Vec<(Outcome, State)> {
        let mut refusals = Vec::new();
        if self.may_be_over(self.end(prechecked, |life| life.precheck_token), at) {
            refusals.push(Answer::PrecheckTokenInvalid);
        }
        let opened = || {
            let expires = self.end(at, |life| life.install_token);
            let mut next = state.clone();
            next.activations = next.activations.saturating_add(1);
            next.close();
            next.standing =
                Standing::Open(Hold { machine, binding, activation: None, token: None, expires });
            (Opened, next)
        };
        let mut granted = None;
        match state.standing {
            Standing::Issued => {
                if self.may_be_over(state.expires, prechecked) {
                    refusals.push(Answer::Expired);
                }
                if self.may_be_good(state.expires, prechecked) {
                    if self.is_worn_out(state) {
                        refusals.push(Answer::MaxActivations);
                    } else {
                        granted = Some(opened());
                    }
                }
            }
            Standing::Open(hold) => {
                let holds = hold.machine == machine;
                if holds && self.may_be_good(hold.expires, at) {
                    if hold.binding == binding {
                        granted = Some((Again, state.clone()));
                    } else if self.is_worn_out(state) {
                        refusals.push(Answer::MaxActivations);
                    } else {
                        granted = Some(opened());
                    }
                }
                if !holds || self.may_be_over(hold.expires, at) {
                    refusals.push(Answer::Used);
                }
            }
            Standing::Confirmed(_) => refusals.push(Answer::Used),
        }
        let mut outcomes = unchanged(state, refusals);
        outcomes.extend(granted);
        outcomes
    }

    /// Handles a call that names an activation. If the id of the open activation is unknown, the call may
    /// mean that one: the answer with the id may be lost, or only recorded as lost.
    fn named(
        &self,
        state: &State,
        activation: u32,
        outcomes: impl Fn(&State, Known) -> Vec<(Outcome, State)>,
    ) -> Vec<(Outcome, State)> {
        if let Some(known) = state.find(activation) {
            return outcomes(state, known);
        }
        let mut unknown = vec![Answer::ActivationNotFound];
        if self.rules.lifetimes.is_some() {
            unknown.push(Answer::TokenInvalid);
        }
        let mut all = unchanged(state, unknown);
        if let Standing::Open(hold) = state.standing
            && hold.activation.is_none()
        {
            let named = Hold { activation: Some(activation), ..hold };
            let known = Known { activation, expires: hold.expires };
            let state = State { standing: Standing::Open(named), ..state.clone() };
            all.extend(outcomes(&state, known));
        }
        all
    }

    fn confirm(&self, state: &State, known: Known, at: Span) -> Vec<(Outcome, State)> {
        let mut outcomes = Vec::new();
        if self.may_be_over(known.expires, at) {
            outcomes.extend(unchanged(state, [Answer::TokenInvalid]));
        }
        if self.may_be_good(known.expires, at) {
            match state.standing {
                Standing::Confirmed(by) if by == known => {
                    outcomes.extend(unchanged(state, [Answer::TokenUsed]));
                }
                Standing::Open(hold) if hold.activation == Some(known.activation) => {
                    let next = State { standing: Standing::Confirmed(known), ..state.clone() };
                    outcomes.push((Plain(Answer::Confirmed), next));
                }
                _ => outcomes.extend(unchanged(state, [Answer::ActivationNotFound])),
            }
        }
        outcomes
    }

    fn release(&self, state: &State, known: Known, at: Span) -> Vec<(Outcome, State)> {
        match state.standing {
            Standing::Confirmed(by) if by == known => unchanged(state, [Answer::StaysConfirmed]),
            Standing::Open(hold) if hold.activation == Some(known.activation) => {
                let mut outcomes = Vec::new();
                if self.may_be_over(hold.expires, at) {
                    outcomes.extend(unchanged(state, [Answer::Released { restored: false }]));
                }
                if self.may_be_good(hold.expires, at) {
                    let mut next = state.clone();
                    next.close();
                    next.expires = self.prolonged(state.expires, at);
                    if self.may_be_good(next.expires, at) {
                        let answer = Plain(Answer::Released { restored: true });
                        outcomes.push((answer, next.clone()));
                    }
                    if self.may_be_over(next.expires, at) {
                        outcomes.push((Plain(Answer::Released { restored: false }), next));
                    }
                }
                outcomes
            }
            _ => unchanged(state, [Answer::ActivationNotFound]),
        }
    }

    const fn is_worn_out(&self, state: &State) -> bool {
        state.activations >= self.rules.max_activations
    }

    /// Returns the span in which a code expires that is restored within `at`.
    fn prolonged(&self, expires: Span, at: Span) -> Span {
        let again = self.end(at, |life| life.restored);
        let last = self.end(self.issued, |life| life.max_lifetime);
        let later = |old: u64, again: u64, last: u64| old.max(again.min(last));
        Span {
            from: later(expires.from, again.from, last.from),
            to: later(expires.to, again.to, last.to),
        }
    }

    /// Returns the span in which something ends that began within `begun`.
    fn end(&self, begun: Span, lives: impl Fn(&Lifetimes) -> u64) -> Span {
        self.rules.lifetimes.as_ref().map_or(Span { from: NEVER, to: NEVER }, |life| {
            let after = lives(life);
            Span { from: begun.from.saturating_add(after), to: begun.to.saturating_add(after) }
        })
    }

    /// Whether something that ends within `end` may have ended at some instant of `at`.
    fn may_be_over(&self, end: Span, at: Span) -> bool {
        end.from != NEVER && at.to.saturating_add(self.tolerance()) >= end.from
    }

    /// Whether something that ends within `end` may still be valid at some instant of `at`.
    fn may_be_good(&self, end: Span, at: Span) -> bool {
        at.from < end.to.saturating_add(self.tolerance())
    }

    fn tolerance(&self) -> u64 {
        self.rules.lifetimes.as_ref().map_or(0, |life| life.tolerance)
    }
}

impl State {
    /// Returns the activation with this id, if it is known.
    fn find(&self, activation: u32) -> Option<Known> {
        let current = match self.standing {
            Standing::Open(Hold { activation: Some(activation), expires, .. }) => {
                Some(Known { activation, expires })
            }
            Standing::Confirmed(known) => Some(known),
            Standing::Open(_) | Standing::Issued => None,
        };
        let mut all = current.into_iter().chain(self.closed.iter().copied());
        all.find(|known| known.activation == activation)
    }

    /// Closes the open activation, if any, and restores the code. An activation without a known id is
    /// forgotten, because no later call can name it.
    fn close(&mut self) {
        if let Standing::Open(Hold { activation: Some(activation), expires, .. }) = self.standing {
            self.closed.push(Known { activation, expires });
            self.closed.sort_by_key(|known| known.activation);
        }
        self.standing = Standing::Issued;
    }
}

/// Returns the state with the id and the token of a grant. `None` if the open activation has others.
fn with_grant(mut state: State, grant: Grant) -> Option<State> {
    let closed = state.closed.iter().any(|known| known.activation == grant.activation);
    let Standing::Open(hold) = &mut state.standing else { return None };
    let same = |known: Option<u32>, shown| known.is_none_or(|known| known == shown);
    if closed || !same(hold.activation, grant.activation) || !same(hold.token, grant.token) {
        return None;
    }
    (hold.activation, hold.token) = (Some(grant.activation), Some(grant.token));
    Some(state)
}

fn unchanged(state: &State, answers: impl IntoIterator<Item = Answer>) -> Vec<(Outcome, State)> {
    answers.into_iter().map(|answer| (Plain(answer), state.clone())).collect()
}

/// Whether an operation with this answer never changes the state.
pub const fn only_reads(answer: &Answer) -> bool {
    !matches!(
        answer,
        Answer::Granted(_) | Answer::Confirmed | Answer::Released { .. } | Answer::Perhaps
    )
}
