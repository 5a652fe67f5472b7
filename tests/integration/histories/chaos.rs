//! What goes wrong while clients play: one thing after the other, each healed before the next.

use super::fleet::Fleet;
use super::pair::Pair;
use super::recorder::Recorder;
use crate::process::Chance;
use nix::sys::signal::Signal;
use std::time::{Duration, Instant};

/// A kind of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// A server is killed, and started again.
    KillServer,
    /// A server stands still for up to six seconds.
    PauseServer,
    /// The ways to the servers lose and delay much for a second.
    Storm,
    /// The primary is killed, and started again.
    RestartDatabase,
    /// The primary stands still for up to six seconds.
    PauseDatabase,
    /// The standby stands still for up to six seconds: no commit is confirmed.
    PauseStandby,
    /// The standby is killed, and started again.
    RestartStandby,
    /// The primary is killed and the standby promoted; the old primary is made anew as a standby.
    Promote,
    /// The standby is promoted beside a primary that only stands still, and goes on later.
    PromoteBeside,
    /// The standby is away; the primary restarts and shows what no standby has; it is lost and the
    /// standby promoted.
    PromoteBehind,
    /// As before, but the sessions that wait for the standby are ended.
    EndWaits,
    /// As before, but their waits are cancelled.
    CancelWaits,
}

impl Fault {
    pub const ALL: [Self; 12] = [
        Self::KillServer,
        Self::PauseServer,
        Self::Storm,
        Self::RestartDatabase,
        Self::PauseDatabase,
        Self::PauseStandby,
        Self::RestartStandby,
        Self::Promote,
        Self::PromoteBeside,
        Self::PromoteBehind,
        Self::EndWaits,
        Self::CancelWaits,
    ];

    pub const fn name(self) -> &'static str {
        match self {
            Self::KillServer => "kill-server",
            Self::PauseServer => "pause-server",
            Self::Storm => "storm",
            Self::RestartDatabase => "restart-database",
            Self::PauseDatabase => "pause-database",
            Self::PauseStandby => "pause-standby",
            Self::RestartStandby => "restart-standby",
            Self::Promote => "promote",
            Self::PromoteBeside => "promote-beside",
            Self::PromoteBehind => "promote-behind",
            Self::EndWaits => "end-waits",
            Self::CancelWaits => "cancel-waits",
        }
    }
}

/// A fault that happened, and when; in the history's microseconds.
#[derive(Clone, Copy, Debug)]
pub struct Happened {
    pub fault: Fault,
    pub begun: u64,
    pub healed: u64,
}

/// Whoever breaks things.
pub struct Chaos<'a> {
    chance: Chance,
    fleet: &'a Fleet,
    pair: Option<&'a mut Pair>,
    /// What happens, each as often as the others, in turns of chance.
    kinds: Vec<Fault>,
    /// What is left of the turn.
    turn: Vec<Fault>,
    /// How long nothing goes wrong between two faults, at most.
    calm: Duration,
}

impl<'a> Chaos<'a> {
    pub fn new(
        seed: u64,
        fleet: &'a Fleet,
        pair: Option<&'a mut Pair>,
        kinds: &[Fault],
        calm: Duration,
    ) -> Self {
        let (kinds, turn) = (kinds.to_vec(), Vec::new());
        fleet.weather.set(3, 5);
        Self { chance: Chance::seeded(seed ^ 0xC4A05), fleet, pair, kinds, turn, calm }
    }

    /// Waits a little and lets something go wrong, unless all is over before.
    pub fn strike(&mut self, recorder: &Recorder, goes_on: &impl Fn() -> bool) -> Option<Happened> {
        self.fleet.weather.set(3, 5);
        let most = u64::try_from(self.calm.as_millis()).unwrap();
        let wait = Duration::from_millis(200 + self.chance.below(most.max(1)));
        let begun = Instant::now();
        while begun.elapsed() < wait {
            if !goes_on() {
                return None;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        if self.turn.is_empty() {
            self.turn = self.kinds.clone();
        }
        let place = self.chance.below(self.turn.len() as u64) as usize;
        let fault = self.turn.swap_remove(place);
        let begun = recorder.now();
        self.happens(fault);
        Some(Happened { fault, begun, healed: recorder.now() })
    }

    fn happens(&mut self, fault: Fault) {
        let server = self.chance.below(self.fleet.count());
        let mut some = |most: u64| Duration::from_millis(100 + self.chance.below(most));
        let (short, long) = (some(2500), some(6000));
        // Long enough for servers to find the database again and for people to ask again.
        let shown = Duration::from_secs(2) + some(5000);
        match (fault, &mut self.pair) {
            (Fault::KillServer, _) => self.fleet.kill(server),
            (Fault::PauseServer, _) => self.fleet.pause(server, long),
            (Fault::Storm, _) => {
                self.fleet.weather.set(80, 120);
                std::thread::sleep(Duration::from_secs(1));
            }
            (Fault::RestartDatabase, Some(pair)) => {
                pair.primary().kill();
                std::thread::sleep(short);
                pair.primary().start();
                pair.wait_synchronous();
            }
            (Fault::PauseDatabase, Some(pair)) => {
                pair.primary().signal(Signal::SIGSTOP);
                std::thread::sleep(long);
                pair.primary().signal(Signal::SIGCONT);
                pair.wait_synchronous();
            }
            (Fault::PauseStandby, Some(pair)) => {
                pair.standby().signal(Signal::SIGSTOP);
                std::thread::sleep(long);
                pair.standby().signal(Signal::SIGCONT);
                pair.wait_synchronous();
            }
            (Fault::RestartStandby, Some(pair)) => {
                pair.standby().kill();
                std::thread::sleep(short);
                pair.standby().start();
                pair.wait_synchronous();
            }
            (Fault::Promote, Some(pair)) => pair.promote(),
            (Fault::PromoteBeside, Some(pair)) => pair.promote_beside(long, shown),
            (Fault::PromoteBehind, Some(pair)) => pair.promote_behind(long, shown, None),
            (Fault::EndWaits, Some(pair)) => {
                pair.promote_behind(long, shown, Some("pg_terminate_backend"));
            }
            (Fault::CancelWaits, Some(pair)) => {
                pair.promote_behind(long, shown, Some("pg_cancel_backend"));
            }
            (_, None) => panic!("{fault:?} needs a database of its own"),
        }
        let promoted = [
            Fault::Promote,
            Fault::PromoteBeside,
            Fault::PromoteBehind,
            Fault::EndWaits,
            Fault::CancelWaits,
        ];
        if let Some(pair) = &mut self.pair
            && promoted.contains(&fault)
        {
            // Servers find the new primary while it has no standby, as after any failover.
            std::thread::sleep(Duration::from_millis(500));
            pair.rebuild();
        }
    }
}
