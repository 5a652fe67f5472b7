//! A line to a server, at an address that stays while the server comes and goes. It loses requests and
//! answers, delays them, and delivers a request long after its sender has given up.

use crate::process::Chance;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// How bad the lines are: of a thousand requests and answers, how many are lost and how many are late.
#[derive(Default)]
pub struct Weather {
    pub lost: AtomicU64,
    pub late: AtomicU64,
}

impl Weather {
    pub fn set(&self, lost: u64, late: u64) {
        self.lost.store(lost, Ordering::SeqCst);
        self.late.store(late, Ordering::SeqCst);
    }
}

/// What the line answers itself where there is nobody at its other end: nothing has happened.
const NOBODY: &[u8] = b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";

pub struct Line {
    /// Where clients find it.
    pub address: SocketAddr,
    /// Where the server is; nowhere while it is away.
    server: Arc<Mutex<Option<SocketAddr>>>,
}

impl Line {
    pub fn new(weather: &Arc<Weather>, seed: u64) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let server: Arc<Mutex<Option<SocketAddr>>> = Arc::default();
        let (to, weather) = (Arc::clone(&server), Arc::clone(weather));
        std::thread::spawn(move || {
            for (number, client) in listener.incoming().enumerate() {
                let Ok(mut client) = client else { return };
                let to = *to.lock().unwrap();
                let Some(server) = to.and_then(|server| TcpStream::connect(server).ok()) else {
                    // The request is read first: unread bytes would make a reset of the answer.
                    std::thread::spawn(move || {
                        let _ = client.read(&mut [0; 65536]);
                        let _ = client.write_all(NOBODY);
                    });
                    continue;
                };
                let _ = (client.set_nodelay(true), server.set_nodelay(true));
                let seed = seed ^ (number as u64) << 8;
                let back = (server.try_clone().unwrap(), client.try_clone().unwrap());
                let weathers = (Arc::clone(&weather), Arc::clone(&weather));
                std::thread::spawn(move || carry(client, server, &weathers.0, seed));
                std::thread::spawn(move || carry(back.0, back.1, &weathers.1, seed ^ 1));
            }
        });
        Self { address, server }
    }

    pub fn leads_to(&self, server: Option<SocketAddr>) {
        *self.server.lock().unwrap() = server;
    }
}

fn carry(mut from: TcpStream, mut to: TcpStream, weather: &Weather, seed: u64) {
    let mut chance = Chance::seeded(seed);
    let mut bytes = [0; 65536];
    while let Ok(count @ 1..) = from.read(&mut bytes) {
        if chance.below(1000) < weather.lost.load(Ordering::SeqCst) {
            // Neither side hears any more of the other.
            let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
            return;
        }
        if chance.below(1000) < weather.late.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(1 + chance.below(2000)));
        }
        if to.write_all(&bytes[..count]).is_err() {
            break;
        }
    }
    let _ = from.shutdown(Shutdown::Read);
    let _ = to.shutdown(Shutdown::Write);
}
