//! Writes down what clients ask and hear: one operation a line, as soon as it is over.

use iptunnel_checker::history::write_line;
use iptunnel_checker::{Answer, Call, Operation};
use std::collections::HashMap;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Instant;

/// A history in the making.
pub struct Recorder {
    begun: Instant,
    path: PathBuf,
    history: Mutex<(File, Vec<Operation>)>,
    /// Ids and tokens, and the numbers that stand for them in the history.
    numbers: Mutex<HashMap<String, u32>>,
    counts: Mutex<HashMap<&'static str, u32>>,
}

impl Recorder {
    pub fn new(path: &Path) -> Self {
        let history = Mutex::new((File::create(path).unwrap(), Vec::new()));
        let path = path.to_owned();
        let (numbers, counts) = (Mutex::default(), Mutex::default());
        Self { begun: Instant::now(), path, history, numbers, counts }
    }

    /// Microseconds since the history began.
    pub fn now(&self) -> u64 {
        self.begun.elapsed().as_micros().try_into().unwrap()
    }

    /// The number that stands for an id or a token.
    pub fn number_of(&self, secret: &str) -> u32 {
        let mut numbers = self.numbers.lock().unwrap();
        let next = u32::try_from(numbers.len()).unwrap() + 1;
        *numbers.entry(secret.to_owned()).or_insert(next)
    }

    /// A number that was not given before to a thing of this kind.
    pub fn new_number(&self, kind: &'static str) -> u32 {
        let mut counts = self.counts.lock().unwrap();
        let count = counts.entry(kind).or_insert(0);
        *count += 1;
        *count
    }

    /// Writes an operation down that ends now.
    pub fn record(&self, client: u32, server: u32, invoked: u64, call: Call, answer: Answer) {
        let mut line = Vec::new();
        let returned = self.now();
        let operation = Operation { client, server, invoked, returned, call, answer };
        write_line(&mut line, &operation).unwrap();
        let mut history = self.history.lock().unwrap();
        history.0.write_all(&line).unwrap();
        history.1.push(operation);
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Everything so far.
    pub fn operations(&self) -> Vec<Operation> {
        self.history.lock().unwrap().1.clone()
    }

    /// Goes on in another file, without what was recorded so far, which it hands out.
    pub fn turn_over(&mut self, path: &Path) -> (PathBuf, Vec<Operation>) {
        let before = std::mem::replace(&mut self.path, path.to_owned());
        let fresh = (File::create(path).unwrap(), Vec::new());
        let history = std::mem::replace(self.history.get_mut().unwrap(), fresh);
        (before, history.1)
    }

    /// Removes the file.
    pub fn forget(self) {
        std::fs::remove_file(&self.path).unwrap();
    }
}
