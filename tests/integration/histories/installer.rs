//! Clients that do as installers do, and as the people before them: they run again what got no answer,
//! two machines want the same code, a machine moves to another host name, an installer that fails
//! releases.

use super::agents::Agents;
use super::chaos::{Chaos, Happened};
use super::fleet::Fleet;
use super::recorder::Recorder;
use super::wire::{Heard, Request, Wire};
use crate::harness::Machine;
use crate::process::Chance;
use iptunnel_checker::history::Grant;
use iptunnel_checker::{Answer, Call};
use serde_json::{Value, json};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// What is to be played.
#[derive(Clone, Copy)]
pub struct Plan {
    /// How many activates are answered or lost before everything is brought to an end; that takes some more.
    pub redeems: u32,
    /// How many faults happen before that, however fast the servers answer.
    pub faults: usize,
    pub clients: u32,
    pub seed: u64,
    /// When no more is begun though there were fewer.
    pub longest: Duration,
    /// How long a person does something else before the next run, at most.
    pub pace: Duration,
}

/// What was played.
pub struct Played {
    pub faults: Vec<Happened>,
    pub codes: Vec<Arc<Code>>,
    /// Activates sent, but for those of which nothing came.
    pub redeems: u32,
    /// What did not come to its end though it should have.
    pub complaints: Vec<String>,
}

/// How long the servers may take until they are ready again, once all faults are over.
const RECOVERY: Duration = Duration::from_secs(90);
/// How long a machine keeps trying to finish, once all servers are ready.
const PATIENCE: Duration = Duration::from_secs(30);

/// How often all machines may be refused until a code counts as burnt: a request that was late may
/// still be on its way.
const REFUSALS: u32 = 5;

/// A code, the machines that want it, and what they know.
pub struct Code {
    pub number: u32,
    text: String,
    machines: Vec<u32>,
    /// How many more runs of an installer there will be.
    runs: AtomicI64,
    /// Activations that somebody was told of, with their tokens.
    known: Mutex<Vec<Known>>,
    /// Prechecks that passed, with their machines: a run may stand still after one and go on later.
    prechecked: Mutex<Vec<(u32, Prechecked)>>,
    /// Whether somebody was told that it is confirmed.
    finished: AtomicBool,
}

#[derive(Clone)]
struct Known {
    activation: u32,
    id: String,
    token: String,
}

impl Code {
    /// Whether a precheck of this machine has passed.
    fn is_prechecked(&self, machine: u32) -> bool {
        self.prechecked.lock().unwrap().iter().any(|(of, _)| *of == machine)
    }
}

/// A precheck's token, and between which instants it was made.
#[derive(Clone)]
struct Prechecked {
    token: String,
    at: (u64, u64),
}

/// A client: it asks one thing after the other.
pub struct Asker<'a> {
    pub client: u32,
    pub fleet: &'a Fleet,
    pub recorder: &'a Recorder,
    pub chance: Chance,
    wire: Wire,
    /// Whether to wait for every answer as long as installers do.
    pub patient: bool,
}

/// A request to a server, for the recorder.
pub struct Asked {
    pub server: u32,
    pub invoked: u64,
    heard: Heard,
}

impl Asked {
    /// What was answered, as text.
    pub fn text(&self) -> &str {
        if let Heard::Answer(answer) = &self.heard { &answer.text } else { "" }
    }
    /// What a v2 answer says in `data`.
    fn data(&self) -> Value {
        self.json()["data"].take()
    }
    fn json(&self) -> Value {
        serde_json::from_str(self.text()).unwrap_or_default()
    }
}

/// What every request may be answered, whatever it asks; `None` where the answer is about the matter.
pub fn in_general(asked: &Asked) -> Result<(u16, String), Answer> {
    let answer = match &asked.heard {
        Heard::Answer(answer) => answer,
        Heard::Nobody => return Err(Answer::Nothing),
        Heard::Silence => return Err(Answer::Perhaps),
    };
    let code = asked.json()["error"]["code"].as_str().unwrap_or_default().to_owned();
    match (answer.status, code.as_str()) {
        (503, "outcome_unknown") => Err(Answer::Perhaps),
        (503, "overloaded" | "storage_unavailable") | (429, "rate_limit_exceeded") => {
            Err(Answer::Nothing)
        }
        (status, _) => Ok((status, code)),
    }
}

