//! Hosts that a test makes itself: network namespaces on one bridge. The programs on them know nothing of the mesh.

use std::{
    fs::{self, File},
    os::fd::AsFd,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::atomic::{AtomicU32, Ordering::Relaxed},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tempfile::TempDir;
use tokio::net::TcpStream;
use weft_control::{ca::Ca, join_token};
use weft_mesh::{identity::SpiffeId, names::ServiceName};

use crate::{binary, eventually, get};

/// A network with hosts at 10.77.0.N and fd77::N. Dropping it removes them all.
pub struct Net {
    dir: TempDir,
    prefix: String,
    hosts: Vec<Host>,
}

/// A host of a [`Net`]. Host 0 has the bridge, and is the default gateway of the others.
#[derive(Clone)]
pub struct Host {
    namespace: String,
    number: usize,
    children: std::rc::Rc<std::cell::RefCell<Vec<(String, Child)>>>,
    dir: PathBuf,
}

/// The group that sidecars run as. Its connections are not redirected.
const GROUP: &str = "4321";

/// How long a program on a host may take.
const LIMIT: Duration = Duration::from_secs(60);

/// How long a join token is valid.
const TOKEN_LIFE: Duration = Duration::from_secs(3600);

fn ip(arguments: &str) {
    let output = Command::new("ip").args(arguments.split_whitespace()).output().expect("`ip` starts");
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

impl Net {
    /// Whether hosts can be made on this machine.
    ///
    /// # Errors
    /// What is missing.
    pub fn is_possible() -> Result<(), String> {
        if !rustix_is_root() {
            return Err("only root can make hosts".into());
        }
        for program in ["ip", "nft", "iptables-restore"] {
            let found = Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
            if found.is_err() {
                return Err(format!("`{program}` is not installed"));
            }
        }
        Ok(())
    }

    /// A network with `count` hosts.
    ///
    /// # Panics
    /// They can't be made.
    pub fn of(count: usize) -> Self {
        static NETS: AtomicU32 = AtomicU32::new(0);
        let prefix = format!("wt{}-{}", std::process::id(), NETS.fetch_add(1, Relaxed));
        let dir = TempDir::new().expect("a folder of its own");
        let mut net = Self { dir, prefix, hosts: Vec::new() };
        for number in 0..count {
            net.add(number);
        }
        net
    }

    fn add(&mut self, number: usize) {
        let namespace = format!("{}-{number}", self.prefix);
        ip(&format!("netns add {namespace}"));
        self.hosts.push(Host {
            namespace: namespace.clone(),
            number,
            children: std::rc::Rc::default(),
            dir: self.dir.path().to_owned(),
        });
        let middle = &self.hosts[0].namespace;
        ip(&format!("-n {namespace} link set lo up"));
        if number == 0 {
            ip(&format!("-n {middle} link add wire type bridge"));
            ip(&format!("-n {middle} link set wire up"));
            ip(&format!("-n {middle} addr add 10.77.0.254/24 dev wire"));
            ip(&format!("-n {middle} -6 addr add fd77::fe/64 dev wire nodad"));
            return;
        }
        ip(&format!("-n {namespace} link add eth0 type veth peer name to{number} netns {middle}"));
        ip(&format!("-n {middle} link set to{number} master wire up"));
        ip(&format!("-n {namespace} link set eth0 up"));
        ip(&format!("-n {namespace} addr add 10.77.0.{number}/24 dev eth0"));
        ip(&format!("-n {namespace} -6 addr add fd77::{number}/64 dev eth0 nodad"));
        ip(&format!("-n {namespace} route add default via 10.77.0.254"));
        ip(&format!("-n {namespace} -6 route add default via fd77::fe"));
    }

    /// A host by its number.
    pub fn host(&self, number: usize) -> Host {
        self.hosts[number].clone()
    }

    /// Starts a control plane on host 0.
    ///
    /// # Panics
    /// It is not ready in time.
    pub fn start_control(&self) {
        let state = self.state_dir();
        let listen = ["--listen", "10.77.0.254:15010", "--dashboard", "127.0.0.1:15080", "--state-dir"];
        let access = self.dir.path().join("access.yaml");
        if !access.exists() {
            self.set_access("{}\n");
        }
        let [state, access] = [&state, &access].map(|path| path.to_str().expect("a path is text"));
        self.host(0).start(
            "control",
            &binary("weft-control"),
            &[&listen[..], &[state, "--access", access]].concat(),
            &[],
        );
        until("the control plane is there", || self.log().contains("ready trust_domain"));
    }

    /// Replaces the rules of the mesh for who may call.
    ///
    /// # Panics
    /// The folder can't be written.
    pub fn set_access(&self, rules: &str) {
        let (file, new) = (self.dir.path().join("access.yaml"), self.dir.path().join("access.new"));
        fs::write(&new, rules).and_then(|()| fs::rename(new, file)).expect("the folder can be written");
    }

    /// Starts a test app on a host, and a sidecar beside it, whose outbound port is 15300 + `place`.
    ///
    /// # Panics
    /// It does not start.
    pub fn start_service(&self, host: &Host, place: u16, name: &str, port: u16, protocol: &str, flags: &[&str]) {
        let speak = if protocol == "grpc" { "" } else { protocol };
        let env = [("PORT", port.to_string()), ("HOST", "::".to_owned()), ("SPEAK", speak.to_owned())];
        let env = env.each_ref().map(|(name, value)| (*name, value.as_str()));
        host.start(name, &binary("weft-test-app"), &[], &env);
        self.front(host, place, name, port, protocol, flags);
    }

    /// Starts a sidecar beside a program that listens at `port` of a host, as [`Self::start_service`] does.
    ///
    /// # Panics
    /// It does not start.
    pub fn front(&self, host: &Host, place: u16, name: &str, port: u16, protocol: &str, flags: &[&str]) {
        let inbound = 15_006 + place;
        let own = [
            ("--app", format!("127.0.0.1:{port}")),
            ("--inbound", format!("0.0.0.0:{inbound}")),
            ("--advertise", format!("10.77.0.{}:{inbound}", host.number)),
            ("--admin", format!("127.0.0.1:{}", 15_100 + place)),
            ("--metrics", format!("127.0.0.1:{}", 15_200 + place)),
            ("--outbound", format!("127.0.0.1:{}", 15_300 + place)),
        ];
        let mut all = vec!["--service", name, "--protocol", protocol];
        all.extend(own.iter().flat_map(|(flag, value)| [*flag, value.as_str()]));
        self.run_sidecar(host, name, &[&all, flags].concat());
    }

    /// Starts a sidecar without a service, on the default ports, and waits until it is ready.
    ///
    /// # Panics
    /// It is not ready in time.
    pub fn start_sidecar(&self, host: &Host, name: &str, flags: &[&str]) {
        self.run_sidecar(host, name, flags);
        host.within(|| async {
            let is_ready = async || {
                TcpStream::connect(("127.0.0.1", 15_020)).await.is_ok() && get(15_020, "/readyz").await.0 == 200
            };
            eventually("the sidecar is ready", LIMIT, is_ready).await;
        });
    }

    fn run_sidecar(&self, host: &Host, name: &str, flags: &[&str]) {
        let program = binary("weft-sidecar").display().to_string();
        let of_net = self.sidecar_flags(name);
        let mut arguments = vec!["--regid", GROUP, "--keep-groups", &program];
        arguments.extend(of_net.iter().map(String::as_str));
        arguments.extend(flags);
        host.start(&format!("{name}-sidecar"), Path::new("setpriv"), &arguments, &[]);
    }

    /// The folder in which the control plane keeps its CA.
    pub fn state_dir(&self) -> PathBuf {
        self.dir.path().join("control")
    }

    /// The flags of every sidecar on this network. Also makes its join token.
    fn sidecar_flags(&self, name: &str) -> Vec<String> {
        let trust_domain = "weft.local".parse().expect("a trust domain");
        let ca = Ca::open_or_create(&self.state_dir(), &trust_domain).expect("the mesh has a CA");
        let service = ServiceName::new(name, "shop").expect("a name");
        // The IPv6 addresses of the hosts, and the virtual addresses of services.
        let networks = ["fd77::/64", "10.96.0.0/16"].map(|network| network.parse().expect("a network"));
        let id = SpiffeId::of_service(&trust_domain, &service);
        let token = join_token::issue_for(&ca, &id, &networks, TOKEN_LIFE).expect("a token");
        let file = self.dir.path().join(format!("{name}.token"));
        fs::write(&file, token).expect("the folder can be written");
        let flags = ["--namespace", "shop", "--control-plane", "https://10.77.0.254:15010", "--trust-bundle"];
        let mut flags: Vec<String> = flags.map(str::to_owned).to_vec();
        flags.push(self.state_dir().join("bundle.pem").display().to_string());
        flags.extend(["--join-token-file".to_owned(), file.display().to_string()]);
        flags
    }

    /// All that its programs have printed.
    pub fn log(&self) -> String {
        let files = fs::read_dir(self.dir.path()).into_iter().flatten().flatten();
        let logs = files.map(|file| file.path()).filter(|path| path.extension().is_some_and(|end| end == "log"));
        logs.map(|path| format!("--- {}\n{}", path.display(), fs::read_to_string(&path).unwrap_or_default())).collect()
    }
}

/// As [`eventually`], for a condition that is not async.
///
/// # Panics
/// It does not hold in time.
pub fn until(what: &str, is_so: impl Fn() -> bool) {
    let end = Instant::now() + LIMIT;
    while !is_so() {
        assert!(Instant::now() < end, "not within {LIMIT:?}: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn rustix_is_root() -> bool {
    rustix::process::geteuid().is_root()
}

impl Host {
    /// Runs a program on this host until [`Self::stop`], or until the [`Net`] is dropped.
    ///
    /// # Panics
    /// It does not start.
    pub fn start(&self, name: &str, program: &Path, arguments: &[&str], env: &[(&str, &str)]) {
        let log =
            File::create(self.dir.join(format!("{}-{name}.log", self.number))).expect("the folder can be written");
        let mut command = self.command(program);
        command.args(arguments).envs(env.iter().copied()).stdin(Stdio::null());
        command.stdout(log.try_clone().expect("a file can be shared")).stderr(log);
        let child = command.spawn().expect("it starts");
        self.children.borrow_mut().push((name.to_owned(), child));
    }

    /// Kills a program.
    ///
    /// # Panics
    /// No program of that name runs.
    pub fn stop(&self, name: &str) {
        let mut children = self.children.borrow_mut();
        let place = children.iter().position(|(other, _)| other == name).expect("it runs");
        let (_, mut child) = children.remove(place);
        let _ = child.kill();
        let _ = child.wait();
    }

    /// Redirects connections to the host's sidecar, with `weft redirect`.
    ///
    /// # Panics
    /// `weft redirect` fails.
    pub fn redirect(&self, flags: &[&str]) {
        let program = binary("weft").display().to_string();
        self.output(&program, &[&["redirect", "--uid", "4321", "--gid", GROUP], flags].concat());
    }

    fn command(&self, program: &Path) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.namespace]).arg(program);
        // Some programs write files into their current folder.
        command.current_dir(&self.dir);
        command
    }

    /// Runs a program on this host and waits for its end.
    ///
    /// # Panics
    /// It does not start.
    pub fn run(&self, program: &Path, arguments: &[&str]) -> Output {
        self.command(program).args(arguments).stdin(Stdio::null()).output().expect("it starts")
    }

    /// Runs a program as [`Self::run`] does. Returns its output.
    ///
    /// # Panics
    /// It fails.
    pub fn output(&self, program: &str, arguments: &[&str]) -> String {
        let output = self.run(Path::new(program), arguments);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{program} {arguments:?}: {said}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Runs `act` on this host, in a thread with a runtime of its own.
    ///
    /// # Panics
    /// `act` panics.
    pub fn within<T: Send + 'static, F: Future<Output = T>>(&self, act: impl FnOnce() -> F + Send + 'static) -> T {
        match self.beside(act).join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }

    /// As [`Self::within`], but does not wait for the end of `act`.
    pub fn beside<T: Send + 'static, F: Future<Output = T>>(
        &self,
        act: impl FnOnce() -> F + Send + 'static,
    ) -> JoinHandle<T> {
        let namespace = Path::new("/run/netns").join(&self.namespace);
        std::thread::spawn(move || {
            let file = File::open(namespace).expect("the host is there");
            move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network)).expect("root may go there");
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(act())
        })
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        for host in &self.hosts {
            for (_, child) in host.children.borrow_mut().iter_mut() {
                let _ = child.kill();
                let _ = child.wait();
            }
        }
        if std::thread::panicking() {
            eprintln!("{}", self.log());
        }
        for host in &self.hosts {
            let _ = Command::new("ip").args(["netns", "del", &host.namespace]).status();
        }
    }
}
