//! From the start of all processes to the table: waits until the mesh is ready, and shows the progress.

use std::{
    collections::{BTreeMap, BTreeSet},
    pin::pin,
    sync::Arc,
    time::Duration,
};

use anyhow::bail;
use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval, sleep},
};

use super::{
    launch::{Mesh, Replica},
    logs::Logs,
    ports::loopback,
    progress::{self, Row, Stage},
    ready, reflect, table,
};
use crate::mesh_file::MeshFile;

/// How long the control plane may take to be ready; without it there is no mesh.
const CONTROL_READY_LIMIT: Duration = Duration::from_secs(15);
/// How long a replica may take to be ready before it is reported as not ready.
const READY_LIMIT: Duration = Duration::from_secs(20);
/// After this time the replicas that are not ready yet are named, unless redrawn lines show them anyway.
const PATIENCE: Duration = Duration::from_secs(3);
/// How often the elapsed time is redrawn.
const REDRAW_INTERVAL: Duration = Duration::from_millis(500);
/// How much news of replicas may wait to be shown; more is left out, as later news replaces it anyway.
const NEWS_QUEUED: usize = 64;

/// The sidecar of the person at the keyboard.
const YOUR_OWN: &str = "your own sidecar";

/// Waits until the mesh is ready, shows the table, and then reports replicas that become ready late. Returns only if
/// there is no mesh.
///
/// # Errors
/// The control plane does not come up.
pub(super) async fn serve(
    file: &MeshFile,
    mesh: &Arc<Mesh>,
    replicas: &[Arc<Replica>],
    logs: &Logs,
    began: Instant,
) -> anyhow::Result<()> {
    let mut progress = Progress::new(replicas, logs, began);
    progress.draw();
    if let Err(reason) = ready::wait(|| loopback(mesh.dashboard), CONTROL_READY_LIMIT).await {
        logs.set_foot(Vec::new());
        logs.release();
        bail!("the control plane is not ready after {CONTROL_READY_LIMIT:?}: {reason}");
    }
    progress.is_ready(0, "the control plane");
    let mut asking = JoinSet::new();
    let mut notes = reflect::start(&mut asking, file, mesh, replicas);
    let unready = wait_for_all(replicas, &mut progress).await;
    let is_up = |service: &str| {
        let is_of_service = |replica: &Replica| replica.service.as_ref().is_some_and(|s| s.name.name() == service);
        replicas.iter().enumerate().any(|(index, replica)| is_of_service(replica) && !unready.contains_key(&index))
    };
    let (first_notes, count) = notes.first(is_up, READY_LIMIT).await;
    logs.set_foot(Vec::new());
    // First the lines that services have printed meanwhile, so that the table comes last.
    logs.release();
    for (index, reason) in &unready {
        logs.say(explain(&replicas[*index], reason, logs));
    }
    logs.show(table::render(file, mesh, replicas, &unready, &first_notes, began.elapsed()));
    let late = unready.keys().map(|index| announce_late(&replicas[*index], logs));
    tokio::join!(futures_util::future::join_all(late), notes.say_later(count, logs));
    std::future::pending().await
}

/// News of a replica that is waited for.
enum News {
    WaitsFor(usize, String),
    Ended(usize, Result<(), String>),
}

