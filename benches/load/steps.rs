//! The requests of an install and of a server's life, one step each. A step takes the result of the step before
//! it, so steps in the wrong order do not compile.

use std::net::Ipv4Addr;
use std::ops::Range;
use std::sync::Arc;

use iptunnel_domain::activation::ActivationId;

use crate::client::string_field;
use crate::closed_loop::Step;
use crate::requests::RequestWriter;

const ISSUE_PATH: &str = "/api/v2/slowdns/code/issue";
const PRECHECK_PATH: &str = "/api/v2/slowdns/install/precheck";
const ACTIVATE_PATH: &str = "/api/v2/slowdns/install/activate";
const CONFIRM_PATH: &str = "/api/v2/slowdns/install/confirm";
const RELEASE_PATH: &str = "/api/v2/slowdns/install/release";
const INSTALLER_VERSION: &str = "2026.03.31";

/// A machine to install. No two machines are equal.
pub struct Machine {
    id: String,
    ssh_fingerprint: String,
    hostname: String,
    public_ip: String,
}

impl Machine {
    /// All machines, in order.
    pub fn all() -> impl Iterator<Item = Self> {
        Self::numbered(0..u32::MAX)
    }

    /// The machines with these numbers.
    pub fn numbered(numbers: Range<u32>) -> impl Iterator<Item = Self> {
        numbers.map(|number| {
            let (first, second) = (scatter(u64::from(number)), scatter(!u64::from(number)));
            Self {
                id: format!("{first:016x}{second:016x}"),
                ssh_fingerprint: format!("SHA256:{second:016x}{first:016x}{number:011x}"),
                hostname: format!("ns{number}.load.example.com"),
                public_ip: Ipv4Addr::from_bits(0x2d00_0000 + number).to_string(),
            }
        })
    }
}

