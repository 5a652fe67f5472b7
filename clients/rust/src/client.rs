//! The requests of the API, each repeated until it has an answer or patience ends.

use crate::answer::{self, Data, Outcome};
use crate::error::{Error, Problem, Step};
use crate::secret::{ActivationId, AgentToken, Code, InstallToken, PrecheckToken};
use crate::transport::{Network, Request, Response, Transport};
use crate::{Environment, Patience, System, digest};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use zeroize::Zeroizing;

/// A product on a server, as an installer or an installed server asks for it. Clones share the transport.
///
/// All calls block. An installation asks some ten questions one after the other, so an asynchronous API
/// would only bring a runtime along; a program that has one calls from a thread for blocking work.
///
/// ```
/// use iptunnel_client::{Client, Problem, Request, Response};
/// // A transport of one's own. Usually it is the network.
/// let client = Client::new("https://install.example.com", "slowdns")?.over(
///     |request: &Request, _| -> Result<Response, Problem> {
///         assert_eq!(request.url, "https://install.example.com/api/v2/address");
///         let body = br#"{"data":{"ip":"192.0.2.7"},"meta":{"message":"OK"}}"#.to_vec();
///         Ok(Response { status: 200, headers: vec![], body })
///     },
/// );
/// assert_eq!(client.address()?.to_string(), "192.0.2.7");
/// # Ok::<(), iptunnel_client::Error>(())
/// ```
#[derive(Clone)]
pub struct Client {
    url: String,
    product: String,
    installer: String,
    patience: Patience,
    transport: Arc<dyn Transport>,
    pub(crate) environment: Arc<dyn Environment>,
}

/// Which machine it is. The server keeps both values as keyed hashes, and lets only the same machine go on
/// with an activation: make the id once and keep it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// At most 128 bytes, such as the content of `/etc/machine-id`.
    pub id: String,
    /// At most 255 bytes, such as that of the host key of SSH: `SHA256:...`.
    pub ssh_fingerprint: String,
}

/// Where the machine is reached, which becomes a part of its activation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Binding {
    /// A full host name such as `ns1.example.com`.
    pub hostname: String,
    /// An address that the Internet can reach.
    pub public_ip: IpAddr,
}

/// An activation, as the machine that holds it knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Activation {
    /// Its id.
    pub id: ActivationId,
    /// The token that confirms it, fetches the payload and registers the server.
    pub token: InstallToken,
}

/// What came of a release.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Released {
    /// The code can be used again.
    CodeIsGood,
    /// The activation is over but the code cannot be used again: the release came too late.
    CodeIsOver,
    /// The server knows no such activation, so this machine holds nothing: it was released before.
    NothingHeld,
    /// The installation was confirmed before and stays so. The code is spent.
    Confirmed,
}

/// What a server hands out to be installed: a script for `/bin/sh`. Its checksum was checked.
#[derive(Clone, PartialEq, Eq)]
pub struct Payload {
    /// The script.
    pub script: Vec<u8>,
}

/// The answer to a check-in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CheckIn {
    /// All is well. The next one is due after this time.
    Ok {
        /// The time until the next check-in.
        next: Duration,
    },
    /// The operator has revoked this server: stop.
    Revoked,
}

impl Machine {
    /// Makes a machine with a random id of 32 hexadecimal digits.
    ///
    /// # Errors
    /// [`Error::NoRandomness`].
    pub fn random(
        ssh_fingerprint: impl Into<String>,
        environment: &dyn Environment,
    ) -> Result<Self, Error> {
        let mut bytes = [0; 16];
        environment.random(&mut bytes).map_err(|_| Error::NoRandomness(Step::Precheck))?;
        Ok(Self { id: crate::secret::hex(&bytes), ssh_fingerprint: ssh_fingerprint.into() })
    }
}

impl Client {
    /// Returns a client of the server at `url` (`https://...` or `http://...`, which is for tests and for
    /// networks that one trusts) and the product of this name there.
    ///
    /// # Errors
    /// [`Error::Settings`]: the address or the name cannot be right, or the machine has no certificates to
    /// check the server with.
    pub fn new(url: &str, product: &str) -> Result<Self, Error> {
        let url = url.trim_end_matches('/');
        let host = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://"));
        if host.is_none_or(|host| host.is_empty() || host.contains(['?', '#', '@', ' '])) {
            let words = "is not the address of a server, such as https://install.example.com";
            // It may hold a password: it is not repeated.
            return Err(Error::Settings(format!("what was given {words}")));
        }
        if !is_segment(product) {
            let words = "is not the name of a product, such as slowdns";
            return Err(Error::Settings(format!("{product:?} {words}")));
        }
        Ok(Self {
            url: url.to_owned(),
            product: product.to_owned(),
            installer: concat!("iptunnel-client/", env!("CARGO_PKG_VERSION")).to_owned(),
            patience: Patience::default(),
            transport: Arc::new(Network::new(url)?),
            environment: Arc::new(System::default()),
        })
    }

    /// Returns the name of the product.
    pub fn product(&self) -> &str {
        &self.product
    }

