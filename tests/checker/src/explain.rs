//! Explains in words the smallest part of a code's history that has no order.

use crate::history::{Answer, Grant, Operation};
use crate::model::{Model, only_reads};
use crate::search::{Order, Span, search};
use std::collections::BTreeSet;
use std::fmt::Write;

/// The number of configurations to visit before a code counts as undecided. This takes a few seconds and
/// a few hundred MB. A history of a few dozen operations needs a few hundred configurations.
const BOUND: usize = 1_000_000;
/// The same bound for each attempt to make the offending part smaller.
const BOUND_OF_A_TRY: usize = 50_000;

/// Searches for an order of the operations on one code.
pub fn order(model: &Model, operations: &[Operation]) -> Order {
    order_within(model, operations, BOUND)
}

fn order_within(model: &Model, operations: &[Operation], bound: usize) -> Order {
    let spans: Vec<Span> = operations.iter().map(span).collect();
    let reads = |n: usize| operations.get(n).is_some_and(|operation| only_reads(&operation.answer));
    search(&spans, model.initial(), bound, reads, |state, n| {
        let of = |operation: &Operation| {
            model.after(state, &operation.call, &operation.answer, span(operation))
        };
        operations.get(n).map_or_else(Vec::new, of)
    })
}

/// The time in which an operation may have taken effect.
fn span(operation: &Operation) -> Span {
    let open = operation.answer == Answer::Perhaps;
    let to = if open { Span::OPEN } else { operation.returned };
    Span { from: operation.invoked, to }
}

/// Returns the operations whose answers contradict each other, in the order of their answers, and the
/// number of operations left out. The history must have no order. Each operation left out may have had
/// any possible effect, or none, and the remaining answers still contradict each other. All of them are
/// needed for the contradiction. If there is a choice, the later answers remain.
pub fn offending(model: &Model, operations: &[Operation]) -> (Vec<Operation>, usize) {
    let mut part = shortest_prefix(model, operations);
    for number in 0..part.len().saturating_sub(1) {
        let mut weaker = part.clone();
        if let Some(operation) = weaker.get_mut(number) {
            operation.answer = Answer::Perhaps;
        }
        if order_within(model, &weaker, BOUND_OF_A_TRY) == Order::None {
            part = weaker;
        }
    }
    let all = part.len();
    part.retain(|operation| operation.answer != Answer::Perhaps);
    let others = all - part.len();
    (part, others)
}

/// Returns the history up to the first answer after which it has no order, without later requests. It is
/// sorted by the time of the answer.
fn shortest_prefix(model: &Model, operations: &[Operation]) -> Vec<Operation> {
    let mut sorted = operations.to_vec();
    sorted.sort_by_key(|operation| span(operation).to);
    let mut ends: Vec<u64> = sorted.iter().map(|operation| span(operation).to).collect();
    ends.retain(|end| *end != Span::OPEN);
    // Each prefix of a history with an order also has an order, so a binary search finds the place.
    let place = ends
        .partition_point(|end| order_within(model, &until(&sorted, *end), BOUND) != Order::None);
    until(&sorted, ends.get(place).copied().unwrap_or(Span::OPEN))
}

/// Returns what was known at an instant. A request without an answer by then may have happened or not.
fn until(operations: &[Operation], end: u64) -> Vec<Operation> {
    let mut until = Vec::new();
    let mut unanswered = Vec::new();
    for operation in operations.iter().filter(|operation| operation.invoked <= end) {
        if span(operation).to <= end {
            until.push(operation.clone());
        } else {
            unanswered.push(Operation { answer: Answer::Perhaps, ..operation.clone() });
        }
    }
    // The answer that breaks the order stays last.
    unanswered.append(&mut until);
    unanswered
}

/// Returns the answers that the last operation could have had instead.
fn possible(model: &Model, part: &[Operation]) -> Vec<Answer> {
    let Some((last, before)) = part.split_last() else { return vec![] };
    let mut grants: BTreeSet<(u32, u32)> = BTreeSet::new();
    for operation in before {
        if let Answer::Granted(Grant { activation, token }) = operation.answer {
            grants.insert((activation, token));
        }
    }
    // A new activation, which no answer has named.
    grants.insert((NEW, NEW));
    let granted = |(activation, token)| Answer::Granted(Grant { activation, token });
    let mut answers: Vec<Answer> = grants.into_iter().map(granted).collect();
    answers.extend([
        Answer::Ready,
        Answer::Confirmed,
        Answer::Released { restored: true },
        Answer::Released { restored: false },
        Answer::StaysConfirmed,
        Answer::Used,
        Answer::Expired,
        Answer::MaxActivations,
        Answer::PrecheckTokenInvalid,
        Answer::TokenInvalid,
        Answer::TokenUsed,
        Answer::ActivationNotFound,
    ]);
    answers.retain(|answer| {
        let mut tried = before.to_vec();
        tried.push(Operation { answer: answer.clone(), ..last.clone() });
        order_within(model, &tried, BOUND_OF_A_TRY) == Order::Exists
    });
    answers
}

const NEW: u32 = u32::MAX;

/// Returns the offending part, and a text for people with one operation per line and the right answers.
pub fn explain(model: &Model, operations: &[Operation]) -> (Vec<Operation>, String) {
    let whole = shortest_prefix(model, operations);
    let (part, others) = offending(model, operations);
    let mut text = String::from("no order explains these answers together:\n");
    for operation in &part {
        let _ = writeln!(text, "  {operation}");
    }
    let possible: Vec<String> = possible(model, &whole)
        .iter()
        .map(|answer| match answer {
            Answer::Granted(Grant { activation: NEW, .. }) => "granted a new activation".into(),
            other => other.to_string(),
        })
        .collect();
    if !possible.is_empty() {
        let _ = writeln!(text, "  the last answer could have been: {}", possible.join("; "));
    }
    if others > 0 {
        let _ = writeln!(
            text,
            "  {others} other operations on this code before it do not explain it, whatever their effect"
        );
    }
    (part, text)
}