impl<'a> Asker<'a> {
    pub fn new(client: u32, fleet: &'a Fleet, recorder: &'a Recorder, seed: u64) -> Self {
        let chance = Chance::seeded(seed ^ u64::from(client) << 40);
        Self { client, fleet, recorder, chance, wire: Wire::default(), patient: false }
    }

    /// Sends a request to any server. People wait for fifteen seconds, or press a key after one.
    pub fn send(&mut self, request: &Request) -> Asked {
        let server = u32::try_from(self.chance.below(self.fleet.count())).unwrap();
        let invoked = self.recorder.now();
        let hasty = !self.patient && self.chance.below(12) == 0;
        let patience = if hasty { 20 + self.chance.below(1500) } else { 15_000 };
        let (to, patience) = (self.fleet.address(server), Duration::from_millis(patience));
        let weather = &self.fleet.weather;
        let heard = self.wire.send(to, request, patience, weather, &mut self.chance);
        Asked { server, invoked, heard }
    }

    pub fn record(&self, asked: &Asked, call: Call, answer: &Answer) {
        self.recorder.record(self.client, asked.server, asked.invoked, call, answer.clone());
    }

    fn step(&mut self, step: &str, body: &Value) -> Asked {
        self.send(&Request {
            path: format!("/api/v2/slowdns/install/{step}"),
            headers: String::new(),
            body: Some(body.to_string()),
        })
    }

    /// A fresh code; `None` where there was no answer, or a refusal.
    fn issue(&mut self) -> Option<Code> {
        let page = Request { path: "/slowdns".into(), headers: String::new(), body: None };
        let Heard::Answer(page) = self.send(&page).heard else { return None };
        let cookie = page.header("set-cookie").split(';').next().filter(|_| page.status == 200)?;
        let number = self.recorder.new_number("code");
        let asked = self.send(&Request {
            path: "/api/v2/slowdns/code/issue".into(),
            headers: format!("Cookie: {cookie}\r\n"),
            body: Some(String::new()),
        });
        let (answer, text) = match in_general(&asked) {
            Err(answer) => (answer, None),
            Ok((201, _)) => {
                (Answer::Issued, asked.data()["install_code"].as_str().map(str::to_owned))
            }
            Ok((status, code)) => (Answer::Other(format!("{status} {code}")), None),
        };
        self.record(&asked, Call::Issue { code: number }, &answer);
        let machines = 2 + self.chance.below(2);
        Some(Code {
            number,
            text: text?,
            machines: (0..machines).map(|_| self.recorder.new_number("machine")).collect(),
            runs: AtomicI64::new(4 + self.chance.below(12).cast_signed()),
            known: Mutex::default(),
            prechecked: Mutex::default(),
            finished: AtomicBool::new(false),
        })
    }

    /// Precheck: the token, where the machine may go on.
    fn precheck(&mut self, code: &Code, machine: u32) -> (Answer, Option<Prechecked>) {
        let asked = self.step("precheck", &Machine::new(machine).precheck_body(&code.text));
        let returned = self.recorder.now();
        let (answer, token) = match in_general(&asked) {
            Err(answer) => (answer, None),
            Ok((200, _)) => {
                (Answer::Ready, asked.data()["precheck_token"].as_str().map(str::to_owned))
            }
            Ok((status, code)) => (refusal(status, &code), None),
        };
        self.record(&asked, Call::Precheck { code: code.number, machine }, &answer);
        let prechecked = token.map(|token| Prechecked { token, at: (asked.invoked, returned) });
        let mut all = code.prechecked.lock().unwrap();
        all.extend(prechecked.clone().map(|prechecked| (machine, prechecked)));
        (answer, prechecked)
    }

