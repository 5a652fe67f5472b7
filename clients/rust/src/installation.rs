//! One installation, from the code to the registered server.

use crate::client::{Activation, Binding, CheckIn, Client, Machine, Payload, Released};
use crate::error::{Error, Step};
use crate::secret::{AgentToken, Code, PrecheckToken};
use crate::state::{Phase, State};
use crate::store::Store;

/// One installation. It keeps its state before each request, so that it can be resumed after a crash, and
/// gives the code back when it is dropped before it was confirmed.
///
/// [`Self::run`] does all steps in their order. Whoever wants to do something between them calls them one by
/// one. A step that is done already is not done again, and one that failed can be repeated.
pub struct Installation<S: Store> {
    client: Client,
    store: S,
    state: State,
    /// Whether to give the code back when this is dropped.
    releases: bool,
}

/// Why [`Installation::run`] failed.
#[derive(Debug, thiserror::Error)]
pub enum RunError<E> {
    /// The conversation with the server, or keeping the state, failed.
    #[error(transparent)]
    Installation(#[from] Error),
    /// The payload failed.
    #[error("the payload failed: {error}; {}", words(.released))]
    Payload {
        /// What it failed with.
        error: E,
        /// What then came of giving the code back.
        released: Result<Released, Error>,
    },
}

fn words(released: &Result<Released, Error>) -> String {
    match released {
        Ok(Released::CodeIsGood) => "the install code can be used again".to_owned(),
        Ok(Released::CodeIsOver) => "the install code has run out; get a new one".to_owned(),
        Ok(Released::NothingHeld) => "the install code is not held by this machine".to_owned(),
        Ok(Released::Confirmed) => "the install code is spent on this machine".to_owned(),
        Err(error) => format!("the install code is not given back yet: {error}"),
    }
}

impl<S: Store> Installation<S> {
    /// Begins an installation, and keeps its state. Nothing is asked of the server yet.
    ///
    /// # Errors
    /// [`Error::Store`], [`Error::NoRandomness`].
    pub fn begin(client: &Client, store: S, code: Code, machine: Machine) -> Result<Self, Error> {
        let agent_token = AgentToken::random(&*client.environment)?;
        let state = State::new(client.product().to_owned(), machine, code, agent_token);
        let mut this = Self { client: client.clone(), store, state, releases: true };
        this.store.save(&this.state).map_err(Error::Store)?;
        Ok(this)
    }

    /// Goes on with an installation whose state was kept.
    ///
    /// # Errors
    /// [`Error::Settings`]: it is one of another product.
    pub fn resume(client: &Client, store: S, state: State) -> Result<Self, Error> {
        if state.product != client.product() {
            let (kept, wanted) = (&state.product, client.product());
            let words = format!("the state is of an installation of {kept:?}, not of {wanted:?}");
            return Err(Error::Settings(words));
        }
        Ok(Self { client: client.clone(), store, state, releases: true })
    }

    /// Returns where it stands.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Does all steps in their order: precheck, activate, payload, confirm, register. `run` gets the payload
    /// (None if the server has none) and installs it; it may be called again after a crash, until it has
    /// succeeded once. Returns the server's id.
    ///
    /// # Errors
    /// If the payload fails the code is given back. After another error the caller decides: to drop this
    /// gives the code back, to [`suspend`](Self::suspend) it lets a later call go on.
    pub fn run<E>(
        &mut self,
        binding: &Binding,
        run: impl FnOnce(&Binding, Option<&Payload>) -> Result<(), E>,
    ) -> Result<String, RunError<E>> {
        self.activate(binding)?;
        if !self.state.payload_ran && self.state.server_id().is_none() {
            let payload = self.payload()?;
            // It was given the binding that the server knows.
            let bound = self.state.binding.clone().unwrap_or_else(|| binding.clone());
            if let Err(error) = run(&bound, payload.as_ref()) {
                return Err(RunError::Payload { error, released: self.give_back() });
            }
            self.keep(|state| state.payload_ran = true)?;
        }
        self.confirm()?;
        Ok(self.register()?)
    }

    /// Checks the code for this machine, unless that was done. It changes nothing, and can come before host
    /// name and address are known.
    ///
    /// # Errors
    /// As [`Client::precheck`].
    pub fn precheck(&mut self) -> Result<(), Error> {
        if self.state.is_before_confirm() {
            self.checked()?;
        }
        Ok(())
    }

    fn checked(&mut self) -> Result<PrecheckToken, Error> {
        if let Some(token) = &self.state.precheck_token {
            return Ok(token.clone());
        }
        let token = self.client.precheck(&self.state.code, &self.state.machine)?;
        self.keep(|state| state.precheck_token = Some(token.clone()))?;
        Ok(token)
    }

