//! A layer between the actors and a store in which faults are planted.

use crate::planted::{Fault, Planted};
use iptunnel_domain::Timestamp;
use iptunnel_domain::access::AccessToken;
use iptunnel_domain::activation::{Activation, ActivationId, ActivationNumber};
use iptunnel_domain::audit::Head;
use iptunnel_domain::code::{Code, CodeHash, CodeNumber};
use iptunnel_domain::lookup::KeyedHash;
use iptunnel_domain::server::{Server, ServerNumber};
use iptunnel_storage::{
    Attempts, AuditLog, Change, CommitError, Counter, Entry, Epochs, LastNumbers, Listener,
    ReadError, Records, Shared, Store, Verdict, Watermark,
};
use std::sync::{Mutex, PoisonError};

/// A store with planted faults.
pub struct Layer<S> {
    inner: S,
    planted: Planted,
    /// Changes that were answered but not written.
    unwritten: Mutex<Vec<Change>>,
}

impl<S: Store> Layer<S> {
    pub fn new(inner: S, planted: Planted) -> Self {
        Self { inner, planted, unwritten: Mutex::default() }
    }

    /// The store below this layer.
    pub const fn inner(&self) -> &S {
        &self.inner
    }

    /// A server as it is read.
    fn as_read(&self, mut server: Server) -> Server {
        if server.deleted && self.planted.has(Fault::ForgetTickets) {
            (server.token, server.credential_ms) = (None, 0);
        }
        server
    }
}

type Read<T> = Result<T, ReadError>;

impl<S: Store> Store for Layer<S> {
    fn commit(&self, changes: &[Change]) -> Result<Vec<Verdict>, CommitError> {
        if !self.planted.has(Fault::AnswerBeforeSync) || changes.is_empty() {
            return self.inner.commit(changes);
        }
        let mut unwritten = self.unwritten.lock().unwrap_or_else(PoisonError::into_inner);
        let before = std::mem::replace(&mut *unwritten, changes.to_vec());
        if !before.is_empty() {
            self.inner.commit(&before)?;
        }
        Ok(vec![Verdict::Written; changes.len()])
    }
    fn shared(&self) -> Option<&dyn Shared> {
        self.inner.shared()
    }
    fn close(&self) {
        self.inner.close();
    }
    fn follow(&self, listener: Listener) {
        self.inner.follow(listener);
    }
    fn settings(&self) -> Read<Vec<(String, String)>> {
        self.inner.settings()
    }

    fn agreed(&self, what: &str) -> Read<Option<KeyedHash>> {
        self.inner.agreed(what)
    }

    fn agree(&self, what: &str, hash: KeyedHash) -> Read<bool> {
        self.inner.agree(what, hash)
    }
}

impl<S: Store> Epochs for Layer<S> {
    fn watermark(&self) -> Option<Watermark> {
        let mut mark = self.inner.watermark()?;
        if self.planted.has(Fault::MarkAhead) {
            mark.commits += 3;
        }
        Some(mark)
    }
    fn contains(&self, mark: &Watermark) -> Read<bool> {
        self.inner.contains(mark)
    }
    fn begin_epoch(&self, last: &Watermark, why: &str, now: Timestamp) -> Result<u64, CommitError> {
        self.inner.begin_epoch(last, why, now)
    }
}

impl<S: Store> Records for Layer<S> {
    fn frontier(&self) -> Read<LastNumbers> {
        self.inner.frontier()
    }
    fn code(&self, hash: CodeHash) -> Read<Option<Code>> {
        self.inner.code(hash)
    }
    fn activation(&self, id: ActivationId) -> Read<Option<Activation>> {
        self.inner.activation(id)
    }
    fn codes(&self, hashes: &[CodeHash]) -> Read<Vec<Option<Code>>> {
        self.inner.codes(hashes)
    }
    fn activations(&self, ids: &[ActivationId]) -> Read<Vec<Option<Activation>>> {
        self.inner.activations(ids)
    }
    fn server(&self, number: ServerNumber) -> Read<Option<Server>> {
        Ok(self.inner.server(number)?.map(|server| self.as_read(server)))
    }
    fn servers_numbered(&self, numbers: &[ServerNumber]) -> Read<Vec<Option<Server>>> {
        let servers = self.inner.servers_numbered(numbers)?.into_iter();
        Ok(servers.map(|server| server.map(|server| self.as_read(server))).collect())
    }
    fn servers_before(&self, before: Option<ServerNumber>, limit: usize) -> Read<Vec<Server>> {
        self.inner.servers_before(before, limit)
    }
    fn each_server(&self, each: &mut dyn FnMut(Server)) -> Read<()> {
        self.inner.each_server(&mut |mut server| {
            server.revoked &= !self.planted.has(Fault::ForgetRevoked);
            each(server);
        })
    }
    fn access_tokens(&self) -> Read<Vec<AccessToken>> {
        self.inner.access_tokens()
    }
    fn each_counter(&self, each: &mut dyn FnMut(u32, Counter)) -> Read<()> {
        self.inner.each_counter(each)
    }
    fn newest_codes(&self, limit: usize) -> Read<Vec<Code>> {
        self.inner.newest_codes(limit)
    }
    fn newest_activations(&self, limit: usize) -> Read<Vec<Activation>> {
        self.inner.newest_activations(limit)
    }
    fn oldest_codes(&self, after: Option<CodeNumber>, limit: usize) -> Read<Vec<Code>> {
        self.inner.oldest_codes(after, limit)
    }
    fn oldest_activations(
        &self,
        after: Option<ActivationNumber>,
        limit: usize,
    ) -> Read<Vec<Activation>> {
        self.inner.oldest_activations(after, limit)
    }
}

impl<S: Store> AuditLog for Layer<S> {
    fn audit_head(&self) -> Read<Head> {
        self.inner.audit_head()
    }
    fn audit_from(&self, first: u64, each: &mut dyn FnMut(Entry) -> bool) -> Read<()> {
        self.inner.audit_from(first, each)
    }
    fn audit_before(&self, before: u64, each: &mut dyn FnMut(Entry) -> bool) -> Read<()> {
        self.inner.audit_before(before, each)
    }
    fn audit_number_at(&self, at: Timestamp) -> Read<u64> {
        self.inner.audit_number_at(at)
    }
    fn attempts(&self, code: CodeHash) -> Read<Attempts> {
        self.inner.attempts(code)
    }
}