    fn activate(
        &mut self,
        code: &Code,
        machine: u32,
        binding: u32,
        prechecked: &Prechecked,
    ) -> (Answer, Option<Known>) {
        let of = Machine::new(machine);
        let of = Machine { hostname: format!("b{binding}.{}", of.hostname), ..of };
        let asked = self.step("activate", &of.activate_body(&code.text, &prechecked.token));
        let (answer, known) = match in_general(&asked) {
            Err(answer) => (answer, None),
            Ok((200, _)) => {
                let data = asked.data();
                let text = |key: &str| data[key].as_str().unwrap_or_default().to_owned();
                let (id, token) = (text("activation_id"), text("install_token"));
                let activation = self.recorder.number_of(&id);
                let grant = Grant { activation, token: self.recorder.number_of(&token) };
                (Answer::Granted(grant), Some(Known { activation, id, token }))
            }
            Ok((status, code)) => (refusal(status, &code), None),
        };
        let prechecked = prechecked.at;
        let call = Call::Activate { code: code.number, machine, binding, prechecked };
        self.record(&asked, call, &answer);
        if let Some(known) = &known {
            code.known.lock().unwrap().push(known.clone());
        }
        (answer, known)
    }

    fn confirm(&mut self, code: &Code, known: &Known) -> Answer {
        let body = json!({"activation_id": known.id, "install_token": known.token});
        let asked = self.step("confirm", &body);
        let answer = match in_general(&asked) {
            Err(answer) => answer,
            Ok((200, _)) if asked.data()["status"] == "confirmed" => Answer::Confirmed,
            Ok((status, code)) => refusal(status, &code),
        };
        let call = Call::Confirm { code: code.number, activation: known.activation };
        self.record(&asked, call, &answer);
        if is_done(&answer) {
            code.finished.store(true, Ordering::SeqCst);
        }
        answer
    }

    fn release(&mut self, code: &Code, known: &Known) -> Answer {
        let body = json!({"activation_id": known.id, "install_token": known.token});
        let asked = self.step("release", &body);
        let answer = match in_general(&asked) {
            Err(answer) => answer,
            Ok((200, _)) => {
                let data = asked.data();
                let restored = data["install_code_restored"] == true;
                match data["status"].as_str() {
                    Some("released") => Answer::Released { restored },
                    Some("confirmed") if !restored => Answer::StaysConfirmed,
                    _ => Answer::Other(data.to_string()),
                }
            }
            Ok((status, code)) => refusal(status, &code),
        };
        let call = Call::Release { code: code.number, activation: known.activation };
        self.record(&asked, call, &answer);
        answer
    }

    /// One person runs the installer, and again where it got no answer.
    fn run(&mut self, code: &Code, sent: &AtomicU32) {
        let machine = code.machines[self.chance.below(code.machines.len() as u64) as usize];
        for _ in 0..3 {
            let binding = u32::from(self.chance.below(5) == 0);
            match self.begin(code, machine, binding, sent) {
                Some(Some(known)) => return self.end(code, &known),
                Some(None) => {
                    std::thread::sleep(Duration::from_millis(self.chance.below(200)));
                }
                // Another machine has the code: it may give it up. Or the same is told once more.
                None if self.chance.below(4) > 0 && code.is_prechecked(machine) => {}
                None => return,
            }
        }
    }

    /// A precheck that passed before, where a run goes on with one: nobody tells it meanwhile what
    /// became of the code.
    fn earlier(&mut self, code: &Code, machine: u32) -> Option<Prechecked> {
        let all = code.prechecked.lock().unwrap();
        let of_machine = all.iter().filter(|(of, _)| *of == machine);
        let earlier: Vec<&Prechecked> = of_machine.map(|(_, prechecked)| prechecked).collect();
        let place = self.chance.below(earlier.len().max(1) as u64) as usize;
        let goes_on = !self.patient && self.chance.below(10) > 0;
        earlier.get(place).copied().filter(|_| goes_on).cloned()
    }

