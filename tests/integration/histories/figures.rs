//! What a run amounted to, in figures.

use super::chaos::{Fault, Happened};
use iptunnel_checker::{Answer, Call, Operation};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::time::Duration;

/// An activate: when it was sent, when it was answered, by which machine.
type Redeem = (u64, u64, u32);

/// Sums over the rounds of a run.
#[derive(Default)]
pub struct Figures {
    pub rounds: u32,
    pub redeems: u32,
    /// What was wrong, by kind.
    pub violations: BTreeMap<String, u32>,
    /// How often servers ended by themselves, and were started again.
    pub ended: u32,
    pub played: Duration,
    pub checked: Duration,
    operations: usize,
    codes: usize,
    /// Codes that at least two machines sent an activate for.
    contended: usize,
    /// Activates of these codes.
    contended_redeems: usize,
    /// Activates that were under way together with another machine's.
    at_once: usize,
    activations: usize,
    confirmed: usize,
    perhaps: usize,
    nothing: usize,
    refused: usize,
    most: usize,
    longest: u64,
    /// How often each fault happened, and the longest time without a grant while it did.
    faults: BTreeMap<Fault, (u32, u64)>,
}

impl Figures {
    /// How much was wrong.
    pub fn wrong(&self) -> u32 {
        self.violations.values().sum()
    }

    /// Counts a round.
    pub fn add(&mut self, operations: &[Operation], faults: &[Happened]) {
        self.rounds += 1;
        self.operations += operations.len();
        let mut redeems: HashMap<u32, Vec<Redeem>> = HashMap::new();
        let mut of_code: BTreeMap<u32, usize> = BTreeMap::new();
        let mut granted = BTreeSet::new();
        let mut grants = Vec::new();
        for operation in operations {
            if let Some(code) = operation.call.code() {
                *of_code.entry(code).or_default() += 1;
            }
            if let Call::Activate { code, machine, .. } = operation.call
                && operation.answer != Answer::Nothing
            {
                let redeem = (operation.invoked, operation.returned, machine);
                redeems.entry(code).or_default().push(redeem);
            }
            match &operation.answer {
                Answer::Perhaps => self.perhaps += 1,
                Answer::Nothing => self.nothing += 1,
                Answer::Issued => self.codes += 1,
                Answer::Granted(grant) => {
                    granted.insert(grant.activation);
                    grants.push(operation.returned);
                }
                Answer::Confirmed => self.confirmed += 1,
                Answer::Used | Answer::TokenUsed | Answer::ActivationNotFound => self.refused += 1,
                _ => {}
            }
        }
        self.activations += granted.len();
        for redeems in redeems.values() {
            let machines: BTreeSet<u32> = redeems.iter().map(|(_, _, machine)| *machine).collect();
            if machines.len() > 1 {
                self.contended += 1;
                self.contended_redeems += redeems.len();
            }
            let together = |a: &Redeem, b: &Redeem| a.2 != b.2 && a.0 < b.1 && b.0 < a.1;
            let meets = |redeem: &&Redeem| redeems.iter().any(|other| together(redeem, other));
            self.at_once += redeems.iter().filter(meets).count();
        }
        self.most = self.most.max(of_code.values().copied().max().unwrap_or(0));
        grants.sort_unstable();
        let gaps: Vec<(u64, u64)> = grants.windows(2).map(|pair| (pair[0], pair[1])).collect();
        let longest = |gaps: &mut dyn Iterator<Item = &(u64, u64)>| {
            gaps.map(|(from, to)| to - from).max().unwrap_or(0)
        };
        self.longest = self.longest.max(longest(&mut gaps.iter()));
        for happened in faults {
            let during = |gap: &&(u64, u64)| gap.0 < happened.healed && happened.begun < gap.1;
            let gap = longest(&mut gaps.iter().filter(during));
            let (count, most) = self.faults.entry(happened.fault).or_default();
            (*count, *most) = (*count + 1, gap.max(*most));
        }
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = |micros: u64| format!("{:.1} s", micros as f64 / 1e6);
        let lines = [
            ("rounds", self.rounds.to_string()),
            ("played for", format!("{:.0} s", self.played.as_secs_f64())),
            ("checked for", format!("{:.1} s", self.checked.as_secs_f64())),
            ("operations", self.operations.to_string()),
            ("redeems (activates sent)", self.redeems.to_string()),
            ("of codes that several machines wanted", self.contended_redeems.to_string()),
            ("under way with another machine's", self.at_once.to_string()),
            ("codes", self.codes.to_string()),
            ("codes that several machines wanted", self.contended.to_string()),
            ("most operations on one code", self.most.to_string()),
            ("activations", self.activations.to_string()),
            ("confirmed", self.confirmed.to_string()),
            ("refused (used, spent or released)", self.refused.to_string()),
            ("perhaps (no answer, outcome unknown)", self.perhaps.to_string()),
            ("nothing happened (503, nobody there)", self.nothing.to_string()),
            ("servers that ended by themselves", self.ended.to_string()),
            ("longest time without a grant", seconds(self.longest)),
        ];
        for (what, figure) in lines {
            writeln!(f, "{what:<38} {figure:>10}")?;
        }
        for (fault, (count, gap)) in &self.faults {
            let name = format!("fault {}", fault.name());
            writeln!(f, "{name:<38} {count:>10}   without a grant: at most {}", seconds(*gap))?;
        }
        for (kind, count) in &self.violations {
            writeln!(f, "{:<38} {count:>10}   {kind}", "violations")?;
        }
        write!(f, "{:<38} {:>10}", "violations in all", self.wrong())
    }
}