/// Spreads consecutive numbers over all 64 bits, as the ids of real machines are. No two results are equal (the
/// finalizer of SplitMix64).
pub fn scatter(number: u64) -> u64 {
    let mixed = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

/// Puts `items` into an unrelated order, which is the same each time.
pub fn scatter_order<T>(items: &mut Vec<T>) {
    let mut numbered: Vec<(u64, T)> = (0..).map(scatter).zip(items.drain(..)).collect();
    numbered.sort_unstable_by_key(|(place, _)| *place);
    items.extend(numbered.into_iter().map(|(_, item)| item));
}

/// A code for a machine.
pub struct Issued {
    machine: Machine,
    code: String,
}

impl Issued {
    /// Creates a code that did not come from [`ISSUE`].
    pub fn new(machine: Machine, code: String) -> Self {
        Self { machine, code }
    }
}

/// A code with its precheck token.
pub struct Prechecked {
    machine: Machine,
    code: String,
    precheck_token: String,
}

/// An open activation.
pub struct Activated {
    activation_id: String,
    install_token: String,
}

/// A server to register.
pub struct Registration {
    token: Arc<str>,
    ip: String,
    hostname: String,
}

impl Registration {
    /// The first `count` servers, to be registered with the operator's `token`.
    pub fn all(token: &str, count: usize) -> Vec<Self> {
        Self::numbered(token, 0..count.try_into().unwrap_or(u32::MAX))
    }

    /// The servers with these numbers.
    pub fn numbered(token: &str, numbers: Range<u32>) -> Vec<Self> {
        let token: Arc<str> = token.into();
        numbers
            .map(|number| Self {
                token: Arc::clone(&token),
                ip: Ipv4Addr::from_bits(0x2e00_0000 + number).to_string(),
                hostname: format!("server{number}.load.example.com"),
            })
            .collect()
    }
}

/// An operator's client asks for the ticket of a server. With it instead of the token, the server registers.
pub const TICKET: Step<Registration, Registration> = Step {
    name: "ticket",
    status: 201,
    write: |registration, _, request| {
        request.post_json("/api/v2/install-tickets/issue", &[("ip", &registration.ip)]);
    },
    read: |registration, body| {
        Some(Registration { token: string_field(body, "ticket")?.into(), ..registration })
    },
};

/// The path for a server's check-ins.
#[derive(Clone)]
pub struct CheckInPath(String);

/// A browser asks for a code.
pub const ISSUE: Step<Machine, Issued> = Step {
    name: "issue",
    status: 201,
    write: |_, cookie, request| request.post_empty(ISSUE_PATH, cookie),
    read: |machine, body| {
        Some(Issued { machine, code: string_field(body, "install_code")?.to_owned() })
    },
};

/// The installer sends its code and its machine.
pub const PRECHECK: Step<Issued, Prechecked> = Step {
    name: "precheck",
    status: 200,
    write: write_precheck,
    read: |Issued { machine, code }, body| {
        let precheck_token = string_field(body, "precheck_token")?.to_owned();
        Some(Prechecked { machine, code, precheck_token })
    },
};

/// An installer sends a used code.
pub const PRECHECK_OF_USED: Step<Issued, ()> = Step {
    name: "precheck of a used code",
    status: 403,
    write: write_precheck,
    read: |_, body| (string_field(body, "code")? == "install_code_used").then_some(()),
};

/// An installer sends a code that was never issued.
pub const PRECHECK_OF_UNKNOWN: Step<Issued, ()> = Step {
    name: "precheck of an unknown code",
    status: 404,
    write: write_precheck,
    read: |_, body| (string_field(body, "code")? == "install_code_not_found").then_some(()),
};

fn write_precheck(Issued { machine, code }: &Issued, _: &str, request: &mut RequestWriter) {
    request.post_json(
        PRECHECK_PATH,
        &[
            ("install_code", code),
            ("license_key", code),
            ("machine_id", &machine.id),
            ("ssh_fingerprint", &machine.ssh_fingerprint),
            ("product", "slowdns"),
            ("installer_version", INSTALLER_VERSION),
        ],
    );
}

/// The installer binds the code to a host name and an address. This is the most important durable change.
pub const ACTIVATE: Step<Prechecked, Activated> = Step {
    name: "activate",
    status: 200,
    write: |Prechecked { machine, code, precheck_token }, _, request| {
        request.post_json(
            ACTIVATE_PATH,
            &[
                ("install_code", code),
                ("license_key", code),
                ("precheck_token", precheck_token),
                ("hostname", &machine.hostname),
                ("public_ip", &machine.public_ip),
                ("machine_id", &machine.id),
                ("ssh_fingerprint", &machine.ssh_fingerprint),
                ("product", "slowdns"),
                ("requested_ref", "main"),
                ("installer_version", INSTALLER_VERSION),
            ],
        );
    },
    read: |_, body| {
        Some(Activated {
            activation_id: string_field(body, "activation_id")?.to_owned(),
            install_token: string_field(body, "install_token")?.to_owned(),
        })
    },
};

/// The same with codes in a random order, so that each is in another part of the store.
pub const ACTIVATE_SCATTERED: Step<Prechecked, Activated> =
    Step { name: "activate scattered", ..ACTIVATE };

/// The installer is done.
pub const CONFIRM: Step<Activated, ()> = Step {
    name: "confirm",
    status: 200,
    write: |activated, _, request| {
        request.post_json(
            CONFIRM_PATH,
            &[
                ("activation_id", &activated.activation_id),
                ("install_token", &activated.install_token),
            ],
        );
    },
    read: |_, body| (string_field(body, "status")? == "confirmed").then_some(()),
};

/// The installer gives up and releases its activation.
pub const RELEASE: Step<Activated, ()> = Step {
    name: "release",
    status: 200,
    write: |activated, _, request| {
        request.post_json(
            RELEASE_PATH,
            &[
                ("activation_id", &activated.activation_id),
                ("install_token", &activated.install_token),
            ],
        );
    },
    read: |_, body| (string_field(body, "status")? == "released").then_some(()),
};

/// The name of an activation, without its token.
pub struct Named(String);

impl Named {
    /// Names an activation that did not come from [`ACTIVATE`].
    pub fn new(id: ActivationId) -> Self {
        Self(id.reveal())
    }
}

fn write_named(Named(activation_id): &Named, _: &str, request: &mut RequestWriter) {
    request.post_json(RELEASE_PATH, &[("activation_id", activation_id)]);
}

/// An installer releases an activation that is confirmed already.
pub const RELEASE_OF_CONFIRMED: Step<Named, ()> = Step {
    name: "release of a confirmed activation",
    status: 200,
    write: write_named,
    read: |_, body| (string_field(body, "status")? == "confirmed").then_some(()),
};

/// An installer releases an activation that never was.
pub const RELEASE_OF_UNKNOWN: Step<Named, ()> = Step {
    name: "release of an unknown activation",
    status: 404,
    write: write_named,
    read: |_, body| (string_field(body, "code")? == "activation_not_found").then_some(()),
};

/// A server registers with the operator's token.
pub const REGISTER: Step<Registration, CheckInPath> = Step {
    name: "register",
    status: 200,
    write: |registration, _, request| {
        request.post_json(
            "/register",
            &[
                ("token", &registration.token),
                ("ip", &registration.ip),
                ("hostname", &registration.hostname),
            ],
        );
    },
    read: |_, body| {
        let server_id = string_field(body, "server_id")?;
        Some(CheckInPath(format!("/api/v2/servers/{server_id}/check-in")))
    },
};

/// A registered server checks in.
pub const CHECK_IN: Step<CheckInPath, CheckInPath> = Step {
    name: "check-in",
    status: 200,
    write: |CheckInPath(path), _, request| request.post_json(path, &[]),
    read: |path, body| (string_field(body, "status")? == "ok").then_some(path),
};
