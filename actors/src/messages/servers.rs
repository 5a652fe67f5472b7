//! The messages of the server registry and their replies.

use crate::messages::Command;
use iptunnel_domain::Timestamp;
use iptunnel_domain::server::{Bearer, Credential, Server, ServerId};
use std::net::IpAddr;

/// Registers a server, or registers it again. Sent by the HTTP edge, which has checked the credential;
/// answered when it is on disk.
pub struct Register {
    /// The id of the address.
    pub address_id: ServerId,
    /// The address.
    pub ip: IpAddr,
    /// The host name; may be empty.
    pub hostname: String,
    /// What the machine registers with.
    pub credential: Credential,
    /// The number of servers that the access token may have enrolled; 0 for no bound.
    pub max_servers: u32,
    /// The name of the access token that was shown, or that made the ticket; empty if none.
    pub by: String,
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
#[derive(Clone)]
pub struct SetRevoked {
    /// The server.
    pub id: ServerId,
    /// `true` to revoke, `false` to restore.
    pub revoked: bool,
    /// The name of the operator's access token; empty if it was none.
    pub by: String,
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
    /// The name of the operator's access token; empty if it was none.
    pub by: String,
    /// The address of the operator.
    pub from: IpAddr,
    /// When the request arrived.
    pub now: Timestamp,
}

impl Command for SetNote {
    type Answer = ();
}
