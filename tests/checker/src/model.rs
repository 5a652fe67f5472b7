//! One install code and its activations, as the contract has them: which answers are possible in which
//! state, and what they leave behind.
//!
//! Time enters as spans, since nobody but the server knows at which instant it decided: an answer is
//! allowed where *some* instant between request and answer, give or take the tolerance, makes it right.
//! Without [`Rules::lifetimes`] nothing ever expires or lapses.

use crate::history::{Answer, Call, Grant};
use crate::search::Span;

/// What a server was configured to.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// How often a code may be activated.
    pub max_activations: u32,
    /// How long things live; `None` where a run is over long before anything could expire.
    pub lifetimes: Option<Lifetimes>,
    /// Within how many microseconds a revocation that one server has answered binds on the others.
    pub revocation_reaches: u64,
    /// Whether the recorder has brought every code to its end: then one that is not confirmed is burnt.
    pub finished: bool,
}

/// How long things live, all in microseconds.
#[derive(Clone, Copy, Debug)]
pub struct Lifetimes {
    /// From issue until a code expires.
    pub code: u64,
    /// How long a precheck carries an install further.
    pub precheck_token: u64,
    /// How long an activation stays open.
    pub install_token: u64,
    /// How long a released code is good again, at least.
    pub restored: u64,
    /// The age beyond which no release prolongs a code.
    pub max_lifetime: u64,
    /// By how much the servers' clocks may differ from the history's. Servers count whole seconds, so
    /// it is one second at least.
    pub tolerance: u64,
}

/// Never: later than anything in a history.
const NEVER: u64 = u64::MAX;
/// When something at the latest happened of which nothing is known: no lifetime added to it overflows.
const FAR: u64 = u64::MAX / 2;

/// A code and its activations.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct State {
    /// Between which instants the code expires.
    expires: Span,
    /// How often it was activated.
    activations: u32,
    standing: Standing,
    /// Activations that were released or replaced, in the order of their names.
    closed: Vec<Known>,
}

/// Where the code stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Standing {
    /// The first machine to activate it gets it.
    Issued,
    /// A machine holds it.
    Open(Hold),
    /// Used, and never valid again.
    Confirmed(Known),
}

/// An activation that is open, or has lapsed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Hold {
    machine: u32,
    binding: u32,
    /// Its name; `None` while nobody has been told it, since the answer was lost.
    activation: Option<u32>,
    /// The same of its token.
    token: Option<u32>,
    /// Between which instants its token runs out.
    expires: Span,
}

/// An activation whose name somebody was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Known {
    activation: u32,
    expires: Span,
}

/// What a call leads to: an answer, or a grant whose names are still to be seen.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Outcome {
    Plain(Answer),
    /// A new activation.
    Opened,
    /// The activation that is open already.
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
    /// A code that was issued within `issued`.
    pub const fn new(rules: Rules, issued: Span) -> Self {
        Self { rules, issued }
    }

    /// The code as issued.
    pub fn initial(&self) -> State {
        State {
            expires: self.end(self.issued, |life| life.code),
            activations: 0,
            standing: Standing::Issued,
            closed: Vec::new(),
        }
    }

    /// The states that `call`, made within `at` and answered so, may leave behind: none where no such
    /// answer is possible in `state`.
    pub fn after(&self, state: &State, call: &Call, answer: &Answer, at: Span) -> Vec<State> {
        let at = Span { from: at.from, to: at.to.min(FAR) };
        if *answer == Answer::Nothing {
            return vec![state.clone()];
        }
        let mut after: Vec<State> = Vec::new();
        for (outcome, next) in self.outcomes(state, call, at) {
            let next = match (&outcome, answer) {
                (_, Answer::Perhaps) => Some(next),
                (Opened | Again, Answer::Granted(grant)) => told(next, *grant),
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

    /// Everything that `call` may lead to.
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

    /// A call that names an activation. While the open one has no name, it may be the one that is
    /// meant: its grant may be among the answers that are lost, or taken for lost.
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

    /// When a code that is given back within `at` expires.
    fn prolonged(&self, expires: Span, at: Span) -> Span {
        let again = self.end(at, |life| life.restored);
        let last = self.end(self.issued, |life| life.max_lifetime);
        let later = |old: u64, again: u64, last: u64| old.max(again.min(last));
        Span {
            from: later(expires.from, again.from, last.from),
            to: later(expires.to, again.to, last.to),
        }
    }

    /// Between which instants something ends that began within `begun`.
    fn end(&self, begun: Span, lives: impl Fn(&Lifetimes) -> u64) -> Span {
        self.rules.lifetimes.as_ref().map_or(Span { from: NEVER, to: NEVER }, |life| {
            let after = lives(life);
            Span { from: begun.from.saturating_add(after), to: begun.to.saturating_add(after) }
        })
    }

    /// Whether something that ends within `end` may be over at some instant of `at`.
    fn may_be_over(&self, end: Span, at: Span) -> bool {
        end.from != NEVER && at.to.saturating_add(self.tolerance()) >= end.from
    }

    /// Whether something that ends within `end` may be good at some instant of `at`.
    fn may_be_good(&self, end: Span, at: Span) -> bool {
        at.from < end.to.saturating_add(self.tolerance())
    }

    fn tolerance(&self) -> u64 {
        self.rules.lifetimes.as_ref().map_or(0, |life| life.tolerance)
    }
}

impl State {
    /// The activation of this name, if it is known.
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

    /// The open activation, if any, gives the code back. Nobody will speak of one without a name.
    fn close(&mut self) {
        if let Standing::Open(Hold { activation: Some(activation), expires, .. }) = self.standing {
            self.closed.push(Known { activation, expires });
            self.closed.sort_by_key(|known| known.activation);
        }
        self.standing = Standing::Issued;
    }
}

/// The state once somebody was told the names of the open activation; `None` where it has others.
fn told(mut state: State, grant: Grant) -> Option<State> {
    let closed = state.closed.iter().any(|known| known.activation == grant.activation);
    let Standing::Open(hold) = &mut state.standing else { return None };
    let same = |known: Option<u32>, told| known.is_none_or(|known| known == told);
    if closed || !same(hold.activation, grant.activation) || !same(hold.token, grant.token) {
        return None;
    }
    (hold.activation, hold.token) = (Some(grant.activation), Some(grant.token));
    Some(state)
}

fn unchanged(state: &State, answers: impl IntoIterator<Item = Answer>) -> Vec<(Outcome, State)> {
    answers.into_iter().map(|answer| (Plain(answer), state.clone())).collect()
}

/// Whether an operation that was answered so has changed nothing, whatever it found.
pub const fn only_reads(answer: &Answer) -> bool {
    !matches!(
        answer,
        Answer::Granted(_) | Answer::Confirmed | Answer::Released { .. } | Answer::Perhaps
    )
}
