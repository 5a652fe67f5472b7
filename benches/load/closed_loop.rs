//! The closed loop: each connection sends its next request after the answer to the last one. So there are as many
//! requests in flight as connections, until all are answered.

use std::iter::Enumerate;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use std::vec;

use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::failure::{Context, Failure, Result};
use crate::requests::{Caller, RequestWriter};
use crate::statistics::Summary;

/// A step that takes longer fails, because the server seems to hang.
const STEP_LIMIT: Duration = Duration::from_secs(300);

/// One kind of request, with the handling of its answer.
pub struct Step<In, Out> {
    /// Its name in the report.
    pub name: &'static str,
    /// The expected status of its answer.
    pub status: u16,
    /// Writes the request for an input. The second argument is the connection's cookie.
    pub write: fn(&In, &str, &mut RequestWriter),
    /// Reads the input of the next step from the body. `None` if it is missing, which ends the measurement.
    pub read: fn(In, &[u8]) -> Option<Out>,
}

// A derived implementation would also require `Clone` and `Copy` of the inputs.
impl<In, Out> Clone for Step<In, Out> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<In, Out> Copy for Step<In, Out> {}

/// The remaining inputs with their numbers, shared by all connections. A slow connection takes fewer inputs, so
/// all connections are busy until the end.
type Queue<In> = Arc<Mutex<Enumerate<vec::IntoIter<In>>>>;

/// The results of one connection.
struct Share<Out> {
    caller: Caller,
    /// The outputs, each with the number of its input.
    outputs: Vec<(usize, Out)>,
    latencies_micros: Vec<u32>,
}

/// Sends one request for each input over the connections of all callers. The outputs are in the order of their
/// inputs.
pub async fn run<In, Out>(
    step: Step<In, Out>,
    callers: &mut Vec<Caller>,
    inputs: Vec<In>,
) -> Result<(Vec<Out>, Summary)>
where
    In: Send + 'static,
    Out: Send + 'static,
{
    let expected_share = inputs.len() / callers.len().max(1) * 2;
    let queue: Queue<In> = Arc::new(Mutex::new(inputs.into_iter().enumerate()));
    let start = Instant::now();
    let mut tasks = JoinSet::new();
    for caller in callers.drain(..) {
        tasks.spawn(work_off(step, caller, Arc::clone(&queue), expected_share));
    }
    gather(step.name, tasks, callers, start).await
}

/// Repeats one request until `duration` has passed.
pub async fn run_for(
    name: &'static str,
    path: &'static str,
    callers: &mut Vec<Caller>,
    duration: Duration,
) -> Result<Summary> {
    let start = Instant::now();
    let mut tasks = JoinSet::new();
    for caller in callers.drain(..) {
        tasks.spawn(repeat_get(name, path, caller, start + duration));
    }
    let (_, summary) = gather(name, tasks, callers, start).await?;
    Ok(summary)
}

async fn work_off<In, Out>(
    step: Step<In, Out>,
    mut caller: Caller,
    queue: Queue<In>,
    expected_share: usize,
) -> Result<Share<Out>> {
    let mut outputs = Vec::with_capacity(expected_share);
    let mut latencies_micros = Vec::with_capacity(expected_share);
    while let Some((number, input)) = next(&queue) {
        (step.write)(&input, &caller.cookie, &mut caller.writer);
        let sent = Instant::now();
        let answer = caller.connection.exchange(caller.writer.bytes()).await.context(step.name)?;
        latencies_micros.push(micros_since(sent, Instant::now()));
        if answer.status != step.status {
            return Err(answer.unexpected(step.name, step.status));
        }
        let output = (step.read)(input, answer.body);
        let output = output.ok_or_else(|| without_field(step.name, answer.body))?;
        outputs.push((number, output));
    }
    Ok(Share { caller, outputs, latencies_micros })
}

async fn repeat_get(
    name: &'static str,
    path: &'static str,
    mut caller: Caller,
    until: Instant,
) -> Result<Share<()>> {
    caller.writer.get(path);
    let mut latencies_micros = Vec::with_capacity(16 * 1024);
    loop {
        let sent = Instant::now();
        let answer = caller.connection.exchange(caller.writer.bytes()).await.context(name)?;
        let answered = Instant::now();
        if answer.status != 200 {
            return Err(answer.unexpected(name, 200));
        }
        latencies_micros.push(micros_since(sent, answered));
        if answered >= until {
            return Ok(Share { caller, outputs: Vec::new(), latencies_micros });
        }
    }
}

/// Waits for all connections and returns them to `callers`. The first failure ends all of them.
async fn gather<Out: 'static>(
    name: &'static str,
    mut tasks: JoinSet<Result<Share<Out>>>,
    callers: &mut Vec<Caller>,
    start: Instant,
) -> Result<(Vec<Out>, Summary)> {
    let mut outputs = Vec::new();
    let mut latencies_micros = Vec::new();
    let all = async {
        while let Some(joined) = tasks.join_next().await {
            let share = joined.context(name)??;
            callers.push(share.caller);
            outputs.extend(share.outputs);
            latencies_micros.extend(share.latencies_micros);
        }
        Ok::<Duration, Failure>(start.elapsed())
    };
    let elapsed = timeout(STEP_LIMIT, all)
        .await
        .context(format!("{name}: not finished within {} s", STEP_LIMIT.as_secs()))??;
    outputs.sort_unstable_by_key(|(number, _)| *number);
    let outputs = outputs.into_iter().map(|(_, output)| output).collect();
    Ok((outputs, Summary::of(latencies_micros, elapsed)))
}

fn next<In>(queue: &Queue<In>) -> Option<(usize, In)> {
    queue.lock().unwrap_or_else(PoisonError::into_inner).next()
}

fn micros_since(sent: Instant, answered: Instant) -> u32 {
    u32::try_from(answered.duration_since(sent).as_micros()).unwrap_or(u32::MAX)
}

fn without_field(name: &str, body: &[u8]) -> Failure {
    let body = String::from_utf8_lossy(body);
    Failure::new(format!("{name}: the answer lacks an expected field: {body}"))
}
