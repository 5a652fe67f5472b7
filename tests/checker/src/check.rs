//! Checks all codes and servers of a history.

use crate::explain::{explain, order};
use crate::history::{Answer, Call, Grant, Operation};
use crate::model::{Model, Rules};
use crate::search::{Order, Span};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// A broken promise, with the operations that show it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The broken promise.
    pub broken: Broken,
    /// The number of the code or the server concerned.
    pub about: u32,
    /// The operations that show it. The last one broke the promise.
    pub part: Vec<Operation>,
    /// The same operations as text for people, in several lines.
    pub explanation: String,
}

/// The promises.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Broken {
    /// No single server that handles one request at a time could have given these answers about a code.
    OneOrder,
    /// The search for an order reached its bound. The result is unknown.
    Undecided,
    /// Two installations were confirmed with one code.
    OneInstallation,
    /// Two codes got the same activation id.
    OwnNames,
    /// No machine could finish its installation with a code.
    NothingBurnt,
    /// A revoked server was accepted, or a registered server was not found.
    Revocation,
}

impl Violation {
    /// The kind of violation, with the answer that broke the promise. Violations with the same cause
    /// mostly have the same kind.
    pub fn kind(&self) -> String {
        let last = self.part.last().filter(|_| self.broken == Broken::OneOrder);
        let Some(last) = last else { return format!("{:?}", self.broken) };
        let words = format!("{} -> {}", last.call, last.answer);
        let words = words.split(' ').filter(|word| word.parse::<u32>().is_err());
        format!("OneOrder: {}", words.collect::<Vec<_>>().join(" "))
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (broken, about) = match self.broken {
            Broken::OneOrder => ("no order explains the answers", "code"),
            Broken::Undecided => ("undecided, too many possible orders", "code"),
            Broken::OneInstallation => ("two installations were confirmed", "code"),
            Broken::OwnNames => ("an activation id was given to two codes", "code"),
            Broken::NothingBurnt => ("burnt, no machine could finish its installation", "code"),
            Broken::Revocation => ("the answers about it contradict each other", "server"),
        };
        write!(f, "{about} {}: {broken}\n{}", self.about, self.explanation)
    }
}

/// Returns all violations in a history.
pub fn check(operations: &[Operation], rules: &Rules) -> Vec<Violation> {
    let mut codes: BTreeMap<u32, Vec<Operation>> = BTreeMap::new();
    let mut nodes: BTreeMap<u32, Vec<Operation>> = BTreeMap::new();
    for operation in operations {
        if let Some(code) = operation.call.code() {
            codes.entry(code).or_default().push(operation.clone());
        } else if let Some(node) = operation.call.node() {
            nodes.entry(node).or_default().push(operation.clone());
        }
    }
    let mut violations = Vec::new();
    let mut owners = BTreeMap::new();
    for (code, operations) in &codes {
        violations.extend(check_code(*code, operations, rules));
        for activation in granted(operations) {
            let owner = *owners.entry(activation).or_insert(*code);
            if owner != *code {
                let explanation =
                    format!("  activation {activation} also belongs to code {owner}\n");
                let (broken, about, part) = (Broken::OwnNames, *code, Vec::new());
                violations.push(Violation { broken, about, part, explanation });
            }
        }
    }
    for (node, operations) in &nodes {
        violations.extend(check_node(*node, operations, rules));
    }
    violations
}

