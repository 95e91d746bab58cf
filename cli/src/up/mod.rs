//! `weft up`: the whole mesh of a `mesh.yaml` on this machine.
//!
//! Reads top to bottom: check the file and its ports, [`build`], start everything at once ([`launch`] says what,
//! [`supervisor`] keeps it running), wait until it is ready ([`starting`], which shows the [`progress`] and then the
//! [`table`]), then print the [`logs`] until a signal asks to stop.

mod backoff;
mod build;
mod contracts;
mod launch;
pub(crate) mod leftovers;
mod logs;
pub(crate) mod orders;
mod port_blocks;
mod ports;
pub(crate) mod process;
mod progress;
mod ready;
mod reflect;
pub(crate) mod run_file;
mod starting;
mod supervisor;
mod table;
pub(crate) mod trust;

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, bail};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
    task::JoinSet,
    time::{Instant, timeout},
};
use weft_control::{StateArgs, ca::Ca};

use self::{
    launch::{Mesh, Replica},
    logs::{Logs, Look, Source},
    orders::Orders,
    ports::{Ports, loopback},
    process::ProcessId,
    run_file::{Run, RunFile},
    supervisor::{Context, Phase, Role, Stop, supervise},
};
use crate::{
    console::note,
    mesh_file::{MeshFile, Problems, Programs, Service, check_otlp},
};

/// How long everything may take to stop; what is left then is killed.
const STOP_LIMIT: Duration = Duration::from_secs(12);
/// How much of this is for running calls from the keyboard, before the others are asked to stop.
const KEYBOARD_LIMIT: Duration = Duration::from_secs(4);
/// How long the control plane may take to stop, once all others are gone.
const CONTROL_LIMIT: Duration = Duration::from_secs(3);
/// How long killed processes may take to be gone.
const KILLED_LIMIT: Duration = Duration::from_secs(3);

/// The flags of `weft up`.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Args {
    /// The mesh file
    #[arg(long, short, default_value = "mesh.yaml", value_name = "FILE")]
    pub(crate) file: PathBuf,
    /// Send traces to this OTLP/gRPC receiver too, such as http://127.0.0.1:4317; overrides `traces.otlp`
    #[arg(long, value_name = "URL", value_parser = parse_otlp)]
    pub(crate) otlp: Option<String>,
    #[command(flatten)]
    pub(crate) bounds: Bounds,
    /// Skip the `build` of the mesh file
    #[arg(long)]
    pub(crate) no_build: bool,
    /// Print the output of the build, and all lines of sidecars and control plane, not only warnings and errors
    #[arg(long, short)]
    pub(crate) verbose: bool,
    /// Print a line for each event and redraw nothing, as if the output were not a terminal
    #[arg(long)]
    pub(crate) plain: bool,
}

/// Limits for each sidecar; if one is not given, the sidecar's own default applies.
#[derive(Debug, Clone, Copy, Default, clap::Args)]
pub(crate) struct Bounds {
    /// The longest header list of a call, in bytes: passed to each sidecar as `--header-list-bytes`
    #[arg(long, value_name = "BYTES", value_parser = weft_sidecar::header_list_bytes())]
    pub(crate) header_list_bytes: Option<u32>,
    /// What the connections of each sidecar may hold together, in bytes: passed to each sidecar as `--memory`
    #[arg(long, value_name = "BYTES", value_parser = weft_sidecar::memory())]
    pub(crate) memory: Option<usize>,
}

fn parse_otlp(text: &str) -> Result<String, String> {
    check_otlp(text).map_err(|error| format!("{error}; allowed: an address such as http://127.0.0.1:4317"))
}

/// Runs the mesh until it is asked to stop.
///
/// # Errors
/// The file is not valid, a port is in use, a program is missing, the build failed, or the control plane did not start.
pub(crate) fn run(args: Args) -> anyhow::Result<ExitCode> {
    let look = Look::of_stdout(args.plain, args.verbose);
    let programs = if args.no_build { Programs::MustExist } else { Programs::MayBeBuilt };
    let mut file = MeshFile::load(&args.file, programs)?;
    let state_dir = file.state_dir();
    prepare_state_dir(&state_dir)?;
    let _lock = lock(&state_dir, &file.path)?;
    end_earlier_run(&state_dir)?;
    let problems = ports::check_named(&file);
    if !problems.is_empty() {
        return Err(Problems::new(problems).into());
    }
    if !args.no_build && !file.build.is_empty() {
        build::run(&file, look)?;
        file = MeshFile::load(&args.file, Programs::MustExist)?;
    }
    if args.otlp.is_some() {
        file.otlp = args.otlp;
    }
    clear_sidecars(&state_dir)?;
    let services = launch::services_file(&state_dir);
    fs::write(&services, file.services_file()).with_context(|| format!("{} can't be written", services.display()))?;
    let access = launch::access_file(&state_dir);
    fs::write(&access, file.access_file()).with_context(|| format!("{} can't be written", access.display()))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(run_mesh(&file, &state_dir, args.bounds, look))
}

