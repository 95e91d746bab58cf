//! With real processes in real time, as the tests are about what the system does with them.

use std::{net::TcpListener, path::Path};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use weft_control::ca::Ca;

use super::*;
use crate::{
    mesh_file::{MeshFile, Programs},
    up::{
        Bounds,
        logs::{Look, Source},
        ports::Ports,
        run_file::{Run, RunFile},
    },
};

const LIMIT: Duration = Duration::from_secs(60);

/// One service whose program is a shell script, with a listener in the place of its sidecar; or only its sidecar, with a
/// shell script in its place.
struct Supervised {
    dir: tempfile::TempDir,
    run_id: String,
    stop: watch::Sender<Stop>,
    orders: Orders,
    task: tokio::task::JoinHandle<()>,
    _listener: Option<TcpListener>,
}

fn supervised(script: &str) -> Supervised {
    supervise_script("script", script, 1, |replica| {
        let sidecar = TcpListener::bind(loopback(replica.agreed().1)).unwrap();
        (Role::App(replica), Some(sidecar))
    })
}

/// The script stands in for `weft`, of which `sh` is the program and `sidecar` the first argument. `dashboard` is the port
/// of a control plane that is ready.
fn supervised_sidecar(script: &str, dashboard: u16) -> Supervised {
    supervise_script("sidecar", script, dashboard, |replica| (Role::Sidecar(replica), None))
}

fn supervise_script(
    file_name: &str,
    script: &str,
    dashboard: u16,
    role: impl FnOnce(Arc<Replica>) -> (Role, Option<TcpListener>),
) -> Supervised {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join(file_name), script).unwrap();
    std::fs::write(dir.path().join("mesh.yaml"), "services: { users: { run: sh script } }\n").unwrap();
    let file = MeshFile::load(&dir.path().join("mesh.yaml"), Programs::MustExist).unwrap();
    let state_dir = dir.path().join(".weft");
    let run_id = format!("test-{:016x}", fastrand::u64(..));
    let mesh = Arc::new(Mesh {
        weft: "/bin/sh".into(),
        folder: dir.path().to_owned(),
        state_dir: state_dir.clone(),
        run_id: run_id.clone(),
        namespace: file.namespace.clone(),
        trust_domain: file.trust_domain.clone(),
        sample: 1.0,
        otlp: vec!["http://127.0.0.1:1".to_owned()],
        bounds: Bounds::default(),
        control: 1,
        dashboard,
        ca: Ca::open_or_create(&state_dir.join("control"), &file.trust_domain).unwrap(),
        ports: Ports::default(),
    });
    let replica = Arc::clone(&Replica::all(&file, &mesh, 1).unwrap()[0]);
    let run = Run {
        run_id: run_id.clone(),
        mesh_file: file.path.clone(),
        up: ProcessId::of(std::process::id()),
        outbound_url: String::new(),
        dashboard_url: String::new(),
        control_url: String::new(),
        otlp: Vec::new(),
        replicas: Default::default(),
        forwards: Default::default(),
        processes: Default::default(),
    };
    let run_file = Arc::new(RunFile::create(&state_dir, run).unwrap());
    let (stop, stopped) = watch::channel(Stop { phase: Phase::Run, kill_at: None });
    let orders = Orders::default();
    let context = Context {
        mesh,
        logs: Logs::start(vec![Source { name: replica.name.clone(), is_own: false }], Look::default()),
        run_file,
        stop: stopped,
        orders: orders.clone(),
    };
    let (role, _listener) = role(replica);
    let task = tokio::spawn(supervise(role, context));
    Supervised { dir, run_id, stop, orders, task, _listener }
}

