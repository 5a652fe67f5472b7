//! Plots: schedules that are too rare by chance. For example, only a request at the right moment shows a
//! decision that is based on a change that is lost later. The scheduler could choose every step of a plot by
//! itself.

use super::{Backend, Kind, World};
use crate::book::Asked;
use crate::coverage::State;
use iptunnel_domain::activation::ActivationId;

/// A plot starts once in this many steps, if the servers and machines for it are there.
const RARE: u64 = 100;

impl World {
    /// Runs a plot, by chance.
    pub(super) fn perhaps_plot(&mut self) {
        if self.healed || !self.chance.one_in(RARE) {
            return;
        }
        let running = self.running();
        let Some(first) = self.chance.pick(&running).copied() else { return };
        let others: Vec<usize> = running.into_iter().filter(|one| *one != first).collect();
        let Some(second) = self.chance.pick(&others).copied() else { return };
        match (self.kind, self.chance.below(2)) {
            (Kind::Shared, 0) => self.show_what_is_lost(first, second),
            (Kind::Asynchronous, 0) => self.lose_a_server_with_its_tail(first, second),
            (Kind::Shared | Kind::Asynchronous, _) => self.overtake(first, second),
            (Kind::Alone, _) => {}
        }
    }

    /// An activation waits for the standby and becomes visible. Another server answers with it. Then the
    /// activation is lost, before or after that answer is confirmed, and the other machine activates.
    fn show_what_is_lost(&mut self, first: usize, second: usize) {
        let Backend::Database(database) = &self.backend else { return };
        let database = database.clone();
        let Some((code, machine)) = self.both_may_activate() else { return };
        self.log(|| "plot: a visible change is lost".into());
        self.coverage.reach(State::Plotted);
        let asked = Asked::Activate { code, machine, host: 0 };
        database.cut_off();
        self.ask_and_wait(first, asked.clone(), true);
        database.restart();
        let is_lost_first = self.chance.one_in(2);
        self.ask_and_wait(second, asked, !is_lost_first);
        database.fail_over();
        self.log(|| "the standby is promoted".into());
        self.wait_for(second, true);
        self.ask_of_the_other(second, code, machine);
    }

    /// A server grants an activation that only it knows, and is lost with the primary. The other machine
    /// sends its request to a server that has lost no commit of its own.
    fn lose_a_server_with_its_tail(&mut self, first: usize, second: usize) {
        let Backend::Database(database) = &self.backend else { return };
        let database = database.clone();
        let Some((code, machine)) = self.both_may_activate() else { return };
        self.log(|| "plot: a server is lost with its tail".into());
        self.coverage.reach(State::Plotted);
        database.catch_up();
        self.ask_and_wait(first, Asked::Activate { code, machine, host: 0 }, true);
        if let Some((id, _)) = self.granted(code, machine)
            && self.chance.one_in(2)
        {
            self.ask_and_wait(first, Asked::Confirm { code, machine, id }, true);
        }
        self.fail_over(&database, Some((first, second)));
        self.ask_of_the_other(second, code, machine);
    }

    /// A server makes decisions that depend on each other while its connection to the store is slow.
    /// Meanwhile another server changes the record on which the first decision depends.
    fn overtake(&mut self, first: usize, second: usize) {
        let of_code = |code: usize| (0..2).map(move |machine| (code, machine));
        let all = (0..self.known.len()).flat_map(of_code);
        let held: Vec<(usize, usize, ActivationId)> = all
            .filter(|(code, machine)| {
                self.has_prechecked(*code, *machine) && self.has_prechecked(*code, 1 - machine)
            })
            .filter_map(|(code, machine)| Some((code, machine, self.granted(code, machine)?.0)))
            .collect();
        let Some((code, machine, id)) = self.chance.pick(&held).copied() else { return };
        self.log(|| "plot: a slow server is overtaken".into());
        self.coverage.reach(State::Plotted);
        let other = 1 - machine;
        self.ask_and_wait(second, Asked::Release { code, machine, id }, false);
        self.ask_and_wait(second, Asked::Activate { code, machine: other, host: 0 }, false);
        self.ask_and_wait(first, Asked::Activate { code, machine, host: 1 }, true);
        if let Some((id, _)) = self.granted(code, machine)
            && self.chance.one_in(2)
        {
            self.ask_and_wait(first, Asked::Confirm { code, machine, id }, true);
        }
        self.wait_for(second, true);
    }

    /// The other machine tries to activate the code.
    fn ask_of_the_other(&mut self, server: usize, code: usize, machine: usize) {
        // The first commit of a server after a promotion is refused.
        for _ in 0..2 {
            self.ask_and_wait(
                server,
                Asked::Activate { code, machine: 1 - machine, host: 0 },
                true,
            );
        }
    }

    /// Sends a request and takes all steps of the server. `commits` says whether it reaches its store.
    fn ask_and_wait(&mut self, server: usize, asked: Asked, commits: bool) {
        if self.sites.get(server).is_some_and(|site| site.running.is_some()) {
            self.send_to(server, asked);
            self.wait_for(server, commits);
        }
    }

    fn wait_for(&mut self, server: usize, commits: bool) {
        let running = self.sites.get_mut(server).and_then(|site| site.running.as_mut());
        if let Some(running) = running {
            running.settle(&mut self.ready, commits);
        }
        self.step += 1;
        self.now += 1;
        self.restart_if_failed(server);
        self.listen();
        self.note_epoch();
    }

    fn granted(&self, code: usize, machine: usize) -> Option<(ActivationId, bool)> {
        let of_machine = self.known.get(code)?.machines.get(machine)?;
        let (id, _) = of_machine.granted?;
        Some((id, of_machine.done)).filter(|(_, done)| !done)
    }

    /// Whether the machine has a token for an activate.
    fn has_prechecked(&self, code: usize, machine: usize) -> bool {
        let of_machine = self.known.get(code).and_then(|known| known.machines.get(machine));
        of_machine.is_some_and(|of_machine| {
            let at = of_machine.prechecked_at.filter(|at| self.is_good(*at));
            at.is_some() && !of_machine.done
        })
    }

    /// Chooses a code that both machines have tokens for and neither holds, and one of the two machines.
    fn both_may_activate(&mut self) -> Option<(usize, usize)> {
        let free = |code: &usize| {
            (0..2).all(|machine| {
                self.has_prechecked(*code, machine) && self.granted(*code, machine).is_none()
            })
        };
        let codes: Vec<usize> = (0..self.known.len()).filter(free).collect();
        let code = self.chance.pick(&codes).copied()?;
        Some((code, self.chance.below(2)))
    }
}