    /// Makes the server consume the code for this machine and this binding. If the machine holds an
    /// activation, the server is asked whether that is still so; one with another binding is released first.
    /// Once a confirm was sent nothing is asked, and the binding stays as it was.
    ///
    /// # Errors
    /// As [`Client::activate`].
    pub fn activate(&mut self, binding: &Binding) -> Result<(), Error> {
        let is_other = self.state.binding.as_ref().is_some_and(|bound| bound != binding);
        if matches!(self.state.phase, Phase::Releasing(_))
            || (is_other && self.state.is_before_confirm())
        {
            self.give_back()?;
        }
        if !self.state.is_before_confirm() {
            return Ok(());
        }
        let activation = self.ask_to_activate(binding)?;
        self.keep(|state| {
            // What ran was told of another activation, which was given up.
            state.payload_ran &= state.phase == Phase::Open(activation.clone());
            state.phase = Phase::Open(activation);
        })
    }

    fn ask_to_activate(&mut self, binding: &Binding) -> Result<Activation, Error> {
        let asked = match self.ask_with_a_token(binding) {
            // It is good for a quarter of an hour, and may be from before a crash.
            Err(error) if error.is_refusal("precheck_token_invalid") => {
                self.keep(|state| state.precheck_token = None)?;
                self.ask_with_a_token(binding)
            }
            asked => asked,
        };
        if asked.as_ref().is_err_and(says_that_nothing_is_held) {
            self.note(State::let_go);
        }
        asked
    }

    fn ask_with_a_token(&mut self, binding: &Binding) -> Result<Activation, Error> {
        let token = self.checked()?;
        let is_first = self.state.phase == Phase::Ready;
        self.keep(|state| {
            state.binding = Some(binding.clone());
            if is_first {
                state.phase = Phase::Activating;
            }
        })?;
        let asked = self.client.activate(&self.state.code, &self.state.machine, binding, &token);
        if is_first && matches!(asked, Err(Error::Refused { tries: 1, .. })) {
            self.note(|state| state.phase = Phase::Ready);
        }
        asked
    }

    /// Fetches what is to be installed. None if the server has nothing for this product.
    ///
    /// # Errors
    /// As [`Client::payload`]; [`Error::OutOfOrder`] before activate and after register.
    pub fn payload(&self) -> Result<Option<Payload>, Error> {
        match &self.state.phase {
            Phase::Open(held) | Phase::Confirming(held) | Phase::Confirmed(held) => {
                self.client.payload(&held.token)
            }
            _ => Err(Error::OutOfOrder(Step::Payload, "no activation is held")),
        }
    }

    /// Says that the installation works. The code is then spent for good.
    ///
    /// # Errors
    /// As [`Client::confirm`]; [`Error::OutOfOrder`] before activate.
    pub fn confirm(&mut self) -> Result<(), Error> {
        let activation = match &self.state.phase {
            Phase::Confirmed(_) | Phase::Registered { .. } => return Ok(()),
            Phase::Open(held) | Phase::Confirming(held) => held.clone(),
            _ => return Err(Error::OutOfOrder(Step::Confirm, "no activation is held")),
        };
        self.keep(|state| {
            (state.payload_ran, state.phase) = (true, Phase::Confirming(activation.clone()));
        })?;
        match self.client.confirm(&activation) {
            Ok(()) => self.keep(|state| state.phase = Phase::Confirmed(activation)),
            // An earlier confirm, whose answer was lost, may have come in time: a release tells.
            Err(error) if says_that_it_is_too_late(&error) => match self.release_it(&activation)? {
                Released::Confirmed => Ok(()),
                _ => Err(error),
            },
            Err(error) => Err(error),
        }
    }

    /// Registers the server, unless that was done. Returns its id.
    ///
    /// # Errors
    /// As [`Client::register`]; [`Error::OutOfOrder`] before confirm.
    pub fn register(&mut self) -> Result<String, Error> {
        let (activation, binding) = match (&self.state.phase, &self.state.binding) {
            (Phase::Registered { server_id }, _) => return Ok(server_id.clone()),
            (Phase::Confirmed(activation), Some(binding)) => (activation, binding),
            _ => return Err(Error::OutOfOrder(Step::Register, "nothing is confirmed")),
        };
        let server_id =
            self.client.register(&activation.token, binding, &self.state.agent_token)?;
        self.keep(|state| state.phase = Phase::Registered { server_id: server_id.clone() })?;
        Ok(server_id)
    }

