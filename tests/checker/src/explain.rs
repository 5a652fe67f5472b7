//! The smallest part of a code's history that has no order, in words.

use crate::history::{Answer, Grant, Operation};
use crate::model::{Model, only_reads};
use crate::search::{Order, Span, search};
use std::collections::BTreeSet;
use std::fmt::Write;

/// Configurations that are looked at before a code counts as undecided: some seconds, some hundred MB.
/// Histories of a few dozen operations need some hundred.
const BOUND: usize = 1_000_000;
/// The same for each try to make the offending part smaller.
const BOUND_OF_A_TRY: usize = 50_000;

/// Whether the operations on one code have an order.
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

/// When an operation may have taken effect.
fn span(operation: &Operation) -> Span {
    let open = operation.answer == Answer::Perhaps;
    let to = if open { Span::OPEN } else { operation.returned };
    Span { from: operation.invoked, to }
}

/// The operations whose answers contradict each other, in the order of their answers, of a history that
/// has no order. Every other operation is granted to have had any effect it could have, or none: what
/// is left contradicts itself in spite of that. No answer of it can be left out; where there is a
/// choice, the later ones are left. Besides, how many operations were left out.
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

/// The history until the first answer with which it has no order; later requests are left out. Sorted
/// by the time of the answer.
fn shortest_prefix(model: &Model, operations: &[Operation]) -> Vec<Operation> {
    let mut sorted = operations.to_vec();
    sorted.sort_by_key(|operation| span(operation).to);
    let mut ends: Vec<u64> = sorted.iter().map(|operation| span(operation).to).collect();
    ends.retain(|end| *end != Span::OPEN);
    // Whatever begins a history that has an order has one as well, so the place can be halved.
    let place = ends
        .partition_point(|end| order_within(model, &until(&sorted, *end), BOUND) != Order::None);
    until(&sorted, ends.get(place).copied().unwrap_or(Span::OPEN))
}

/// What was known at an instant: what was not answered by then may have happened or not.
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
    // The answer that breaks it stays the last.
    unanswered.append(&mut until);
    unanswered
}

/// What the last of the operations could have been answered instead.
fn possible(model: &Model, part: &[Operation]) -> Vec<Answer> {
    let Some((last, before)) = part.split_last() else { return vec![] };
    let mut grants: BTreeSet<(u32, u32)> = BTreeSet::new();
    for operation in before {
        if let Answer::Granted(Grant { activation, token }) = operation.answer {
            grants.insert((activation, token));
        }
    }
    // A name that nobody has been told.
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

/// The offending part, and the same for people: one operation a line, and what would have been right.
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
        let _ = writeln!(text, "  the last of them could have been: {}", possible.join("; "));
    }
    if others > 0 {
        let _ = writeln!(
            text,
            "  {others} more on this code until then cannot make up for it, whatever became of them"
        );
    }
    (part, text)
}
