//! Builds the bytes of requests as real callers send them. The buffers are reused.

use crate::client::Connection;

/// A browser session is bound to its `User-Agent`, so all requests name the same one.
const USER_AGENT: &str = "iptunnel-load/1";

/// Writes requests into one buffer.
pub struct RequestWriter {
    host: String,
    /// The caller's address in the requests, for a server that trusts its proxy.
    pub forwarded_for: Option<String>,
    /// The token in the `Authorization` header.
    pub bearer: Option<String>,
    body: Vec<u8>,
    request: Vec<u8>,
}

impl RequestWriter {
    /// Creates a writer of requests with `host` in the `Host` header.
    pub fn new(host: String) -> Self {
        let (body, request) = (Vec::with_capacity(2048), Vec::with_capacity(4096));
        Self { host, forwarded_for: None, bearer: None, body, request }
    }

    /// The last request.
    pub fn bytes(&self) -> &[u8] {
        &self.request
    }

    /// Writes a GET.
    pub fn get(&mut self, path: &str) {
        self.begin("GET", path);
        self.put("\r\n");
    }

    /// Writes a POST without a body and with the cookie of a browser session. A page asks for a code this way.
    pub fn post_empty(&mut self, path: &str, cookie: &str) {
        self.begin("POST", path);
        for part in ["Cookie: ", cookie, "\r\nContent-Length: 0\r\n\r\n"] {
            self.put(part);
        }
    }

    /// Writes a POST with a flat JSON object of strings. The strings need no escaping.
    pub fn post_json(&mut self, path: &str, fields: &[(&str, &str)]) {
        self.body.clear();
        self.body.push(b'{');
        for (position, (key, value)) in fields.iter().enumerate() {
            let opening = if position == 0 { "\"" } else { ",\"" };
            for part in [opening, key, "\":\"", value, "\""] {
                self.body.extend_from_slice(part.as_bytes());
            }
        }
        self.body.push(b'}');
        self.begin("POST", path);
        let length = self.body.len().to_string();
        for part in ["Content-Type: application/json\r\nContent-Length: ", &length, "\r\n\r\n"] {
            self.put(part);
        }
        self.request.extend_from_slice(&self.body);
    }

    fn begin(&mut self, method: &str, path: &str) {
        self.request.clear();
        for part in [method, " ", path, " HTTP/1.1\r\nHost: "] {
            self.request.extend_from_slice(part.as_bytes());
        }
        self.request.extend_from_slice(self.host.as_bytes());
        for part in ["\r\nUser-Agent: ", USER_AGENT, "\r\n"] {
            self.request.extend_from_slice(part.as_bytes());
        }
        if let Some(address) = &self.forwarded_for {
            for part in ["X-Forwarded-For: ", address, "\r\n"] {
                self.request.extend_from_slice(part.as_bytes());
            }
        }
        if let Some(token) = &self.bearer {
            for part in ["Authorization: Bearer ", token, "\r\n"] {
                self.request.extend_from_slice(part.as_bytes());
            }
        }
    }

    fn put(&mut self, text: &str) {
        self.request.extend_from_slice(text.as_bytes());
    }
}

/// One connection with the state of a caller. It is used for all steps with its number of connections, so that
/// no step includes the time to connect.
pub struct Caller {
    /// The connection.
    pub connection: Connection,
    /// The buffers for its requests.
    pub writer: RequestWriter,
    /// `name=value` of its browser session.
    pub cookie: String,
}
