//! Connections on which a test itself writes and reads bytes.

use crate::harness::TestApp;
use socket2::{Domain, Socket, Type};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// The public address of a server.
pub fn address(app: &TestApp) -> SocketAddr {
    app.url.strip_prefix("http://").unwrap().parse().unwrap()
}

/// Opens a connection. A read waits for at most ten seconds.
pub fn connect(app: &TestApp) -> TcpStream {
    let stream = TcpStream::connect(address(app)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

/// Opens a connection to a server from one of this machine's loopback addresses, such as `127.0.0.2`.
pub fn connect_from(source: &str, app: &TestApp) -> TcpStream {
    connect_to(address(app), source)
}

/// Opens a connection to an address from one of this machine's loopback addresses.
pub fn connect_to(to: SocketAddr, source: &str) -> TcpStream {
    let new = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    new.bind(&SocketAddr::new(source.parse().unwrap(), 0).into()).unwrap();
    new.connect(&to.into()).unwrap();
    let stream = TcpStream::from(new);
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    stream
}

/// Reads until the server closes or resets the connection.
pub fn rest(mut stream: TcpStream) -> String {
    let (mut all, mut piece) = (Vec::new(), [0; 4096]);
    while let Ok(length @ 1..) = stream.read(&mut piece) {
        all.extend_from_slice(&piece[..length]);
    }
    String::from_utf8(all).unwrap()
}

/// Sends `head` and `body` unchanged; the server may stop reading before the end.
pub fn raw(app: &TestApp, head: &str, body: &[u8]) -> String {
    let mut stream = connect(app);
    let _ = stream.write_all(format!("{head}\r\nHost: x\r\nConnection: close\r\n\r\n").as_bytes());
    let _ = stream.write_all(body);
    rest(stream)
}

/// Sends these bytes and returns all that comes until the server closes.
pub fn said_to(app: &TestApp, bytes: &[u8]) -> String {
    let mut stream = connect(app);
    let _ = stream.write_all(bytes);
    rest(stream)
}

/// Reads one answer with a `Content-Length`: its head and its body.
pub fn answer(stream: &mut TcpStream) -> (String, String) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap_or_else(|error| {
            panic!("{error} after {:?}", String::from_utf8_lossy(&head));
        });
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).unwrap().to_lowercase();
    let length = head.split("content-length: ").nth(1).and_then(|rest| rest.lines().next());
    let mut body = vec![0; length.unwrap_or("0").parse().unwrap()];
    stream.read_exact(&mut body).unwrap();
    (head, String::from_utf8(body).unwrap())
}

/// The status in a head.
pub fn status(head: &str) -> u16 {
    head.get(9..12).unwrap_or_else(|| panic!("no status: {head:?}")).parse().unwrap()
}