    /// Says that the installed server lives.
    ///
    /// # Errors
    /// As [`Client::check_in`]; [`Error::OutOfOrder`] before register.
    pub fn check_in(&self) -> Result<CheckIn, Error> {
        match self.state.server_id() {
            Some(server_id) => self.client.check_in(server_id, &self.state.agent_token),
            None => Err(Error::OutOfOrder(Step::CheckIn, "the server is not registered")),
        }
    }

    /// Gives the installation up and the code back. The caller then removes what was installed: that it is
    /// given up is kept first, so a later program runs the payload again. A server that is registered already
    /// stays installed.
    ///
    /// # Errors
    /// As [`Client::release`]. It is then not known whether the code is good again: resume, and either
    /// release again or install.
    pub fn release(mut self) -> Result<Released, Error> {
        self.releases = false;
        if matches!(self.state.phase, Phase::Confirmed(_)) {
            self.note(|state| state.payload_ran = false);
        }
        self.give_back()
    }

    /// Leaves everything as it is: a later program goes on from the state that was kept.
    pub fn suspend(mut self) {
        self.releases = false;
    }

    /// Gives back whatever is held. A state that cannot be kept is no reason to hold a code.
    fn give_back(&mut self) -> Result<Released, Error> {
        let activation = match &self.state.phase {
            Phase::Ready => return Ok(Released::NothingHeld),
            Phase::Confirmed(_) | Phase::Registered { .. } => return Ok(Released::Confirmed),
            Phase::Open(held) | Phase::Confirming(held) | Phase::Releasing(held) => held.clone(),
            Phase::Activating => {
                let Some(binding) = self.state.binding.clone() else {
                    return Ok(Released::NothingHeld);
                };
                // Only a repeat tells the id of an activation whose answer was lost.
                match self.ask_to_activate(&binding) {
                    Ok(held) => held,
                    Err(_) if self.state.phase == Phase::Ready => return Ok(Released::NothingHeld),
                    Err(error) => return Err(error),
                }
            }
        };
        self.note(|state| {
            (state.payload_ran, state.phase) = (false, Phase::Releasing(activation.clone()));
        });
        self.release_it(&activation)
    }

    fn release_it(&mut self, activation: &Activation) -> Result<Released, Error> {
        let released = self.client.release(activation)?;
        self.note(|state| match released {
            Released::Confirmed => state.phase = Phase::Confirmed(activation.clone()),
            _ => state.let_go(),
        });
        Ok(released)
    }

    /// Changes the state and keeps it. If it cannot be kept it does not change.
    fn keep(&mut self, change: impl FnOnce(&mut State)) -> Result<(), Error> {
        let mut next = self.state.clone();
        change(&mut next);
        if next != self.state {
            self.store.save(&next).map_err(Error::Store)?;
            self.state = next;
        }
        Ok(())
    }

    /// Changes the state, and keeps it if that is possible. For what a later program learns anew: it repeats
    /// the last request, and the server answers.
    fn note(&mut self, change: impl FnOnce(&mut State)) {
        let before = self.state.clone();
        change(&mut self.state);
        if self.state != before {
            let _ = self.store.save(&self.state);
        }
    }
}

/// Whether a refused precheck or activate proves that this machine holds no activation of the code. The server
/// answers the holder of an open one as before, so it refuses nobody else for these reasons. Other refusals,
/// such as the limit of a proxy, prove nothing.
fn says_that_nothing_is_held(error: &Error) -> bool {
    const PROOF: [&str; 7] = [
        "validation_error",
        "invalid_binding",
        "product_mismatch",
        "install_code_not_found",
        "install_code_used",
        "install_code_expired",
        "install_code_max_activations",
    ];
    error.refusal().is_some_and(|refusal| PROOF.contains(&refusal.code.as_str()))
}

/// Whether a refused confirm says that the activation is not open any more.
fn says_that_it_is_too_late(error: &Error) -> bool {
    const LATE: [&str; 3] = ["activation_not_found", "token_invalid", "token_mismatch"];
    error.refusal().is_some_and(|refusal| LATE.contains(&refusal.code.as_str()))
}

impl State {
    fn is_before_confirm(&self) -> bool {
        matches!(self.phase, Phase::Ready | Phase::Activating | Phase::Open(_))
    }

    /// Nothing is held any more.
    fn let_go(&mut self) {
        (self.phase, self.precheck_token, self.payload_ran) = (Phase::Ready, None, false);
    }
}

impl<S: Store> Drop for Installation<S> {
    fn drop(&mut self) {
        if self.releases {
            self.client = self.client.hurried();
            // If it gets no answer, the state says what is left to do.
            let _ = self.give_back();
        }
    }
}
