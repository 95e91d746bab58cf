//! Keeps one process running: starts it, reads its output, restarts it when it dies, and stops it when asked to.

use std::{process::ExitStatus, sync::Arc, time::Duration};

use rustix::process::Signal;
use tokio::{
    process::{Child, Command},
    sync::{mpsc, watch},
    time::{Instant, sleep, sleep_until, timeout},
};

use super::{
    backoff::Backoff,
    launch::{Mesh, Replica},
    logs::Logs,
    orders::{Order, Orders},
    ports::loopback,
    process::{self, ProcessId},
    ready,
    run_file::RunFile,
};

/// The reason for a death within this time may be a port that another process has taken.
const EARLY: Duration = Duration::from_secs(3);
/// How long the processes that a dead process left behind may take to end.
const LEFTOVER_GRACE: Duration = Duration::from_secs(2);
/// How long a process may take to end after SIGKILL.
const KILL_GRACE: Duration = Duration::from_secs(2);
/// How long a process waits for the one that it depends on before it is started anyway.
const GATE_LIMIT: Duration = Duration::from_secs(10);
/// How long a sidecar may take to let the calls in its service end, before the service is asked to stop.
const DRAIN_LIMIT: Duration = Duration::from_secs(super::launch::DRAIN_SECONDS);
/// How long a sidecar that is replaced may take to end: its drain and some more.
const REPLACE_LIMIT: Duration = Duration::from_secs(super::launch::DRAIN_SECONDS + 25);
/// Deaths in a row after which the last lines are shown.
const LOUD_AFTER: u32 = 5;

/// The order in which processes are asked to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    /// Nothing stops.
    Run,
    /// The sidecar of the person at the keyboard.
    Keyboard,
    /// The services and their sidecars.
    Services,
    /// The control plane, last: the others tell it that they leave.
    Control,
    /// At once.
    Kill,
}

/// A request to stop.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stop {
    /// Everything up to this phase stops.
    pub(crate) phase: Phase,
    /// A process that has not ended by then is killed.
    pub(crate) kill_at: Option<Instant>,
}

/// What is run.
#[derive(Clone)]
pub(crate) enum Role {
    Control,
    Sidecar(Arc<Replica>),
    App(Arc<Replica>),
}

/// What all supervisors share. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Context {
    pub(crate) mesh: Arc<Mesh>,
    pub(crate) logs: Logs,
    pub(crate) run_file: Arc<RunFile>,
    pub(crate) stop: watch::Receiver<Stop>,
    pub(crate) orders: Orders,
}

enum End {
    Died(std::io::Result<ExitStatus>),
    Asked,
    Moved,
    /// It is to be restarted: after it has ended or, if it is a sidecar, while it still runs.
    Ordered(Order),
}

impl Role {
    /// The name in the logs.
    pub(crate) fn name(&self) -> String {
        match self {
            Self::Control => "control".to_owned(),
            Self::Sidecar(replica) => replica.sidecar_name(),
            Self::App(replica) => replica.name.clone(),
        }
    }

    /// When it stops.
    pub(crate) fn phase(&self) -> Phase {
        match self {
            Self::Control => Phase::Control,
            Self::Sidecar(replica) if replica.service.is_none() => Phase::Keyboard,
            Self::Sidecar(_) | Self::App(_) => Phase::Services,
        }
    }

    fn command(&self, mesh: &Mesh, takes_over: bool) -> anyhow::Result<Command> {
        match self {
            Self::Control => Ok(mesh.control_command()),
            Self::Sidecar(replica) => mesh.sidecar_command(replica, takes_over),
            Self::App(replica) => match &replica.service {
                Some(service) => Ok(mesh.app_command(replica, service)),
                None => anyhow::bail!("{} has no service", replica.name),
            },
        }
    }

    /// A sidecar first needs the control plane, and a service's first call needs its sidecar.
    async fn wait_for_what_it_needs(&self, mesh: &Mesh) {
        match self {
            Self::Control => {}
            // After the limit it is started anyway, and reports itself what is missing.
            Self::Sidecar(_) => drop(ready::wait(|| loopback(mesh.dashboard), GATE_LIMIT).await),
            Self::App(replica) => ready::listening(loopback(replica.agreed().1), GATE_LIMIT).await,
        }
    }