    /// With another patience than [`Patience::default`].
    #[must_use]
    pub fn with_patience(self, patience: Patience) -> Self {
        Self { patience, ..self }
    }

    pub(crate) fn hurried(&self) -> Self {
        self.clone().with_patience(self.patience.shortened())
    }

    /// With the version that the operator sees: the installer's, of at most 64 characters.
    #[must_use]
    pub fn with_installer(self, name_and_version: impl Into<String>) -> Self {
        Self { installer: name_and_version.into(), ..self }
    }

    /// Over another transport than [`Network::new`].
    #[must_use]
    pub fn over(self, transport: impl Transport + 'static) -> Self {
        Self { transport: Arc::new(transport), ..self }
    }

    /// In another environment than [`System`]: for tests.
    #[must_use]
    pub fn within(self, environment: impl Environment + 'static) -> Self {
        Self { environment: Arc::new(environment), ..self }
    }

    /// Returns the address from which the server sees this machine.
    ///
    /// # Errors
    /// As every request: refused, no answer, or an answer that is not what is expected.
    pub fn address(&self) -> Result<IpAddr, Error> {
        let request = self.request("/address", None, None);
        self.ask(Step::Address, &request, |data| data.text("ip")?.parse().map_err(|_| "ip"))
    }

    /// Checks a code for a machine. It changes nothing, and can come before host name and address are
    /// known: it carries an activate for 15 minutes, also beyond the end of the code.
    ///
    /// # Errors
    /// As every request. [`Error::is_refusal`] with `install_code_not_found`, `install_code_used`,
    /// `install_code_expired`, `install_code_max_activations` or `product_mismatch`: another code is needed.
    pub fn precheck(&self, code: &Code, machine: &Machine) -> Result<PrecheckToken, Error> {
        let body = self.identity(code, machine);
        let request = self.install("precheck", &body);
        self.ask(Step::Precheck, &request, |data| {
            data.text("precheck_token").map(PrecheckToken::new)
        })
    }

    /// Consumes the code. The same machine with the same binding gets the same activation again for as long
    /// as that is open, so a repeat is safe. With another binding the machine gets a new activation.
    ///
    /// # Errors
    /// As every request.
    pub fn activate(
        &self,
        code: &Code,
        machine: &Machine,
        binding: &Binding,
        precheck_token: &PrecheckToken,
    ) -> Result<Activation, Error> {
        let mut body = self.identity(code, machine);
        if let Some(fields) = body.as_object_mut() {
            fields.insert("precheck_token".into(), precheck_token.reveal().into());
            fields.insert("hostname".into(), binding.hostname.as_str().into());
            fields.insert("public_ip".into(), binding.public_ip.to_string().into());
        }
        self.ask(Step::Activate, &self.install("activate", &body), |data| {
            let id = ActivationId::new(data.text("activation_id")?);
            Ok(Activation { id, token: InstallToken::new(data.text("install_token")?) })
        })
    }

    /// Fetches what is to be installed. None if the server has nothing for this product.
    ///
    /// # Errors
    /// As every request. A payload whose checksum is wrong is fetched again.
    pub fn payload(&self, token: &InstallToken) -> Result<Option<Payload>, Error> {
        let path = format!("/{}/install/payload", self.product);
        let request = self.request(&path, Some(token.reveal()), None);
        // A server that does not know the route is older than payloads.
        let is_none = |code: &str| matches!(code, "payload_not_found" | "not_found");
        let read = |response: &Response| {
            if response.status != 200 {
                return match answer::read(response) {
                    Outcome::Refused(refusal) if is_none(&refusal.code) => Outcome::Done(None),
                    other => other.then(|_| Outcome::Lacks("payload")),
                };
            }
            match response.header("repr-digest") {
                None => Outcome::Again(Problem::NotThisApi { status: 200 }, None),
                Some(header) if !digest::matches(header, &response.body) => {
                    Outcome::Again(Problem::WrongDigest, None)
                }
                Some(_) => Outcome::Done(Some(Payload { script: response.body.clone() })),
            }
        };
        self.repeat(Step::Payload, &request, read)
    }

    /// Says that the installation works. The code is then spent for good. A repeat is safe.
    ///
    /// # Errors
    /// As every request. `activation_not_found`: it was released. `token_invalid`: it is too late, unless an
    /// earlier confirm whose answer was lost came in time; [`Self::release`] tells.
    pub fn confirm(&self, activation: &Activation) -> Result<(), Error> {
        let request = self.install("confirm", &finish(activation));
        match self.ask(Step::Confirm, &request, |_| Ok(())) {
            // Only this activation's own confirm, whose answer was lost, can have used its token.
            Err(error) if error.is_refusal("token_used") => Ok(()),
            result => result,
        }
    }

    /// Gives the code back, if the installation is not confirmed. A repeat is safe.
    ///
    /// # Errors
    /// As every request.
    pub fn release(&self, activation: &Activation) -> Result<Released, Error> {
        let request = self.install("release", &finish(activation));
        let released = self.ask(Step::Release, &request, |data| {
            Ok(match (data.text("status")?, data.truth("install_code_restored")?) {
                ("confirmed", _) => Released::Confirmed,
                (_, true) => Released::CodeIsGood,
                (_, false) => Released::CodeIsOver,
            })
        });
        match released {
            Err(error) if error.is_refusal("activation_not_found") => Ok(Released::NothingHeld),
            result => result,
        }
    }