fn prepare_state_dir(state_dir: &Path) -> anyhow::Result<()> {
    let made = fs::create_dir_all(state_dir)
        .and_then(|()| trust::keep_others_out(state_dir))
        // Keeps the folder out of the user's git repository.
        .and_then(|()| fs::write(state_dir.join(".gitignore"), "*\n"));
    made.with_context(|| format!("{} can't be written", state_dir.display()))
}

/// Removes the endpoints that sidecars of an earlier run have kept: they ended with that run.
fn clear_sidecars(state_dir: &Path) -> anyhow::Result<()> {
    let dir = state_dir.join("sidecars");
    let cleared = match fs::remove_dir_all(&dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => fs::create_dir_all(&dir),
    };
    cleared.with_context(|| format!("{} can't be emptied", dir.display()))
}

/// A lock for as long as this process lives: two `weft up` would use the same ports and the same run file.
fn lock(state_dir: &Path, mesh_file: &Path) -> anyhow::Result<File> {
    let path = state_dir.join("up.lock");
    let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(fs::TryLockError::WouldBlock) => {
            let run = Run::read(state_dir).ok().flatten();
            let pid = run.map_or_else(String::new, |run| format!(" (pid {})", run.up.pid));
            bail!(
                "`weft up` already runs for {}{pid}: stop it with Ctrl-C in its terminal, or with `weft down`",
                mesh_file.display()
            )
        }
        Err(fs::TryLockError::Error(error)) => {
            Err(error).with_context(|| format!("{} can't be locked", path.display()))
        }
    }
}

/// Ends what an earlier run left. As the lock is ours, a run file is there only if that `weft up` was killed.
fn end_earlier_run(state_dir: &Path) -> anyhow::Result<()> {
    match Run::read(state_dir) {
        Ok(Some(run)) => {
            let ended = leftovers::end_processes(&run)?;
            if ended > 0 {
                note(format_args!(
                    "weft: an earlier `weft up` was killed; the {ended} processes that it left were ended"
                ));
            }
            Run::remove(state_dir);
        }
        Ok(None) => {}
        Err(error) => bail!("{error}; end the processes that an earlier `weft up` left, then remove this file"),
    }
    Ok(())
}

