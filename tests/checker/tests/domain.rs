//! Compares the model with the product's own rules. A server that follows these rules and handles one
//! request at a time gives answers that have an order, even if answers are lost and lifetimes end. An answer
//! against these rules has no order.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use iptunnel_checker::history::Grant;
use iptunnel_checker::{Answer, Call, Lifetimes, Operation, Rules, check_code};
use iptunnel_domain::activation::{
    Activation, ActivationId, ActivationNumber, ActivationRef, Binding, Holder, Release, Request,
    Resume,
};
use iptunnel_domain::address::HostName;
use iptunnel_domain::code::{Activate, Code, CodeHash, CodeNumber, Precheck, ProductLetters};
use iptunnel_domain::lookup::KeyedHash;
use iptunnel_domain::{Refusal, Timestamp};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::sync::Arc;

const SECOND: u64 = 1_000_000;
const LONG: u64 = 1_000_000;

/// Returns the lifetimes in seconds. Short ones end in the middle of a history.
fn life(short: bool) -> iptunnel_domain::time::Lifetimes {
    let of = |seconds| if short { seconds } else { LONG };
    iptunnel_domain::time::Lifetimes {
        code: of(12),
        precheck_token: of(9),
        install_token: of(6),
        restored: of(5),
        max_lifetime: of(30),
        max_activations: 3,
    }
}

fn rules(short: bool) -> Rules {
    let life = life(short);
    let lifetimes = short.then_some(Lifetimes {
        code: life.code * SECOND,
        precheck_token: life.precheck_token * SECOND,
        install_token: life.install_token * SECOND,
        restored: life.restored * SECOND,
        max_lifetime: life.max_lifetime * SECOND,
        tolerance: SECOND,
    });
    Rules { max_activations: 3, lifetimes, revocation_reaches: 0, finished: false }
}

/// One server with one code that follows the product's rules.
struct Server {
    life: iptunnel_domain::time::Lifetimes,
    code: Code,
    activations: BTreeMap<u32, Activation>,
}

impl Server {
    fn new(short: bool) -> Self {
        let (hash, life) = (KeyedHash([9; 16]), life(short));
        let letters = ProductLetters::parse("SD").unwrap();
        let code = Code::issue(CodeNumber(1), CodeHash(hash), letters, hash, Timestamp(0), &life);
        Self { life, code, activations: BTreeMap::new() }
    }

    fn holder(machine: u32) -> Holder {
        let hash = KeyedHash([machine as u8; 16]);
        Holder { machine: hash, fingerprint: hash }
    }

    fn activation(&self, by: ActivationRef) -> &Activation {
        &self.activations[&(by.number.0 as u32)]
    }

    fn answer(&mut self, call: Call, now: u64) -> Answer {
        self.decide(call, Timestamp(now / SECOND)).unwrap_or_else(|refusal| match refusal {
            Refusal::CodeUsed => Answer::Used,
            Refusal::CodeExpired => Answer::Expired,
            Refusal::CodeMaxActivations => Answer::MaxActivations,
            Refusal::PrecheckTokenInvalid => Answer::PrecheckTokenInvalid,
            Refusal::TokenInvalid => Answer::TokenInvalid,
            Refusal::TokenUsed => Answer::TokenUsed,
            Refusal::ActivationNotFound => Answer::ActivationNotFound,
            other => panic!("{other:?}"),
        })
    }

    fn decide(&mut self, call: Call, now: Timestamp) -> Result<Answer, Refusal> {
        let life = self.life;
        match call {
            Call::Precheck { machine, .. } => {
                if let Precheck::Held(by) = self.code.precheck(now, &life)? {
                    self.activation(by).precheck(&Self::holder(machine), now)?;
                }
                Ok(Answer::Ready)
            }
            Call::Activate { machine, binding, prechecked, .. } => {
                let prechecked = Timestamp(prechecked.0 / SECOND);
                if now >= prechecked.plus(life.precheck_token) {
                    return Err(Refusal::PrecheckTokenInvalid);
                }
                self.activate(machine, binding, prechecked, now)
            }
            Call::Confirm { activation, .. } => {
                let open = &self.activations[&activation];
                if now >= open.expires_at {
                    return Err(Refusal::TokenInvalid);
                }
                let confirmed = open.confirm(now)?;
                self.activations.insert(activation, confirmed);
                Ok(Answer::Confirmed)
            }
            Call::Release { activation, .. } => match self.activations[&activation].release(now)? {
                Release::Confirmed => Ok(Answer::StaysConfirmed),
                Release::Lapsed => Ok(Answer::Released { restored: false }),
                Release::GiveBack(released) => {
                    self.code = self.code.restore(released.at, now, &life).unwrap();
                    self.activations.insert(activation, released);
                    Ok(Answer::Released { restored: !self.code.is_expired(now) })
                }
            },
            other => panic!("{other:?}"),
        }
    }