/// Waits until all replicas are ready; returns those that are not, with the reason.
async fn wait_for_all(replicas: &[Arc<Replica>], progress: &mut Progress<'_>) -> BTreeMap<usize, String> {
    let (news, mut told) = mpsc::channel(NEWS_QUEUED);
    let mut waiting = JoinSet::new();
    for (index, replica) in replicas.iter().cloned().enumerate() {
        let news = news.clone();
        waiting.spawn(async move {
            let address = || loopback(replica.ports.borrow().metrics);
            let tell = |reason: &str| drop(news.try_send(News::WaitsFor(index, reason.to_owned())));
            let outcome = ready::wait_and_tell(address, READY_LIMIT, tell).await;
            // It fails only if nobody waits any more.
            let _ = news.send(News::Ended(index, outcome)).await;
        });
    }
    drop(news);
    let mut left: BTreeSet<usize> = (0..replicas.len()).collect();
    let mut unready = BTreeMap::new();
    let mut redraw = interval(REDRAW_INTERVAL);
    redraw.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut patience = pin!(sleep(PATIENCE));
    let mut is_patient = true;
    loop {
        tokio::select! {
            news = told.recv() => match news {
                None => return unready,
                Some(News::WaitsFor(index, reason)) => progress.row(index).waits_for = Some(reason),
                Some(News::Ended(index, outcome)) => {
                    left.remove(&index);
                    match outcome {
                        Ok(()) if replicas[index].service.is_none() => progress.is_ready(progress.rows_of[index], YOUR_OWN),
                        Ok(()) => progress.is_ready(progress.rows_of[index], &replicas[index].name),
                        Err(reason) => {
                            let row = progress.row(index);
                            (row.has_failed, row.waits_for) = (true, Some(reason.clone()));
                            unready.insert(index, reason);
                        }
                    }
                }
            },
            _ = redraw.tick() => {}
            () = &mut patience, if is_patient => {
                is_patient = false;
                progress.still_waits_for(left.iter().map(|index| replicas[*index].name.as_str()));
            }
        }
        progress.draw();
    }
}

/// What is shown while the mesh starts: lines that are redrawn, or a line for each event.
struct Progress<'a> {
    logs: &'a Logs,
    began: Instant,
    /// The first one is the control plane's.
    rows: Vec<Row>,
    /// The row of each replica.
    rows_of: Vec<usize>,
}

impl<'a> Progress<'a> {
    fn new(replicas: &[Arc<Replica>], logs: &'a Logs, began: Instant) -> Self {
        let (mut rows, mut rows_of) = (vec![Row::new("control plane", 1)], Vec::new());
        for replica in replicas {
            let name = replica.service.as_ref().map_or(YOUR_OWN, |service| service.name.name());
            match rows.iter().position(|row: &Row| row.name == name) {
                Some(row) => {
                    rows[row].replicas += 1;
                    rows_of.push(row);
                }
                None => {
                    rows_of.push(rows.len());
                    rows.push(Row::new(name, 1));
                }
            }
        }
        Self { logs, began, rows, rows_of }
    }

    fn row(&mut self, replica: usize) -> &mut Row {
        &mut self.rows[self.rows_of[replica]]
    }

    fn is_ready(&mut self, row: usize, name: &str) {
        self.rows[row].ready += 1;
        self.rows[row].waits_for = None;
        if !self.logs.look().is_live {
            self.logs.say(format!("{name} is ready after {:.1?}", self.began.elapsed()));
        }
    }

    fn still_waits_for<'n>(&self, names: impl Iterator<Item = &'n str>) {
        if !self.logs.look().is_live {
            self.logs.say(format!("still waiting for {}", names.collect::<Vec<_>>().join(", ")));
        }
    }

    fn draw(&self) {
        self.logs.set_foot(progress::lines(Stage::Start, &self.rows, self.began.elapsed()));
    }
}

fn explain(replica: &Replica, reason: &str, logs: &Logs) -> String {
    let mut text = format!("{} is NOT READY after {READY_LIMIT:?}: {reason}", replica.name);
    for name in [replica.name.clone(), replica.sidecar_name()] {
        let last = logs.last_lines(&name);
        if !last.is_empty() {
            text.push_str(&format!("\n  the last lines of {name}:\n    {}", last.join("\n    ")));
        }
    }
    text
}

async fn announce_late(replica: &Replica, logs: &Logs) {
    while ready::wait(|| loopback(replica.ports.borrow().metrics), READY_LIMIT).await.is_err() {
        sleep(Duration::from_secs(1)).await;
    }
    logs.say(format!("{} is ready now", replica.name));
}
