//! A mesh of real processes, started by `weft up` in a folder of its own and ended with the test.
//!
//! Dropping a [`Bed`] waits until the mesh has stopped, and the mesh waits for its clients. A test that still holds
//! connections then ends sooner on a runtime with a worker thread, which closes them in the meantime.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use serde::Deserialize;
use tempfile::TempDir;
use tonic::transport::{Channel, Endpoint};

use crate::{binary, root};

/// See the module.
pub struct Bed {
    dir: TempDir,
    up: Child,
    outbound: u16,
    dashboard: u16,
    control: u16,
}

/// `run.json`, in which `weft up` describes its processes.
#[derive(Debug, Deserialize)]
struct Run {
    outbound_url: String,
    dashboard_url: String,
    control_url: String,
    replicas: BTreeMap<String, ReplicaPorts>,
    forwards: BTreeMap<String, u16>,
    processes: BTreeMap<String, Process>,
}

#[derive(Debug, Deserialize)]
struct Process {
    pid: u32,
}

/// The ports of one replica and its sidecar.
#[derive(Clone, Copy, Debug, Deserialize)]
pub struct ReplicaPorts {
    /// The service itself.
    pub app: u16,
    /// Its sidecar's outbound port.
    pub outbound: u16,
    /// Its sidecar's inbound port.
    pub inbound: u16,
    /// Its sidecar's admin port.
    pub admin: u16,
    /// Its sidecar's port for metrics and probes.
    pub metrics: u16,
}

/// How long a mesh may take to come up or to stop: on a busy machine, with unoptimized binaries.
const READY: Duration = Duration::from_secs(60);

/// The key of a `mesh.yaml` that lets the kernel pick the ports.
pub const FREE_PORTS: &str = "ports: { outbound: 0, dashboard: 0, control: 0 }";

impl Bed {
    /// A mesh of the services in `services`: the value of that key in `mesh.yaml`. `${BIN}` stands for the folder of
    /// the workspace's binaries, `${PROTO_PATH}` for the folders of its `.proto` files.
    ///
    /// # Panics
    /// It is not ready in time. The message contains all of its output.
    pub async fn start(services: &str) -> Self {
        Self::start_with(services, &[]).await
    }

    /// As [`Self::start`], with further arguments for `weft up`.
    ///
    /// # Panics
    /// As [`Self::start`].
    pub async fn start_with(services: &str, args: &[&str]) -> Self {
        Self::start_in::<&str>(services, args, &[]).await
    }

    /// As [`Self::start_with`], with more in the environment of all processes.
    ///
    /// # Panics
    /// As [`Self::start`].
    pub async fn start_in<V: AsRef<OsStr>>(services: &str, args: &[&str], env: &[(&str, V)]) -> Self {
        // The log lines of sidecars and control plane explain why a test fails.
        Self::launch(services, &[&["--verbose"][..], args].concat(), env).await
    }

    /// As [`Self::start`], but without `--verbose`: prints what a user sees who gives no flag.
    ///
    /// # Panics
    /// As [`Self::start`].
    pub async fn start_quietly(services: &str) -> Self {
        Self::launch::<&str>(services, &[], &[]).await
    }

    async fn launch<V: AsRef<OsStr>>(services: &str, args: &[&str], env: &[(&str, V)]) -> Self {
        let weft = binary("weft");
        let dir = TempDir::new().expect("a folder of its own");
        let bin = weft.parent().expect("a binary lies in a folder").display().to_string();
        let protos = format!("[{}, {}]", root().join("proto").display(), root().join("tests/proto").display());
        let services = services.replace("${BIN}", &bin).replace("${PROTO_PATH}", &protos);
        let yaml = format!("namespace: shop\n{FREE_PORTS}\nservices:\n{services}\n");
        fs::write(dir.path().join("mesh.yaml"), yaml).expect("the folder can be written");
        Self::start_at(dir, args, env, READY).await
    }

