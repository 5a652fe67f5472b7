//! All codes and servers of a history.

use crate::explain::{explain, order};
use crate::history::{Answer, Call, Grant, Operation};
use crate::model::{Model, Rules};
use crate::search::{Order, Span};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// A promise that was broken, and how that shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Which promise.
    pub broken: Broken,
    /// What it is about: a code's or a server's number.
    pub about: u32,
    /// The operations that show it, the one that broke it last.
    pub part: Vec<Operation>,
    /// The same for people, in several lines.
    pub explanation: String,
}

/// The promises.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Broken {
    /// The answers about a code are not those of one server that does one thing after the other.
    OneOrder,
    /// The search for an order took too long; nothing is known.
    Undecided,
    /// A code was good for two installations.
    OneInstallation,
    /// An activation's id was handed out for two codes.
    OwnNames,
    /// A code that no machine could finish.
    NothingBurnt,
    /// A revoked server was let in, or a registered one forgotten.
    Revocation,
}

impl Violation {
    /// What kind it is, with the answer that broke it: violations with one cause mostly share it.
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
            Broken::OneOrder => ("what was answered is not one story", "code"),
            Broken::Undecided => ("undecided: too many possible orders", "code"),
            Broken::OneInstallation => ("good for two installations", "code"),
            Broken::OwnNames => ("an activation's id was handed out twice", "code"),
            Broken::NothingBurnt => ("burnt: no machine could finish it", "code"),
            Broken::Revocation => ("what was said of a server does not hold", "server"),
        };
        write!(f, "{about} {}: {broken}\n{}", self.about, self.explanation)
    }
}

/// Everything that is wrong with a history.
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
                    format!("  activation {activation} belongs to code {owner} as well\n");
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

/// Everything that is wrong with what was asked about one code, whose issue is among the operations.
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
            let explanation = format!("  {operation}\n  an issue is never answered {answer}\n");
            return vec![violation(Broken::OneOrder, vec![operation.clone()], explanation)];
        }
    }
    let Some(issued) = issue else {
        // Nobody has seen it; then nobody can ask for it.
        let seen = others.first().map(|operation| {
            let explanation = format!("  asked for and never issued:\n  {operation}\n");
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
    // What follows does without the search, and so finds the worst even where that had a fault.
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

/// The activations of which somebody was told that they are confirmed.
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

/// The first and the last of the operations, one a line: what lies between is in the history.
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

/// Whether what was answered about a server holds: once it is registered it is known, and once it is
/// revoked it is never let in again. On other servers than the one that answered that is so within
/// [`Rules::revocation_reaches`]; a registration reads what is stored, and knows at once.
fn check_node(node: u32, operations: &[Operation], rules: &Rules) -> Vec<Violation> {
    let mut violations = Vec::new();
    let told = |before: &Operation, now: &Operation| {
        let explanation = format!("  {before}\n  {now}\n");
        let part = vec![before.clone(), now.clone()];
        Violation { broken: Broken::Revocation, about: node, part, explanation }
    };
    let settles = |before: &Operation, now: &Operation| {
        let at_once = before.server == now.server || matches!(now.call, Call::Register { .. });
        let reaches = if at_once { 0 } else { rules.revocation_reaches };
        before.returned.saturating_add(reaches) < now.invoked
    };
    let find = |answer: Answer, now: &Operation| {
        operations.iter().find(|before| before.answer == answer && settles(before, now))
    };
    let asked = |now: &Operation| {
        let revokes = |before: &&Operation| matches!(before.call, Call::Revoke { .. });
        operations.iter().filter(revokes).any(|before| before.invoked < now.returned)
    };
    for now in operations {
        let contradicted = match (&now.call, &now.answer) {
            // A revocation that has been answered binds.
            (Call::Register { .. }, Answer::Registered) | (Call::CheckIn { .. }, Answer::Alive) => {
                find(Answer::Revoked, now)
            }
            // A server that nobody has revoked is let in, and known once it is registered.
            (_, Answer::Revoked) if !asked(now) => Some(now),
            (_, Answer::NotRegistered) => find(Answer::Registered, now),
            (_, Answer::Other(_)) => Some(now),
            _ => None,
        };
        violations.extend(contradicted.map(|before| told(before, now)));
    }
    violations
}
