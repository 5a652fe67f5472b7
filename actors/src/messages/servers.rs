//! What is asked of the server registry.

use crate::messages::Command;
use iptunnel_domain::Timestamp;
use iptunnel_domain::lookup::KeyedHash;
use iptunnel_domain::server::{Bearer, Server, ServerId};
use std::net::IpAddr;

/// Registers a server, or registers it again. Sent by the HTTP edge, which has checked the token;
/// answered when it is on disk.
pub struct Register {
    /// The id, which follows from the address.
    pub id: ServerId,
    /// The address.
    pub ip: IpAddr,
    /// The host name; may be empty.
    pub hostname: String,
    /// The keyed hash of the token.
    pub token: KeyedHash,
    /// The network the request came from.
    pub from: IpAddr,
    /// When the request came.
    pub now: Timestamp,
}

impl Command for Register {
    type Answer = Server;
}

/// Notes that a server is alive. Sent by the HTTP edge; answered from memory at once.
pub struct CheckIn {
    /// The server.
    pub id: ServerId,
    /// Who says so.
    pub bearer: Bearer,
    /// When the request came.
    pub now: Timestamp,
}

/// What a check-in hears.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CheckedIn {
    /// The server may go on.
    Active,
    /// The server's registration was revoked.
    Revoked,
}

impl Command for CheckIn {
    type Answer = CheckedIn;
}

/// Revokes or restores a server. Sent by the HTTP edge; answered when it is on disk.
#[derive(Clone, Copy)]
pub struct SetRevoked {
    /// The server.
    pub id: ServerId,
    /// Revoked or restored.
    pub revoked: bool,
    /// The network the operator asks from.
    pub from: IpAddr,
    /// When the request came.
    pub now: Timestamp,
}

impl Command for SetRevoked {
    type Answer = ();
}

/// Writes a note on a server. Sent by the HTTP edge; answered when it is on disk.
#[derive(Clone)]
pub struct SetNote {
    /// The server.
    pub id: ServerId,
    /// What to write; empty for no note.
    pub note: String,
    /// The network the operator asks from.
    pub from: IpAddr,
    /// When the request came.
    pub now: Timestamp,
}

impl Command for SetNote {
    type Answer = ();
}