    fn agreed_ports(&self) -> Option<(u16, u16)> {
        match self {
            Self::Control => None,
            Self::Sidecar(replica) | Self::App(replica) => Some(replica.agreed()),
        }
    }
}

/// Runs it until it is asked to stop; when this returns, nothing of it is left.
pub(crate) async fn supervise(role: Role, mut context: Context) {
    let name = role.name();
    let mut orders = context.orders.of(&name);
    let mut backoff = Backoff::default();
    let mut starts = 0_u32;
    while !is_asked(&context.stop, role.phase()) {
        tokio::select! {
            () = role.wait_for_what_it_needs(&context.mesh) => {}
            () = asked(&mut context.stop, role.phase()) => return,
        }
        let agreed = role.agreed_ports();
        let (why, lived) = match start(&role, &name, &context, false) {
            Err(error) => (format!("could not be started: {error:#}"), Duration::ZERO),
            Ok((child, pid)) => {
                if starts > 0 {
                    context.logs.say(format!("{name}: started again (pid {pid})"));
                }
                starts += 1;
                let running = Running::new(&name, child, pid, &context.logs);
                let (why, lived) = keep(&role, running, agreed, &mut orders, &mut context).await;
                forget(&name, &context);
                match why {
                    Some(why) => (why, lived),
                    None if is_asked(&context.stop, role.phase()) => return,
                    None => continue,
                }
            }
        };
        let pause = backoff.after_death(lived);
        report(&name, &why, lived, pause, backoff.deaths(), &context.logs);
        if lived < EARLY
            && let Err(error) = avoid_taken_ports(&role, &context.mesh)
        {
            context.logs.say(format!("{name}: no free port: {error}"));
        }
        tokio::select! {
            () = sleep(pause) => {}
            () = asked(&mut context.stop, role.phase()) => return,
        }
    }
}

/// A process and the tasks that read its output.
struct Running {
    child: Child,
    pid: u32,
    started: Instant,
    readers: Vec<tokio::task::JoinHandle<()>>,
}

impl Running {
    fn new(name: &str, mut child: Child, pid: u32, logs: &Logs) -> Self {
        let readers = follow(name, &mut child, logs);
        Self { child, pid, started: Instant::now(), readers }
    }
}

/// Waits for the end of a process, or of those that replace it. Returns why the last one ended (`None` if it was asked
/// to) and how long it has lived.
async fn keep(
    role: &Role,
    mut running: Running,
    agreed: Option<(u16, u16)>,
    orders: &mut mpsc::Receiver<Order>,
    context: &mut Context,
) -> (Option<String>, Duration) {
    loop {
        let started = running.started;
        let end = wait(role, &mut running.child, agreed, &mut context.stop, orders).await;
        if let End::Ordered(order) = end {
            if order.is_in_place {
                match replace(role, running, order, context).await {
                    Some(new) => running = new,
                    None => return (None, started.elapsed()),
                }
                continue;
            }
            return (stop_for(role, running, order, context).await, started.elapsed());
        }
        return (end_running(role, end, running, context).await, started.elapsed());
    }
}

async fn end_running(role: &Role, end: End, mut running: Running, context: &mut Context) -> Option<String> {
    let why = finish(role, end, &mut running.child, running.pid, &mut context.stop).await;
    for mut reader in running.readers {
        // What left its group may hold the stream open for ever.
        if timeout(KILL_GRACE, &mut reader).await.is_err() {
            reader.abort();
        }
    }
    why
}

/// Ends a process that is to be started again.
async fn stop_for(role: &Role, running: Running, order: Order, context: &mut Context) -> Option<String> {
    let why = end_running(role, End::Moved, running, context).await;
    // If whoever gave the order has gone, the restart goes on at once.
    let _ = order.done.send(Ok(()));
    let _ = order.resume.await;
    why
}

