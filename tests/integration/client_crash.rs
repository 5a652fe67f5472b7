//! The client crate, while the server's process is killed at each request and started again.

use crate::client::{Fate, STEPS, fates, patience};
use crate::harness::{Machine, PATIENCE};
use crate::process::Process;
use iptunnel_client::{
    CheckIn, Client, Code, Installation, Network, Problem, Request, Response, State, Transport,
};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// An address that the transport replaces: the server has another port after each start.
const NAME: &str = "http://install.example.com";

#[test]
fn a_server_that_is_killed_at_any_request_comes_back_and_the_installation_ends() {
    let server = Arc::new(Mutex::new(Process::start(&[])));
    for (number, (step, fate)) in (1..).zip(fates()) {
        let (process, asked) = (server.clone(), AtomicUsize::new(0));
        let network = move |request: &Request, _: Duration| -> Result<Response, Problem> {
            let mut process = process.lock().unwrap();
            let is_chosen = asked.fetch_add(1, Ordering::SeqCst) == step;
            let url = request.url.replace(NAME, &process.api.url);
            let send = || {
                let network = Network::direct(&url).unwrap();
                network.send(&Request { url: url.clone(), ..request.clone() }, PATIENCE)
            };
            if !is_chosen {
                return send();
            }
            let answer = (fate == Fate::AnswerLost).then(send);
            process.kill();
            *process = process.again();
            assert!(answer.is_none_or(|answer| answer.is_ok()));
            Err(Problem::Network("the server was killed".to_owned()))
        };
        let client = Client::new(NAME, "slowdns").unwrap().with_patience(patience()).over(network);
        let (code, machine) = (server.lock().unwrap().api.issue(), Machine::new(number));
        let store = |_: &State| Ok(());
        let installation = Installation::begin(&client, store, Code::new(code), machine.identity());
        let mut installation = installation.unwrap();
        let note = format!("{} {fate:?}", STEPS[step]);
        let ran = installation.run(&machine.binding(), |_, _| Ok::<(), String>(()));
        ran.unwrap_or_else(|error| panic!("{note}: {error}"));
        assert!(matches!(installation.check_in(), Ok(CheckIn::Ok { .. })), "{note}");
    }
    let server = server.lock().unwrap();
    let status = server.api.client.get(format!("{}/status?limit=1", server.api.url));
    let status = crate::harness::send(status.bearer_auth(&server.api.master));
    assert_eq!(status.json()["count"], 12, "one server for each installation");
}