async fn run_mesh(file: &MeshFile, state_dir: &Path, bounds: Bounds, look: Look) -> anyhow::Result<ExitCode> {
    let began = Instant::now();
    let mut signals = Signals::new()?;
    let (mesh, outbound) = plan(file, state_dir, bounds)?;
    let mesh = Arc::new(mesh);
    let replicas = Replica::all(file, &mesh, outbound)?;
    let roles = roles(&replicas);
    let source = |role: &Role| Source { name: role.name(), is_own: !matches!(role, Role::App(_)) };
    let logs = Logs::start(roles.iter().map(source).collect(), look);
    let run_file = Arc::new(RunFile::create(state_dir, describe(file, &mesh, &replicas, outbound))?);
    let (stop, stopped) = watch::channel(Stop { phase: Phase::Run, kill_at: None });
    let orders = Orders::default();
    let context =
        Context { mesh: Arc::clone(&mesh), logs: logs.clone(), run_file, stop: stopped, orders: orders.clone() };
    let order_listener = orders::OrderListener::open(state_dir, orders.clone(), replicas.clone())?;

    let mut processes: BTreeMap<Phase, JoinSet<()>> = BTreeMap::new();
    for role in roles {
        processes.entry(role.phase()).or_default().spawn(supervise(role, context.clone()));
    }
    let outcome = tokio::select! {
        outcome = starting::serve(file, &mesh, &replicas, &logs, began) => outcome,
        () = order_listener.serve() => Ok(()),
        () = contracts::follow(file, &logs) => Ok(()),
        name = signals.next() => {
            logs.set_foot(Vec::new());
            logs.release();
            logs.say(format!("{name}: stopping; a second one kills everything at once"));
            Ok(())
        }
    };
    if let Err(error) = &outcome {
        logs.say(format!("{error:#}"));
    }
    let was_killed = tokio::select! {
        () = end(&stop, &mut processes) => false,
        _ = signals.next() => {
            logs.say("killing what is left");
            true
        }
    };
    kill_what_is_left(&stop, &mut processes, &mesh.run_id).await;
    Run::remove(state_dir);
    logs.say(if was_killed { "stopped by force" } else { "stopped; no process is left" });
    logs.flush().await;
    Ok(if outcome.is_err() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn plan(file: &MeshFile, state_dir: &Path, bounds: Bounds) -> anyhow::Result<(Mesh, u16)> {
    let ports = Ports::default();
    // Before any free port is picked, the named ones are reserved.
    let named = [file.ports.outbound, file.ports.dashboard, file.ports.control];
    let of_services = file.services.iter().flat_map(Service::named_ports).map(|(_, port)| port);
    for port in named.into_iter().chain(of_services) {
        ports.reserve(port.number);
    }
    let number = |wanted: u16| if wanted == 0 { ports.pick() } else { Ok(wanted) };
    let [outbound, dashboard, control] = [number(named[0].number)?, number(named[1].number)?, number(named[2].number)?];
    let control_dir = state_dir.join("control");
    let ca = Ca::open_or_create(&control_dir, &file.trust_domain)?;
    // `mesh.yaml` may have another order of services now, and services other contracts.
    weft_control::forget_contracts(&StateArgs { state_dir: control_dir, trust_domain: file.trust_domain.clone() })?;
    let mesh = Mesh {
        weft: std::env::current_exe().context("the path of this program is not known")?,
        folder: file.folder.clone(),
        state_dir: state_dir.to_owned(),
        run_id: format!("{:016x}{:016x}", fastrand::u64(..), fastrand::u64(..)),
        namespace: file.namespace.clone(),
        trust_domain: file.trust_domain.clone(),
        sample: file.sample,
        otlp: std::iter::once(format!("http://{}", loopback(dashboard))).chain(file.otlp.clone()).collect(),
        bounds,
        control,
        dashboard,
        ca,
        ports,
    };
    Ok((mesh, outbound))
}

fn roles(replicas: &[Arc<Replica>]) -> Vec<Role> {
    let of_replica = |replica: &Arc<Replica>| {
        let app = replica.service.is_some().then(|| Role::App(Arc::clone(replica)));
        app.into_iter().chain([Role::Sidecar(Arc::clone(replica))])
    };
    std::iter::once(Role::Control).chain(replicas.iter().flat_map(of_replica)).collect()
}

fn describe(file: &MeshFile, mesh: &Mesh, replicas: &[Arc<Replica>], outbound: u16) -> Run {
    let keyboard = replicas.iter().find(|replica| replica.service.is_none());
    let forwards = keyboard.iter().flat_map(|keyboard| &keyboard.forwards);
    Run {
        run_id: mesh.run_id.clone(),
        mesh_file: std::path::absolute(&file.path).unwrap_or_else(|_| file.path.clone()),
        up: ProcessId::of(std::process::id()),
        outbound_url: format!("http://{}", loopback(outbound)),
        dashboard_url: format!("http://{}", loopback(mesh.dashboard)),
        control_url: format!("https://{}", loopback(mesh.control)),
        otlp: mesh.otlp.clone(),
        replicas: BTreeMap::new(),
        forwards: forwards.map(|(service, port)| (service.name().to_owned(), *port)).collect(),
        processes: BTreeMap::new(),
    }
}

/// Asks everything to stop, in order, and waits for it.
async fn end(stop: &watch::Sender<Stop>, processes: &mut BTreeMap<Phase, JoinSet<()>>) {
    let kill_at = Instant::now() + STOP_LIMIT;
    let ask = |phase, kill_at| {
        stop.send_replace(Stop { phase, kill_at: Some(kill_at) });
    };
    ask(Phase::Keyboard, kill_at);
    // Its last calls may take longer. The others can stop meanwhile, as they let running calls end, too.
    let _ = timeout(KEYBOARD_LIMIT, all_ended(processes.entry(Phase::Keyboard).or_default())).await;
    ask(Phase::Services, kill_at);
    for phase in [Phase::Keyboard, Phase::Services] {
        all_ended(processes.entry(phase).or_default()).await;
    }
    ask(Phase::Control, Instant::now() + CONTROL_LIMIT);
    all_ended(processes.entry(Phase::Control).or_default()).await;
}

async fn all_ended(processes: &mut JoinSet<()>) {
    while let Some(ended) = processes.join_next().await {
        if let Err(error) = ended {
            note(format_args!("weft: a supervisor failed, which is a bug in weft: {error}"));
        }
    }
}

async fn kill_what_is_left(stop: &watch::Sender<Stop>, processes: &mut BTreeMap<Phase, JoinSet<()>>, run_id: &str) {
    stop.send_replace(Stop { phase: Phase::Kill, kill_at: Some(Instant::now()) });
    let ended = async {
        for set in processes.values_mut() {
            all_ended(set).await;
        }
    };
    let _ = timeout(KILLED_LIMIT, ended).await;
    // A process that left its group, as a daemon does, still has the run's id in its environment.
    for process in process::of_run(run_id) {
        process::signal(process.pid, rustix::process::Signal::KILL);
    }
}

/// The signals that ask to stop.
struct Signals {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
    /// `None` if this process was started with SIGHUP ignored, as `nohup` does.
    hang_up: Option<tokio::signal::unix::Signal>,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hang_up: if process::ignores_hang_up() { None } else { Some(signal(SignalKind::hangup())?) },
        })
    }

    async fn next(&mut self) -> &'static str {
        let hang_up = async {
            match &mut self.hang_up {
                Some(signal) => signal.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = self.interrupt.recv() => "Ctrl-C",
            _ = self.terminate.recv() => "SIGTERM",
            _ = hang_up => "SIGHUP",
        }
    }
}