    /// Precheck and activate: an activation, `Some(None)` where it is worth another run.
    fn begin(
        &mut self,
        code: &Code,
        machine: u32,
        binding: u32,
        sent: &AtomicU32,
    ) -> Option<Option<Known>> {
        let (answer, prechecked) = match self.earlier(code, machine) {
            Some(earlier) => (Answer::Ready, Some(earlier)),
            None => self.precheck(code, machine),
        };
        let Some(prechecked) = prechecked else {
            return matches!(answer, Answer::Perhaps | Answer::Nothing).then_some(None);
        };
        if self.chance.below(3) == 0 {
            std::thread::sleep(Duration::from_millis(self.chance.below(20)));
        }
        let (answer, known) = self.activate(code, machine, binding, &prechecked);
        if answer != Answer::Nothing {
            sent.fetch_add(1, Ordering::SeqCst);
        }
        match answer {
            Answer::Granted(_) => Some(known),
            Answer::Perhaps | Answer::Nothing => Some(None),
            _ => None,
        }
    }

    /// What becomes of an installation.
    fn end(&mut self, code: &Code, known: &Known) {
        match self.chance.below(10) {
            0..=1 => {
                let lost = self.confirm(code, known) == Answer::Perhaps;
                // The installer's trap releases when all that was lost is the answer.
                if lost && self.chance.below(3) > 0 {
                    self.release(code, known);
                }
            }
            2..=6 => {
                let lost = self.release(code, known) == Answer::Perhaps;
                if lost && self.chance.below(2) == 0 {
                    self.release(code, known);
                }
            }
            // A run that was long taken for dead wakes up.
            7 => {
                let all = code.known.lock().unwrap().clone();
                let old = &all[self.chance.below(all.len() as u64) as usize];
                if self.chance.below(2) == 0 {
                    self.confirm(code, old);
                } else {
                    self.release(code, old);
                }
            }
            // The machine crashes; whoever runs the installer there again goes on with it.
            _ => {}
        }
    }