/// Starts a new sidecar that takes over from a running one, and waits until the old one has ended. If the new one
/// fails, the old one goes on. Returns the one that runs, or `None` if both were asked to stop meanwhile and have ended.
async fn replace(role: &Role, mut old: Running, order: Order, context: &mut Context) -> Option<Running> {
    let name = role.name();
    let (child, pid) = match start(role, &name, context, true) {
        Ok(started) => started,
        Err(error) => {
            let _ = order.done.send(Err(format!("{name} could not be started: {error:#}")));
            return Some(old);
        }
    };
    let mut new = Running::new(&name, child, pid, &context.logs);
    tokio::select! {
        _ = old.child.wait() => {}
        status = new.child.wait() => {
            let why = status.map_or_else(|error| error.to_string(), |status| ended(&status));
            let _ = order.done.send(Err(format!("{name}: the new one {why}, and the old one goes on")));
            return Some(old);
        }
        () = asked(&mut context.stop, role.phase()) => {
            let _ = order.done.send(Err(format!("{name} stops")));
            // Whichever of them has the ports lets its calls end.
            let mut context_of_old = context.clone();
            tokio::join!(
                end_running(role, End::Asked, old, &mut context_of_old),
                end_running(role, End::Asked, new, context),
            );
            return None;
        }
        () = sleep(REPLACE_LIMIT) => {
            process::signal_group(old.pid, Signal::KILL);
            let _ = timeout(KILL_GRACE, old.child.wait()).await;
        }
    }
    context.logs.say(format!("{name}: replaced (pid {pid})"));
    let _ = order.done.send(Ok(()));
    Some(new)
}

fn start(role: &Role, name: &str, context: &Context, takes_over: bool) -> anyhow::Result<(Child, u32)> {
    let mut command = role.command(&context.mesh, takes_over)?;
    command
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        // A Ctrl-C at the terminal is for weft only, which stops the others in order.
        .process_group(0)
        .kill_on_drop(true);
    let program = command.as_std().get_program().to_owned();
    let child = command.spawn().map_err(|error| anyhow::anyhow!("{}: {error}", program.to_string_lossy()))?;
    let pid = child.id().ok_or_else(|| anyhow::anyhow!("it ended at once"))?;
    context.run_file.update(|run| {
        run.processes.insert(name.to_owned(), ProcessId::of(pid));
        if let Role::Sidecar(replica) | Role::App(replica) = role {
            run.replicas.insert(replica.name.clone(), *replica.ports.borrow());
        }
    })?;
    Ok((child, pid))
}

fn follow(name: &str, child: &mut Child, logs: &Logs) -> Vec<tokio::task::JoinHandle<()>> {
    let stdout = child.stdout.take().and_then(|stream| logs.follow(name, stream));
    let stderr = child.stderr.take().and_then(|stream| logs.follow(name, stream));
    stdout.into_iter().chain(stderr).collect()
}

async fn wait(
    role: &Role,
    child: &mut Child,
    agreed: Option<(u16, u16)>,
    stop: &mut watch::Receiver<Stop>,
    orders: &mut mpsc::Receiver<Order>,
) -> End {
    tokio::select! {
        Some(order) = orders.recv() => End::Ordered(order),
        status = child.wait() => End::Died(status),
        () = asked(stop, role.phase()) => End::Asked,
        () = moved(role, agreed) => End::Moved,
    }
}

/// Completes when the ports that this process was started with are no longer those of its replica.
async fn moved(role: &Role, agreed: Option<(u16, u16)>) {
    if let Role::Sidecar(replica) | Role::App(replica) = role {
        let mut ports = replica.ports.subscribe();
        let _ = ports.wait_for(|ports| Some((ports.app, ports.outbound)) != agreed).await;
        return;
    }
    std::future::pending().await
}