impl Supervised {
    /// The lines that the script has written, once there are so many.
    async fn lines(&self, count: usize) -> Vec<String> {
        let path = self.dir.path().join("lines");
        let written = async {
            loop {
                let text = std::fs::read_to_string(&path).unwrap_or_default();
                if text.lines().count() >= count {
                    return text.lines().map(str::to_owned).collect();
                }
                sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(LIMIT, written).await.expect("the script wrote its lines")
    }

    async fn stop(self, kill_after: Duration) {
        let kill_at = Some(Instant::now() + kill_after);
        self.stop.send_replace(Stop { phase: Phase::Services, kill_at });
        timeout(LIMIT, self.task).await.expect("the supervisor ends").unwrap();
        assert_eq!(process::of_run(&self.run_id), [], "no process is left");
        let run = Run::read(&self.dir.path().join(".weft")).unwrap().unwrap();
        assert!(run.processes.is_empty(), "{run:?}");
    }
}

fn is_alive(pid: &str) -> bool {
    Path::new("/proc").join(pid).join("cmdline").metadata().is_ok()
        && std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|cmdline| !cmdline.is_empty())
}

#[tokio::test]
async fn a_process_that_dies_is_restarted_and_its_children_are_ended() {
    let supervised = supervised("sleep 600 &\necho $! >> lines\nexit 3\n");
    let [first, second] = &supervised.lines(2).await[..2] else { panic!("two lines") };
    assert_ne!(first, second);
    assert!(!is_alive(first), "the first one's child is gone before the second starts");
    supervised.stop(LIMIT).await;
}

#[tokio::test]
async fn a_program_gets_its_addresses_in_its_environment() {
    let supervised = supervised("echo $WEFT_SERVICE $PORT $WEFT_LISTEN $WEFT_OUTBOUND >> lines\nexec sleep 600\n");
    let line = supervised.lines(1).await.remove(0);
    let [service, port, listen, outbound] = line.split(' ').collect::<Vec<_>>()[..] else { panic!("{line}") };
    assert_eq!((service, listen), ("users", format!("127.0.0.1:{port}").as_str()));
    assert!(outbound.starts_with("http://127.0.0.1:"), "{outbound}");
    let run = Run::read(&supervised.dir.path().join(".weft")).unwrap().unwrap();
    assert!(run.processes["users-1"].is_alive());
    assert_eq!(run.replicas["users-1"].app.to_string(), port);
    supervised.stop(LIMIT).await;
}

#[tokio::test]
async fn a_program_that_ignores_sigterm_is_killed_with_its_children() {
    let supervised = supervised("trap '' TERM\nsleep 600 &\necho $! >> lines\nwhile :; do sleep 600; done\n");
    let child = supervised.lines(1).await.remove(0);
    let began = Instant::now();
    supervised.stop(Duration::from_millis(300)).await;
    assert!(began.elapsed() >= Duration::from_millis(300));
    assert!(!is_alive(&child));
}

#[tokio::test]
async fn a_sidecar_that_is_being_replaced_is_asked_to_stop_at_once() {
    let control = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let dashboard = control.local_addr().unwrap().port();
    let ready = tokio::spawn(async move {
        while let Ok((mut stream, _)) = control.accept().await {
            let _ = stream.read(&mut [0; 1_024]).await;
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await;
        }
    });
    // Both the old and the new one go on until they are asked. A shell hears a signal while it waits for a child.
    let script = "trap 'echo asked >> lines; exit' TERM\necho started >> lines\nwhile :; do sleep 600 & wait; done\n";
    let supervised = supervised_sidecar(script, dashboard);
    supervised.lines(1).await;
    let orders = supervised.orders.clone();
    let order = tokio::spawn(async move { orders.give("users-1·sidecar", true).await.map(drop) });
    supervised.lines(2).await;
    supervised.stop.send_replace(Stop { phase: Phase::Services, kill_at: None });
    // The old one would otherwise be killed, once the time for a replacement is over.
    assert_eq!(supervised.lines(4).await, ["started", "started", "asked", "asked"]);
    assert_eq!(order.await.unwrap(), Err("users-1·sidecar stops".to_owned()));
    supervised.stop(LIMIT).await;
    ready.abort();
}