    /// Brings a code to its end: whichever machine may has to be able to finish. Then nobody else may.
    fn finish(&mut self, code: &Code, sent: &AtomicU32) {
        self.patient = true;
        if code.finished.load(Ordering::SeqCst) {
            return self.look_again(code);
        }
        let begun = Instant::now();
        let mut refused = 0;
        loop {
            match self.finishes(code, sent) {
                Some(true) => return self.look_again(code),
                Some(false) => refused += 1,
                None => {}
            }
            // The checker will call it burnt.
            if refused == REFUSALS || begun.elapsed() > PATIENCE {
                return;
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// Asks for something that only a finished code answers rightly.
    pub fn look_again(&mut self, code: &Code) {
        self.patient = true;
        let known = code.known.lock().unwrap().last().cloned();
        match (self.chance.below(3), known) {
            (0, Some(known)) => drop(self.release(code, &known)),
            (1, Some(known)) => drop(self.confirm(code, &known)),
            _ => {
                let stranger = self.recorder.new_number("machine");
                drop(self.precheck(code, stranger));
            }
        }
    }

    /// Tries to finish with every machine that may; whether one has, `None` where that cannot be said
    /// since not all was answered.
    fn finishes(&mut self, code: &Code, sent: &AtomicU32) -> Option<bool> {
        let known = code.known.lock().unwrap().clone();
        let is_open = |answer: &Answer| matches!(answer, Answer::Perhaps | Answer::Nothing);
        let mut answered = true;
        for known in known.iter().rev() {
            let answer = self.confirm(code, known);
            if is_done(&answer) {
                return Some(true);
            }
            answered &= !is_open(&answer);
        }
        for machine in &code.machines {
            match self.begin(code, *machine, 0, sent) {
                Some(Some(known)) if is_done(&self.confirm(code, &known)) => return Some(true),
                Some(_) => answered = false,
                None => {}
            }
        }
        answered.then_some(false)
    }
}

/// Whether a confirm was answered so because the activation is confirmed.
const fn is_done(answer: &Answer) -> bool {
    matches!(answer, Answer::Confirmed | Answer::TokenUsed)
}

/// A refusal about the matter.
fn refusal(status: u16, code: &str) -> Answer {
    match (status, code) {
        (403, "install_code_used") => Answer::Used,
        (403, "install_code_expired") => Answer::Expired,
        (403, "install_code_max_activations") => Answer::MaxActivations,
        (403, "precheck_token_invalid") => Answer::PrecheckTokenInvalid,
        (403, "token_invalid") => Answer::TokenInvalid,
        (409, "token_used") => Answer::TokenUsed,
        (404, "activation_not_found") => Answer::ActivationNotFound,
        _ => Answer::Other(format!("{status} {code}")),
    }
}

/// Lets clients play while faults happen, and then, with all faults over, brings everything to its end.
pub fn play(plan: &Plan, fleet: &Fleet, recorder: &Recorder, chaos: &mut Chaos<'_>) -> Played {
    let sent = AtomicU32::new(0);
    let over = AtomicBool::new(false);
    let begun = Instant::now();
    // Half as many codes as clients: most of the time several want the same.
    let table: Mutex<Vec<Arc<Code>>> = Mutex::default();
    let all: Mutex<Vec<Arc<Code>>> = Mutex::default();
    let mut agents = Agents::new(Asker::new(plan.clients, fleet, recorder, plan.seed));
    let mut faults = Vec::new();
    std::thread::scope(|scope| {
        for number in 0..plan.clients {
            let (table, all, sent, over) = (&table, &all, &sent, &over);
            scope.spawn(move || {
                let mut asker = Asker::new(number, fleet, recorder, plan.seed);
                let most = u64::try_from(plan.pace.as_millis()).unwrap();
                while !over.load(Ordering::SeqCst) {
                    std::thread::sleep(Duration::from_millis(asker.chance.below(most.max(1))));
                    let code = pick(table, plan.clients as usize / 2, &mut asker.chance);
                    match code {
                        Some(code) => asker.run(&code, sent),
                        None => {
                            let Some(code) = asker.issue().map(Arc::new) else {
                                // Whoever gets no code presses the button again.
                                std::thread::sleep(Duration::from_millis(20));
                                continue;
                            };
                            table.lock().unwrap().push(Arc::clone(&code));
                            all.lock().unwrap().push(Arc::clone(&code));
                            asker.run(&code, sent);
                        }
                    }
                }
            });
        }
        scope.spawn(|| agents.work(&over));
        loop {
            let missing = faults.len() < plan.faults;
            let goes_on = || {
                (missing || sent.load(Ordering::SeqCst) < plan.redeems)
                    && begun.elapsed() < plan.longest
            };
            if !goes_on() {
                break;
            }
            faults.extend(chaos.strike(recorder, &goes_on));
        }
        over.store(true, Ordering::SeqCst);
    });
    fleet.weather.set(0, 0);
    let mut complaints = Vec::new();
    if !fleet.wait_ready(RECOVERY) {
        complaints.push(format!("not ready {RECOVERY:?} after the last fault\n{}", fleet.logs()));
    }
    let codes = all.into_inner().unwrap();
    let share = codes.len().div_ceil(plan.clients as usize).max(1);
    std::thread::scope(|scope| {
        for (number, codes) in (0..).zip(codes.chunks(share)) {
            let sent = &sent;
            scope.spawn(move || {
                let mut asker = Asker::new(number, fleet, recorder, plan.seed ^ 1);
                codes.iter().for_each(|code| asker.finish(code, sent));
            });
        }
    });
    complaints.extend(agents.finish(PATIENCE));
    Played { faults, codes, redeems: sent.into_inner(), complaints }
}

/// One of the codes that are wanted; `None` where it is time for another.
fn pick(table: &Mutex<Vec<Arc<Code>>>, wanted: usize, chance: &mut Chance) -> Option<Arc<Code>> {
    let mut table = table.lock().unwrap();
    if table.len() < wanted.max(1) {
        return None;
    }
    let place = chance.below(table.len() as u64) as usize;
    let code = Arc::clone(&table[place]);
    if code.runs.fetch_sub(1, Ordering::SeqCst) <= 1 {
        table.swap_remove(place);
    }
    Some(code)
}