    fn activate(
        &mut self,
        machine: u32,
        binding: u32,
        prechecked: Timestamp,
        now: Timestamp,
    ) -> Result<Answer, Refusal> {
        let number = self.activations.len() as u32 + 1;
        let granted = |activation| Answer::Granted(Grant { activation, token: activation });
        let at = ActivationRef {
            number: ActivationNumber(number.into()),
            id: ActivationId(number.into()),
        };
        let request = Arc::new(Request {
            holder: Self::holder(machine),
            binding: Binding {
                hostname: HostName::parse(&format!("ns{binding}.example.com")).unwrap(),
                public_ip: [1, 2, 3, 4].into(),
            },
            requested_ref: String::new(),
            installer_version: String::new(),
            signing_key: String::new(),
        });
        match self.code.activate(at, prechecked, &self.life)? {
            Activate::Consume(code) => self.code = code,
            Activate::Held(by) => {
                let activation = self.activation(by);
                match activation.resume(&request, &self.code, now, &self.life)? {
                    Resume::Repeat => return Ok(granted(by.number.0 as u32)),
                    Resume::Replace(released) => {
                        self.activations.insert(by.number.0 as u32, released);
                        self.code = self.code.restore(by, now, &self.life).unwrap().consumed_by(at);
                    }
                    Resume::Stale => panic!("the code is consumed by a released activation"),
                }
            }
        }
        let opened = Activation::open(at, self.code.hash, request, now, &self.life);
        self.activations.insert(number, opened);
        Ok(granted(number))
    }
}

