//! The messages of the server registry and their replies.

use crate::messages::Command;
use iptunnel_domain::Timestamp;
use iptunnel_domain::lookup::KeyedHash;
use iptunnel_domain::server::{Bearer, Server, ServerId};
use std::net::IpAddr;

/// Registers a server, or registers it again. Sent by the HTTP edge, which has checked the token;
/// answered when it is on disk.
pub struct Register {
    /// The id, derived from the address.
    pub id: ServerId,
    /// The address.
    pub ip: IpAddr,
    /// The host name; may be empty.
    pub hostname: String,
    /// The keyed hash of the token.
    pub token: KeyedHash,
    /// The address the request came from.
    pub from: IpAddr,
    /// When the request arrived.
    pub now: Timestamp,
}

impl Command for Register {
    type Answer = Server;
}

/// Notes that a server is alive. Sent by the HTTP edge; answered from memory at once.
pub struct CheckIn {
    /// The server.
    pub id: ServerId,
    /// The bearer of the token that came with it.
    pub bearer: Bearer,
    /// When the request arrived.
    pub now: Timestamp,
}

/// The reply to a check-in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CheckedIn {
    /// The server is registered and not revoked.
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
    /// `true` to revoke, `false` to restore.
    pub revoked: bool,
    /// The address of the operator.
    pub from: IpAddr,
    /// When the request arrived.
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
    /// The text; empty for no note.
    pub note: String,
    /// The address of the operator.
    pub from: IpAddr,
    /// When the request arrived.
    pub now: Timestamp,
}

impl Command for SetNote {
    type Answer = ();
}
