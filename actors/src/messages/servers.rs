//! The messages of the server registry and their replies.

use crate::messages::Command;
use iptunnel_domain::Timestamp;
use iptunnel_domain::access::IsGood;
use iptunnel_domain::activation::ActivationId;
use iptunnel_domain::code::CodeHash;
use iptunnel_domain::import::Listed;
use iptunnel_domain::server::{Bearer, Credential, Server, ServerId};
use std::net::IpAddr;
use std::sync::Arc;

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
    /// Says which access tokens keep their servers from other ones.
    pub is_good: Arc<IsGood>,
    /// The code whose activation vouches for the machine, for the code's story.
    pub code: Option<CodeHash>,
    /// The name of the access token that was shown, or that made the ticket; empty if none.
    pub by: String,
    /// The address the request came from.
    pub from: IpAddr,
    /// Whether that is the very address that registers.
    pub from_its_address: bool,
    /// When the request arrived.
    pub now: Timestamp,
}

impl Command for Register {
    type Answer = Server;
}

/// Registers a server with the install token of its confirmed activation. Sent by the HTTP edge, which has
/// verified the token, to the activation actor, which forwards the registration if it allows it.
pub struct RegisterInstalled {
    /// The activation that the token names.
    pub activation: ActivationId,
    /// The registration. The activation actor says who vouches for it, and when it was confirmed.
    pub register: Register,
}

impl Command for RegisterInstalled {
    type Answer = Server;
}

/// Charges a request for an install ticket. Answered by the rate limiter; the HTTP edge makes the ticket.
pub struct ChargeTicket;

impl Command for ChargeTicket {
    type Answer = ();
}

/// Notes that a server is alive. Sent by the HTTP edge; answered from memory at once.
pub struct CheckIn {
    /// The server.
    pub id: ServerId,
    /// The bearer of the token that came with it.
    pub bearer: Bearer,
    /// The address the request came from.
    pub from: IpAddr,
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

/// Deletes a server. Sent by the HTTP edge; answered when it is on disk. A revoked server stays revoked,
/// and can be restored by its id.
#[derive(Clone)]
pub struct Delete {
    /// The server.
    pub id: ServerId,
    /// The name of the operator's access token; empty if it was none.
    pub by: String,
    /// The address of the operator.
    pub from: IpAddr,
    /// When the request arrived.
    pub now: Timestamp,
}

impl Command for Delete {
    type Answer = ();
}

/// Deletes some of the servers that were not seen for long, those not seen for longest first. Sent by the
/// HTTP edge, again and again until the answer is 0; answered when it is on disk.
#[derive(Clone)]
pub struct DeleteUnseen {
    /// Only servers last seen before this instant.
    pub before: Timestamp,
    /// The name of the operator's access token; empty if it was none.
    pub by: String,
    /// The address of the operator.
    pub from: IpAddr,
    /// When the request arrived.
    pub now: Timestamp,
}

impl DeleteUnseen {
    /// The most servers that one message deletes.
    pub const STEP: usize = 500;
}

impl Command for DeleteUnseen {
    /// The number of servers deleted.
    type Answer = usize;
}

/// Takes over servers from another program's list. Sent by the HTTP edge, which has checked them; answered
/// when they are on disk. A list that is longer than [`Import::STEP`] takes several messages. To import the
/// same list again is safe, and changes nothing.
#[derive(Clone)]
pub struct Import {
    /// The servers, each with the id of its address: at most [`Import::STEP`].
    pub servers: Vec<(ServerId, Listed)>,
    /// Whether to write nothing, and only to say what would be done.
    pub dry_run: bool,
    /// The name of the operator's access token; empty if it was none.
    pub by: String,
    /// The address of the operator.
    pub from: IpAddr,
    /// When the request arrived.
    pub now: Timestamp,
}

impl Import {
    /// The most servers that one message imports.
    pub const STEP: usize = 1000;
}

impl Command for Import {
    type Answer = Imported;
}

/// What an import has done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Imported {
    /// Servers that were not known.
    pub new: usize,
    /// Imported servers that have changed in the list since.
    pub changed: usize,
    /// Servers that are as in the list.
    pub unchanged: usize,
    /// Servers that were changed here since, by an operator or by their registration. They stay as they
    /// are.
    pub changed_here: Vec<ServerId>,
    /// Servers of the list that have another address here. They are left alone.
    pub other_address: Vec<ServerId>,
    /// Servers of the list whose address another server has here. They are not imported.
    pub address_taken: Vec<ServerId>,
    /// Those of the three lists above that are revoked in the list, and not here.
    pub not_revoked: Vec<ServerId>,
    /// New servers that are revoked here and not in the list, since a revoked server was deleted here at
    /// their address.
    pub still_revoked: Vec<ServerId>,
}