    /// Registers the installed server with the install token of its confirmed activation, for the address
    /// that was bound, within an hour of the confirm. Returns the server's id. `agent_token` becomes the
    /// server's credential; a repeat with the same pair of tokens is safe.
    ///
    /// # Errors
    /// As every request. `credential_used`: the install token was used with another agent token.
    pub fn register(
        &self,
        token: &InstallToken,
        binding: &Binding,
        agent_token: &AgentToken,
    ) -> Result<String, Error> {
        let body = json!({
            "token": token.reveal(), "ip": binding.public_ip.to_string(),
            "hostname": binding.hostname, "agent_token": agent_token.reveal(),
        });
        let request = self.request("/servers/register", None, Some(&body));
        self.ask(Step::Register, &request, |data| {
            // It becomes a part of addresses.
            let id = data.text("server_id").ok().filter(|id| is_segment(id));
            id.map(str::to_owned).ok_or("server_id")
        })
    }

    /// Says that the installed server lives.
    ///
    /// # Errors
    /// As every request. `server_not_found` and status 401 are final too: the server was deleted, or
    /// registered anew with another token.
    pub fn check_in(&self, server_id: &str, agent_token: &AgentToken) -> Result<CheckIn, Error> {
        if !is_segment(server_id) {
            return Err(Error::Settings(format!("{server_id:?} is not the id of a server")));
        }
        let path = format!("/servers/{server_id}/check-in");
        let request = self.request(&path, Some(agent_token.reveal()), Some(&json!({})));
        let answer = self.ask(Step::CheckIn, &request, |data| match data.text("status")? {
            "revoked" => Ok(CheckIn::Revoked),
            _ => {
                let next = Duration::from_secs(data.number("next_checkin_seconds")?);
                Ok(CheckIn::Ok { next })
            }
        });
        match answer {
            Err(error) if error.is_refusal("revoked") => Ok(CheckIn::Revoked),
            result => result,
        }
    }

    /// The fields that precheck and activate share.
    fn identity(&self, code: &Code, machine: &Machine) -> Value {
        json!({
            "install_code": code.reveal(), "machine_id": machine.id,
            "ssh_fingerprint": machine.ssh_fingerprint, "product": self.product,
            "installer_version": self.installer,
        })
    }

    fn install(&self, step: &str, body: &Value) -> Request {
        self.request(&format!("/{}/install/{step}", self.product), None, Some(body))
    }

    fn request(&self, path: &str, bearer: Option<&str>, body: Option<&Value>) -> Request {
        Request {
            url: format!("{}/api/v2{path}", self.url),
            bearer: bearer.map(|token| Zeroizing::new(token.to_owned())),
            body: body.map(|body| Zeroizing::new(body.to_string())),
        }
    }

    /// Asks until there is an answer in the envelope, and reads its `data`.
    fn ask<T>(
        &self,
        step: Step,
        request: &Request,
        read: impl Fn(&Data) -> Result<T, &'static str>,
    ) -> Result<T, Error> {
        self.repeat(step, request, |response| {
            let read = |data: Data| read(&data).map_or_else(Outcome::Lacks, Outcome::Done);
            answer::read(response).then(read)
        })
    }

    /// Sends a request until it has an answer or patience ends. All requests of this API can be repeated:
    /// the server answers a repeat as it answered the first, or would have.
    fn repeat<T>(
        &self,
        step: Step,
        request: &Request,
        read: impl Fn(&Response) -> Outcome<T>,
    ) -> Result<T, Error> {
        let (patience, deadline) = (self.patience, self.environment.now() + self.patience.whole);
        let mut tries = 0;
        loop {
            tries += 1;
            let left = deadline.saturating_sub(self.environment.now());
            let sent = self.transport.send(request, patience.per_try.min(left));
            let outcome = sent.map_or_else(|problem| Outcome::Again(problem, None), |r| read(&r));
            let (last, later) = match outcome {
                Outcome::Done(done) => return Ok(done),
                Outcome::Refused(refusal) => return Err(Error::Refused { step, refusal, tries }),
                Outcome::Lacks(field) => return Err(Error::Unexpected { step, field }),
                Outcome::Again(problem, later) => (problem, later),
            };
            let mut chance = [u8::MAX];
            // Without randomness all pauses are as long as they may be.
            let _ = self.environment.random(&mut chance);
            let pause = patience.pause(tries, chance[0], later);
            let left = deadline.saturating_sub(self.environment.now());
            if tries >= patience.tries || pause >= left {
                return Err(Error::NoAnswer { step, tries, last });
            }
            self.environment.sleep(pause);
        }
    }
}

/// The body of confirm and release.
fn finish(activation: &Activation) -> Value {
    json!({"activation_id": activation.id.reveal(), "install_token": activation.token.reveal()})
}

/// Whether a name can stand between two slashes of an address as it is.
fn is_segment(name: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    !name.is_empty() && name.bytes().all(is_plain)
}