    /// Starts the mesh of the `mesh.yaml` in `dir`, which must contain [`FREE_PORTS`]. `limit` includes its build.
    ///
    /// # Panics
    /// As [`Self::start`].
    pub async fn start_at<V: AsRef<OsStr>>(dir: TempDir, args: &[&str], env: &[(&str, V)], limit: Duration) -> Self {
        let up = Self::spawn(&binary("weft"), dir.path(), args, env);
        let mut bed = Self { dir, up, outbound: 0, dashboard: 0, control: 0 };
        bed.wait_until_ready(limit).await;
        let run = bed.run();
        [bed.outbound, bed.dashboard, bed.control] =
            [run.outbound_url, run.dashboard_url, run.control_url].map(|url| port_of(&url));
        bed
    }

    fn spawn<V: AsRef<OsStr>>(weft: &Path, dir: &Path, args: &[&str], env: &[(&str, V)]) -> Child {
        let log = File::create(dir.join("up.log")).expect("the folder can be written");
        let mut command = Command::new(weft);
        command.arg("up").args(args).current_dir(dir).stdin(Stdio::null());
        command.envs(env.iter().map(|(name, value)| (name, value)));
        command.stdout(log.try_clone().expect("a file can be shared")).stderr(log);
        command.spawn().expect("weft starts")
    }