/// One request of a plan: its client, its content, its times, and whether it is lost.
#[derive(Clone, Copy, Debug)]
struct Step {
    client: u32,
    kind: u8,
    machine: u32,
    binding: u32,
    pick: prop::sample::Index,
    /// The delays until the request is sent, takes effect, and is answered.
    waits: [u64; 3],
    lost: Lost,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Lost {
    No,
    Request,
    Answer,
    /// The client stops waiting before the request takes effect.
    Late,
}

fn step() -> impl Strategy<Value = Step> {
    let lost = prop_oneof![
        6 => Just(Lost::No), 1 => Just(Lost::Request), 1 => Just(Lost::Answer), 1 => Just(Lost::Late)
    ];
    let wait = || 0..1_500_000_u64;
    let what = (0..4_u32, 0..8_u8, 0..3_u32, 0..2_u32, any::<prop::sample::Index>());
    (what, [wait(), wait(), wait()], lost).prop_map(
        |((client, kind, machine, binding, pick), waits, lost)| Step {
            client,
            kind,
            machine,
            binding,
            pick,
            waits,
            lost,
        },
    )
}

/// A request that was sent.
struct Sent {
    at: u64,
    effect: u64,
    returned: u64,
    call: Call,
    step: Step,
    answer: Option<Answer>,
}

/// Plays a plan on one server and returns the history. Each client sends one request at a time. Requests
/// take effect in the order of their effect times.
fn history(plan: &[Step], short: bool) -> Vec<Operation> {
    let mut server = Server::new(short);
    let mut queues: Vec<Vec<Step>> = vec![Vec::new(); 4];
    for step in plan.iter().rev() {
        queues[step.client as usize].push(*step);
    }
    let mut free = [1_u64; 4];
    let mut sent: Vec<Sent> = Vec::new();
    // What clients know, and from which time on.
    let mut prechecked: Vec<(u64, (u64, u64))> = Vec::new();
    let mut known: Vec<(u64, u32)> = Vec::new();
    loop {
        // The next event: a request takes effect, or a client sends a request.
        let effect = sent.iter().filter(|sent| sent.answer.is_none()).map(|sent| sent.effect).min();
        let ready = (0..4).filter(|client| !queues[*client].is_empty());
        let out =
            ready.map(|client| (free[client] + queues[client].last().unwrap().waits[0], client));
        let out = out.min();
        match (effect, out) {
            (None, None) => break,
            (Some(effect), out) if out.is_none_or(|(at, _)| effect <= at) => {
                let due = |sent: &&mut Sent| sent.answer.is_none() && sent.effect == effect;
                let due = sent.iter_mut().find(due).unwrap();
                due.answer = Some(if due.step.lost == Lost::Request {
                    Answer::Perhaps
                } else {
                    server.answer(due.call, effect)
                });
                match (due.step.lost, due.call, due.answer.as_ref().unwrap()) {
                    (Lost::No, Call::Precheck { .. }, Answer::Ready) => {
                        prechecked.push((due.returned, (effect, effect)));
                    }
                    (Lost::No, _, Answer::Granted(grant)) => {
                        known.push((due.returned, grant.activation));
                    }
                    _ => {}
                }
            }
            (_, Some((at, client))) => {
                let step = queues[client].pop().unwrap();
                let known: Vec<u32> = known.iter().filter(|k| k.0 < at).map(|k| k.1).collect();
                let tokens: Vec<_> = prechecked.iter().filter(|p| p.0 < at).map(|p| p.1).collect();
                let (code, machine) = (1, step.machine);
                let token = (!tokens.is_empty()).then(|| tokens[step.pick.index(tokens.len())]);
                let activation = (!known.is_empty()).then(|| known[step.pick.index(known.len())]);
                let call = match (step.kind, token, activation) {
                    (0..=3, Some(prechecked), _) => {
                        Call::Activate { code, machine, binding: step.binding, prechecked }
                    }
                    (4, _, Some(activation)) => Call::Confirm { code, activation },
                    (5 | 6, _, Some(activation)) => Call::Release { code, activation },
                    _ => Call::Precheck { code, machine },
                };
                let effect = at + 1 + step.waits[1];
                let returned = match step.lost {
                    Lost::Late => at + 1 + step.waits[1] / 2,
                    _ => effect + 1 + step.waits[2],
                };
                free[client] = returned + 1;
                sent.push(Sent { at, effect, returned, call, step, answer: None });
            }
            (Some(_), None) => unreachable!("an effect is due"),
        }
    }
    let issue = (Call::Issue { code: 1 }, Answer::Issued);
    let issue =
        Operation { client: 9, server: 0, invoked: 0, returned: 1, call: issue.0, answer: issue.1 };
    let operations = sent.into_iter().map(|sent| Operation {
        client: sent.step.client,
        server: 0,
        invoked: sent.at,
        returned: sent.returned,
        call: sent.call,
        answer: if sent.step.lost == Lost::No { sent.answer.unwrap() } else { Answer::Perhaps },
    });
    std::iter::once(issue).chain(operations).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn the_answers_of_a_server_that_follows_the_rules_have_an_order(
        plan in prop::collection::vec(step(), 1..40), short: bool,
    ) {
        let history = history(&plan, short);
        let found = check_code(1, &history, &rules(short));
        prop_assert!(found.is_empty(), "{}", found[0]);
    }

    #[test]
    fn an_answer_against_the_rules_has_no_order(
        plan in prop::collection::vec(step(), 1..25), place: prop::sample::Index, other in 0..9_usize,
    ) {
        // With one request at a time and nothing lost, each request has one right answer. Only a new
        // activation may have any id.
        let alone = plan.iter().map(|step| Step { client: 0, lost: Lost::No, ..*step });
        let mut history = history(&alone.collect::<Vec<_>>(), false);
        let place = 1 + place.index(history.len() - 1);
        let granted = |activation| Answer::Granted(Grant { activation, token: activation });
        let others = [
            Answer::Ready, Answer::Confirmed, Answer::Released { restored: true }, Answer::Used,
            Answer::StaysConfirmed, Answer::TokenUsed, Answer::ActivationNotFound, granted(1),
            Answer::MaxActivations,
        ];
        let other = others[other].clone();
        let new = matches!(other, Answer::Granted(_)) && matches!(history[place].answer, Answer::Granted(_));
        prop_assume!(!new && other != history[place].answer);
        history.truncate(place + 1);
        history[place].answer = other;
        prop_assert!(!check_code(1, &history, &rules(false)).is_empty(), "{history:#?}");
    }
}

#[test]
fn the_plans_reach_every_answer() {
    use proptest::strategy::ValueTree;
    use proptest::test_runner::TestRunner;
    let mut runner = TestRunner::deterministic();
    let plans = prop::collection::vec(step(), 30..40);
    let mut heard = BTreeMap::new();
    for number in 0..400 {
        let plan = plans.new_tree(&mut runner).unwrap().current();
        for operation in history(&plan, number % 2 == 0) {
            let kind = match operation.answer {
                Answer::Granted(_) => "granted".to_owned(),
                other => other.to_string(),
            };
            *heard.entry(kind).or_insert(0_u32) += 1;
        }
    }
    let all = [
        "ready",
        "granted",
        "confirmed",
        "released, code restored",
        "released, code not restored",
        "stays confirmed",
        "code used",
        "code expired",
        "too many activations",
        "precheck token invalid",
        "token invalid",
        "token used",
        "activation not found",
        "no answer",
    ];
    let missing: Vec<_> = all.iter().filter(|answer| !heard.contains_key(**answer)).collect();
    assert!(missing.is_empty(), "{missing:?}, heard {heard:?}");
}