/// Ends a process and its group. Returns why it ended, `None` if it was asked to.
async fn finish(
    role: &Role,
    end: End,
    child: &mut Child,
    pid: u32,
    stop: &mut watch::Receiver<Stop>,
) -> Option<String> {
    let why = match end {
        End::Died(status) => Some(status.map_or_else(|error| format!("ended: {error}"), |status| ended(&status))),
        End::Asked | End::Moved | End::Ordered(_) => {
            if let Role::App(replica) = role {
                // Its sidecar is asked to stop as well, and lets the calls in it end first.
                tokio::select! {
                    () = ready::drained(|| loopback(replica.ports.borrow().metrics), DRAIN_LIMIT) => {}
                    _ = child.wait() => {}
                    () = kill_time(stop) => {}
                }
            }
            process::signal_group(pid, Signal::TERM);
            tokio::select! {
                _ = child.wait() => {}
                () = kill_time(stop) => {}
                // A restart sets no kill time: the process has as long as for a stop.
                () = sleep(super::STOP_LIMIT) => {}
            }
            None
        }
    };
    if child.try_wait().ok().flatten().is_none() {
        process::signal_group(pid, Signal::KILL);
        let _ = timeout(KILL_GRACE, child.wait()).await;
    }
    let grace = if stop.borrow().phase == Phase::Kill { Duration::ZERO } else { LEFTOVER_GRACE };
    process::end_group(pid, grace).await;
    why
}

fn forget(name: &str, context: &Context) {
    let forgotten = context.run_file.update(|run| {
        run.processes.remove(name);
    });
    if let Err(error) = forgotten {
        context.logs.say(format!("the run file can't be written: {error}"));
    }
}

fn avoid_taken_ports(role: &Role, mesh: &Mesh) -> std::io::Result<()> {
    match role {
        Role::Control => Ok(()),
        Role::Sidecar(replica) => replica.move_if_taken(mesh, true),
        Role::App(replica) => replica.move_if_taken(mesh, false),
    }
}

fn report(name: &str, why: &str, lived: Duration, pause: Duration, deaths: u32, logs: &Logs) {
    logs.say(format!("{name}: {why} after {lived:.1?}; restart in {pause:?}"));
    let last = logs.last_lines(name);
    if deaths == 1 && logs.is_held() && !last.is_empty() {
        // They were not printed yet.
        logs.say(format!("  its last lines:\n    {}", last.join("\n    ")));
    }
    if deaths >= LOUD_AFTER && deaths.is_multiple_of(LOUD_AFTER) {
        let last = if last.is_empty() {
            "it printed nothing".to_owned()
        } else {
            format!("its last lines:\n  {}", last.join("\n  "))
        };
        logs.say(format!("{name}: IT KEEPS FAILING, {deaths} times in a row now; {last}"));
    }
}

fn ended(status: &ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt;
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("ended with exit code {code}"),
        (None, Some(signal)) => format!("was ended by signal {signal}{}", signal_name(signal)),
        (None, None) => format!("ended: {status}"),
    }
}

fn signal_name(signal: i32) -> String {
    let name = match signal {
        1 => "SIGHUP",
        2 => "SIGINT",
        3 => "SIGQUIT",
        4 => "SIGILL",
        6 => "SIGABRT",
        7 => "SIGBUS",
        8 => "SIGFPE",
        9 => "SIGKILL",
        11 => "SIGSEGV",
        13 => "SIGPIPE",
        15 => "SIGTERM",
        _ => return String::new(),
    };
    format!(" ({name})")
}

fn is_asked(stop: &watch::Receiver<Stop>, phase: Phase) -> bool {
    stop.borrow().phase >= phase
}

async fn asked(stop: &mut watch::Receiver<Stop>, phase: Phase) {
    // If the sender is gone, nobody could ask any more: that counts as a request to stop.
    let _ = stop.wait_for(|stop| stop.phase >= phase).await;
}

/// Completes when the time that a process has to stop is over.
async fn kill_time(stop: &mut watch::Receiver<Stop>) {
    loop {
        let Stop { phase, kill_at } = *stop.borrow_and_update();
        if phase == Phase::Kill {
            return;
        }
        tokio::select! {
            () = async { match kill_at { Some(at) => sleep_until(at).await, None => std::future::pending().await } } => return,
            changed = stop.changed() => if changed.is_err() { return },
        }
    }
}

#[cfg(test)]
mod tests;