    async fn wait_until_ready(&mut self, limit: Duration) {
        let end = Instant::now() + limit;
        // The last line of the table: its lines do not come all at once.
        while !self.log().lines().any(|line| line.ends_with("stop         Ctrl-C")) {
            let ended = self.up.try_wait().expect("a child can be asked");
            assert!(ended.is_none() && Instant::now() < end, "the mesh is not ready ({ended:?}):\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// All that `weft up` and its processes have printed.
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("up.log")).unwrap_or_default()
    }

    /// The folder of its `mesh.yaml`.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The outbound port of the sidecar `keyboard`, which carries the user's own calls.
    pub fn outbound(&self) -> u16 {
        self.outbound
    }

    /// The dashboard's port.
    pub fn dashboard(&self) -> u16 {
        self.dashboard
    }

    /// The control plane's port.
    pub fn control(&self) -> u16 {
        self.control
    }

    /// A channel to the sidecar `keyboard`.
    pub fn channel(&self) -> Channel {
        channel(self.outbound)
    }

    /// The ports of a replica, by a name such as `users-1`.
    ///
    /// # Panics
    /// There is no such replica.
    pub fn ports(&self, replica: &str) -> ReplicaPorts {
        *self.run().replicas.get(replica).unwrap_or_else(|| panic!("no replica {replica}: {:?}", self.run().replicas))
    }

    /// The local port that leads to this service only. Services of TCP and those with `forward` have one.
    ///
    /// # Panics
    /// The service has no such port.
    pub fn forward(&self, service: &str) -> u16 {
        *self.run().forwards.get(service).unwrap_or_else(|| panic!("no forward to {service}"))
    }

    /// The process of a name such as `control`, `users-1` or `users-1·sidecar`.
    ///
    /// # Panics
    /// There is no such process.
    pub fn pid(&self, process: &str) -> u32 {
        // A process may serve calls a moment before the run file has it.
        let end = Instant::now() + READY;
        loop {
            let processes = self.run().processes;
            match processes.get(process) {
                Some(found) => return found.pid,
                None => assert!(Instant::now() < end, "no process {process}: {processes:?}"),
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The process of `weft up`.
    pub fn up_pid(&self) -> u32 {
        self.up.id()
    }

    /// All processes except `weft up` itself.
    pub fn pids(&self) -> Vec<u32> {
        self.run().processes.values().map(|process| process.pid).collect()
    }

    /// `kill -9`
    pub fn kill(&self, process: &str) {
        signal("-KILL", self.pid(process));
    }

    /// `.weft/`
    pub fn state_dir(&self) -> PathBuf {
        self.dir.path().join(".weft")
    }

    /// Runs the command line in the mesh's folder.
    ///
    /// # Panics
    /// It does not start.
    pub fn weft(&self, args: &[&str]) -> std::process::Output {
        let mut command = Command::new(binary("weft"));
        command.args(args).current_dir(self.dir.path()).env("WEFT_OUTBOUND", self.url()).output().expect("weft starts")
    }

    /// `http://127.0.0.1:PORT` of the sidecar `keyboard`.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.outbound)
    }

    /// The JSON of a GET on a loopback port.
    ///
    /// # Panics
    /// The answer is not JSON.
    pub async fn json(&self, port: u16, path: &str) -> serde_json::Value {
        let (status, body) = get(port, path).await;
        serde_json::from_str(&body).unwrap_or_else(|e| panic!("{path}: {status} is not JSON ({e}): {body}"))
    }

    /// Asks `weft up` to stop, as Ctrl-C does, and waits until it has ended.
    ///
    /// # Panics
    /// It does not stop in time.
    pub async fn stop(&mut self) -> std::process::ExitStatus {
        signal("-INT", self.up.id());
        let end = Instant::now() + READY;
        loop {
            if let Some(status) = self.up.try_wait().expect("a child can be asked") {
                return status;
            }
            assert!(Instant::now() < end, "weft up does not stop:\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// `kill -9` of `weft up` itself.
    pub fn kill_up(&mut self) {
        let _ = self.up.kill();
        let _ = self.up.wait();
    }

    fn run(&self) -> Run {
        let text = fs::read(self.state_dir().join("run.json")).expect("a mesh that runs has a run.json");
        serde_json::from_slice(&text).expect("run.json is JSON")
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        if self.up.try_wait().is_ok_and(|ended| ended.is_none()) {
            // A failed test may have left it stopped by SIGSTOP.
            signal("-CONT", self.up.id());
            signal("-INT", self.up.id());
            let end = Instant::now() + READY;
            while self.up.try_wait().is_ok_and(|ended| ended.is_none()) && Instant::now() < end {
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        let _ = self.up.kill();
        let _ = Command::new(binary("weft")).arg("down").current_dir(self.dir.path()).output();
        if std::thread::panicking() {
            eprintln!("--- what the mesh printed ---\n{}", self.log());
        }
    }
}

/// A channel to a sidecar's outbound port.
pub fn channel(port: u16) -> Channel {
    channel_to(&format!("http://127.0.0.1:{port}"))
}

/// A channel to an address.
///
/// # Panics
/// It is not a URL.
pub fn channel_to(url: &str) -> Channel {
    Endpoint::from_shared(url.to_owned()).expect("a URL").connect_lazy()
}

/// Status and body of a GET over HTTP/1.1.
///
/// # Panics
/// There is no answer.
pub async fn get(port: u16, path: &str) -> (u16, String) {
    use http_body_util::BodyExt;
    let stream = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.expect("something listens");
    let io = hyper_util::rt::TokioIo::new(stream);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.expect("HTTP/1.1 begins");
    tokio::spawn(connection);
    let request = http::Request::get(path).header("host", format!("127.0.0.1:{port}"));
    let request = request.body(http_body_util::Empty::<bytes::Bytes>::new()).expect("a request");
    let response = sender.send_request(request).await.expect("an answer");
    let status = response.status().as_u16();
    let body = response.into_body().collect().await.expect("a whole body").to_bytes();
    (status, String::from_utf8_lossy(&body).into_owned())
}

/// Sends a signal with the program `kill`: std has no safe call for it.
pub fn signal(which: &str, pid: u32) {
    let _ = Command::new("kill").args([which, &pid.to_string()]).status();
}

/// Whether a process runs.
pub fn is_alive(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('Z')))
}

/// The port in `http://127.0.0.1:PORT`.
fn port_of(url: &str) -> u16 {
    url.rsplit(':').next().and_then(|port| port.parse().ok()).expect("a URL that ends with a port")
}

/// The resident memory of a process.
///
/// # Panics
/// It does not run.
pub fn resident_bytes(pid: u32) -> usize {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("Linux reports it");
    line.trim().trim_end_matches(" kB").parse::<usize>().expect("a number") * 1024
}
