//! Servers that register and check in, and an operator who revokes some of them.

use super::installer::{Asked, Asker, in_general};
use super::wire::Request;
use crate::harness::Machine;
use iptunnel_checker::{Answer, Call};
use serde_json::{Value, json};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// One client that plays them all.
pub struct Agents<'a> {
    asker: Asker<'a>,
    master: String,
    nodes: Vec<Node>,
}

struct Node {
    number: u32,
    /// Known once a registration was answered.
    id: Option<String>,
    revoked: bool,
}

impl<'a> Agents<'a> {
    pub fn new(asker: Asker<'a>) -> Self {
        let master = asker.fleet.master();
        Self { asker, master, nodes: Vec::new() }
    }

    /// Registers, checks in and revokes until all is over.
    pub fn work(&mut self, over: &AtomicBool) {
        while !over.load(Ordering::SeqCst) {
            let place = self.asker.chance.below(self.nodes.len() as u64 + 1) as usize;
            if place == self.nodes.len() || self.nodes[place].id.is_none() {
                self.register(place);
            } else {
                match self.asker.chance.below(8) {
                    0 => self.register(place),
                    1 => self.revoke(place),
                    _ => drop(self.check_in(place)),
                }
            }
            std::thread::sleep(Duration::from_millis(25));
        }
    }

    /// What is still let in though it was revoked, once all faults are over.
    pub fn finish(&mut self, patience: Duration) -> Vec<String> {
        self.asker.patient = true;
        let mut complaints = Vec::new();
        for place in 0..self.nodes.len() {
            if self.nodes[place].id.is_none() {
                continue;
            }
            self.register(place);
            let wanted = if self.nodes[place].revoked { Answer::Revoked } else { Answer::Alive };
            let begun = Instant::now();
            // Several times, for there are several servers.
            let mut right = 0;
            while right < 6 && begun.elapsed() < patience {
                right = if self.check_in(place) == wanted { right + 1 } else { 0 };
            }
            if right < 6 {
                let number = self.nodes[place].number;
                complaints.push(format!("server {number} does not become {wanted} everywhere"));
            }
        }
        complaints
    }

    fn register(&mut self, place: usize) {
        if place == self.nodes.len() {
            let number = self.asker.recorder.new_number("node");
            self.nodes.push(Node { number, id: None, revoked: false });
        }
        let number = self.nodes[place].number;
        let ip = Machine::new(0x40_0000 + number).public_ip;
        let body = json!({"token": self.master, "ip": ip, "hostname": "a.example.com"});
        let asked = self.post("/register", &body);
        let (answer, said) = read(&asked);
        let answer = match (answer, said["server_id"].as_str()) {
            (Answer::Alive, Some(id)) => {
                self.nodes[place].id = Some(id.to_owned());
                Answer::Registered
            }
            (answer, _) => answer,
        };
        self.asker.record(&asked, Call::Register { node: number }, &answer);
    }

    fn revoke(&mut self, place: usize) {
        let body = json!({"server_id": self.nodes[place].id});
        let asked = self.post("/revoke", &body);
        let answer = read(&asked).0;
        // Unanswered it may come to be at any time: then nothing can be said of it at the end.
        self.nodes[place].revoked |= answer == Answer::Revoked;
        self.asker.record(&asked, Call::Revoke { node: self.nodes[place].number }, &answer);
        if answer == Answer::Perhaps {
            self.nodes.swap_remove(place);
        }
    }

    fn check_in(&mut self, place: usize) -> Answer {
        let asked = self.post("/checkin", &json!({"server_id": self.nodes[place].id}));
        let answer = read(&asked).0;
        self.asker.record(&asked, Call::CheckIn { node: self.nodes[place].number }, &answer);
        answer
    }

    fn post(&mut self, path: &str, body: &Value) -> Asked {
        self.asker.send(&Request {
            path: path.to_owned(),
            headers: format!("Authorization: Bearer {}\r\n", self.master),
            body: Some(body.to_string()),
        })
    }
}

/// What a legacy route answers, and its whole text.
fn read(asked: &Asked) -> (Answer, Value) {
    let text = asked.text();
    let said: Value = serde_json::from_str(text).unwrap_or_default();
    let answer = match in_general(asked) {
        Err(answer) => answer,
        // Legacy failures have no code.
        Ok((503, _)) if text.contains("cannot tell") => Answer::Perhaps,
        Ok((503, _)) => Answer::Nothing,
        Ok((404, _)) => Answer::NotRegistered,
        Ok((_, _)) if said["status"] == "revoked" => Answer::Revoked,
        Ok((403, _)) if said["error"] == "server is revoked" => Answer::Revoked,
        Ok((200, _)) => Answer::Alive,
        Ok((status, _)) => Answer::Other(format!("{status} {text}")),
    };
    (answer, said)
}
