//! A proxy before PostgreSQL that stands for the network between a server and its database: it holds back what
//! passes it, by the same time in both directions.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use crate::failure::{Context, Result};

/// What is read at once. A batch of changes fits into it.
const PIECE: usize = 1 << 16;

/// Bytes, and when they go on.
type Held = (Instant, Vec<u8>);

/// Starts a proxy before the socket of a database, which adds `round_trip` to each question and its answer.
/// Returns its address. Its threads end with the program.
pub fn before(socket: &Path, round_trip: Duration) -> Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").context("cannot open the delaying proxy")?;
    let address = listener.local_addr().context("the delaying proxy has no address")?;
    let (socket, each_way) = (PathBuf::from(socket), round_trip / 2);
    thread::spawn(move || {
        for client in listener.incoming().map_while(std::io::Result::ok) {
            // If one of these fails, the connection ends, and the server that has opened it says why.
            let _ = join(client, &socket, each_way);
        }
    });
    Ok(address)
}

fn join(client: TcpStream, socket: &Path, delay: Duration) -> std::io::Result<()> {
    client.set_nodelay(true)?;
    let database = UnixStream::connect(socket)?;
    let (to_client, to_database) = (client.try_clone()?, database.try_clone()?);
    let (asked, questions) = channel();
    let (answered, answers) = channel();
    thread::spawn(move || take_in(client, delay, &asked));
    thread::spawn(move || take_in(database, delay, &answered));
    thread::spawn(move || {
        let end = hand_on(to_database, &questions);
        let _ = end.shutdown(Shutdown::Write);
    });
    thread::spawn(move || {
        let end = hand_on(to_client, &answers);
        let _ = end.shutdown(Shutdown::Write);
    });
    Ok(())
}

/// Reads until the end and says when each piece goes on.
fn take_in(mut from: impl Read, delay: Duration, to: &Sender<Held>) {
    let mut piece = vec![0; PIECE];
    while let Ok(length @ 1..) = from.read(&mut piece) {
        let bytes = piece.get(..length).unwrap_or_default().to_vec();
        if to.send((Instant::now() + delay, bytes)).is_err() {
            return;
        }
    }
}

/// Writes each piece when its time has come. Returns the other end.
fn hand_on<End: Write>(mut to: End, pieces: &Receiver<Held>) -> End {
    for (due, bytes) in pieces {
        thread::sleep(due.saturating_duration_since(Instant::now()));
        if to.write_all(&bytes).is_err() {
            break;
        }
    }
    to
}