/// Returns all violations on one code. Its issue is among the operations.
pub fn check_code(code: u32, operations: &[Operation], rules: &Rules) -> Vec<Violation> {
    let violation =
        |broken, part, explanation| Violation { broken, about: code, part, explanation };
    let mut issue = None;
    let mut others = Vec::new();
    for operation in operations {
        if !matches!(operation.call, Call::Issue { .. }) {
            others.push(operation.clone());
        } else if matches!(operation.answer, Answer::Issued) {
            issue = Some(Span { from: operation.invoked, to: operation.returned });
        } else if let Answer::Other(answer) = &operation.answer {
            let explanation =
                format!("  {operation}\n  an issue cannot be answered with {answer}\n");
            return vec![violation(Broken::OneOrder, vec![operation.clone()], explanation)];
        }
    }
    let Some(issued) = issue else {
        // No client knows a code that was not issued, so no client can use it.
        let seen = others.first().map(|operation| {
            let explanation = format!("  the code was used but never issued:\n  {operation}\n");
            violation(Broken::OneOrder, vec![operation.clone()], explanation)
        });
        return seen.into_iter().collect();
    };
    let model = Model::new(*rules, issued);
    let mut violations = Vec::new();
    match order(&model, &others) {
        Order::Exists => {}
        Order::None => {
            let (part, explanation) = explain(&model, &others);
            violations.push(violation(Broken::OneOrder, part, explanation));
        }
        Order::Undecided => {
            violations.push(violation(Broken::Undecided, others.clone(), lines(&others)));
        }
    }
    // The checks below do not use the search. They find the worst violations even if the search is wrong.
    let installed = installed(&others);
    if installed.len() > 1 {
        let of_installed = |operation: &&Operation| {
            matches!(
                operation.answer,
                Answer::Confirmed | Answer::TokenUsed | Answer::StaysConfirmed
            )
        };
        let shown: Vec<Operation> = others.iter().filter(of_installed).cloned().collect();
        let explanation = lines(&shown);
        violations.push(violation(Broken::OneInstallation, shown, explanation));
    }
    if rules.finished && installed.is_empty() {
        let explanation = lines(&others);
        violations.push(violation(Broken::NothingBurnt, others, explanation));
    }
    violations
}

/// The activations that some answer called confirmed.
fn installed(operations: &[Operation]) -> BTreeSet<u32> {
    let of = |operation: &Operation| match (&operation.call, &operation.answer) {
        (Call::Confirm { activation, .. }, Answer::Confirmed | Answer::TokenUsed)
        | (Call::Release { activation, .. }, Answer::StaysConfirmed) => Some(*activation),
        _ => None,
    };
    operations.iter().filter_map(of).collect()
}

fn granted(operations: &[Operation]) -> BTreeSet<u32> {
    let of = |operation: &Operation| match operation.answer {
        Answer::Granted(Grant { activation, .. }) => Some(activation),
        _ => None,
    };
    operations.iter().filter_map(of).collect()
}

/// The first and the last operations, one per line. The history has the rest.
fn lines(operations: &[Operation]) -> String {
    const EDGE: usize = 12;
    let line = |operation: &Operation| format!("  {operation}\n");
    let (first, rest) = operations.split_at(EDGE.min(operations.len()));
    let (left_out, last) = rest.split_at(rest.len().saturating_sub(EDGE));
    let mut text: String = first.iter().map(line).collect();
    if !left_out.is_empty() {
        text += &format!("  ... {} more ...\n", left_out.len());
    }
    text.extend(last.iter().map(line));
    text
}

/// Checks the answers about one server. A registered server is found, and a revoked server is never
/// accepted again. The server that answered knows this at once. The others learn it within
/// [`Rules::revocation_reaches`], but a registration reads the store and so also knows it at once.
fn check_node(node: u32, operations: &[Operation], rules: &Rules) -> Vec<Violation> {
    let mut violations = Vec::new();
    let contradiction = |before: &Operation, now: &Operation| {
        let explanation = format!("  {before}\n  {now}\n");
        let part = vec![before.clone(), now.clone()];
        Violation { broken: Broken::Revocation, about: node, part, explanation }
    };
    let is_known = |before: &Operation, now: &Operation| {
        let at_once = before.server == now.server || matches!(now.call, Call::Register { .. });
        let reaches = if at_once { 0 } else { rules.revocation_reaches };
        before.returned.saturating_add(reaches) < now.invoked
    };
    let find = |answer: Answer, now: &Operation| {
        operations.iter().find(|before| before.answer == answer && is_known(before, now))
    };
    let revoke_requested = |now: &Operation| {
        let revokes = |before: &&Operation| matches!(before.call, Call::Revoke { .. });
        operations.iter().filter(revokes).any(|before| before.invoked < now.returned)
    };
    for now in operations {
        let contradicted = match (&now.call, &now.answer) {
            // An answered revocation is final.
            (Call::Register { .. }, Answer::Registered) | (Call::CheckIn { .. }, Answer::Alive) => {
                find(Answer::Revoked, now)
            }
            // A server is accepted until it is revoked, and is found once it is registered.
            (_, Answer::Revoked) if !revoke_requested(now) => Some(now),
            (_, Answer::NotRegistered) => find(Answer::Registered, now),
            (_, Answer::Other(_)) => Some(now),
            _ => None,
        };
        violations.extend(contradicted.map(|before| contradiction(before, now)));
    }
    violations
}
