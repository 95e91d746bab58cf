//! The cluster: how tests talk to it, and what is on it.

use std::{
    env, fmt,
    io::Write as _,
    path::PathBuf,
    process::{Command, Output, Stdio},
    sync::{
        LazyLock, OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use weft_tests::{binary, outside, root};

/// See the module.
pub(super) struct Cluster {
    /// The command that is `kubectl`.
    kubectl: Vec<String>,
    /// The command that takes image archives.
    load: Vec<String>,
    /// The command that stops and starts parts of Kubernetes itself; only our own node has it.
    node: Option<String>,
    /// Held by a test that takes parts of the mesh away.
    alone: RwLock<()>,
    /// What `weft cluster check` said before the installation, unless Weft was there from an earlier run.
    pub(super) before: OnceLock<Output>,
}

/// What a load saw.
pub(super) struct Told {
    pub(super) calls: u64,
    pub(super) failed: u64,
    by_status: Value,
    errors: Value,
}

impl fmt::Display for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { calls, failed, by_status, errors } = self;
        write!(f, "{failed} of {calls} calls failed; {by_status} {errors}")
    }
}

/// A load that runs in a pod.
pub(super) struct Load<'a> {
    cluster: &'a Cluster,
    namespace: String,
    job: String,
}

static CLUSTER: LazyLock<Option<Cluster>> = LazyLock::new(|| {
    let cluster = Cluster::find()?;
    cluster.set_up();
    Some(cluster)
});

/// A pod that sleeps, with labels and annotations.
pub(super) fn pod(namespace: &str, name: &str, labels: Value, annotations: Value) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "labels": labels, "annotations": annotations},
        "spec": {"containers": [container("app", "weft/control:0.1.0", &["--help"])]},
    })
}

/// A container as the PodSecurity level `restricted` allows it.
pub(super) fn container(name: &str, image: &str, args: &[&str]) -> Value {
    json!({
        "name": name, "image": image, "imagePullPolicy": "IfNotPresent", "args": args,
        "securityContext": {
            "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "runAsNonRoot": true, "runAsUser": 65532,
            "capabilities": {"drop": ["ALL"]}, "seccompProfile": {"type": "RuntimeDefault"},
        },
        "resources": {"requests": {"cpu": "10m", "memory": "32Mi"}, "limits": {"cpu": "1", "memory": "256Mi"}},
    })
}

/// Whether `tests/kubernetes/node build` has been run on this machine.
fn is_node_built() -> bool {
    // The last of its programs.
    node_folder().join("bin/coredns").exists()
}

/// Where `tests/kubernetes/node` keeps its things.
fn node_folder() -> PathBuf {
    let own = env::var_os("WEFT_NODE_DIR").map(PathBuf::from);
    own.unwrap_or_else(|| env::home_dir().unwrap_or_default().join(".cache/weft-node"))
}

/// The load generator, if `tests/honest/install` has been run.
fn ghz() -> Option<PathBuf> {
    let own = root().join("target/honest/bin/ghz");
    if own.is_file() { Some(own) } else { outside("ghz") }
}

fn words(command: &str) -> Vec<String> {
    command.split_whitespace().map(str::to_owned).collect()
}

/// What a command said if it succeeded, or else its errors.
fn run(command: &[String], args: &[&str], input: &str) -> Result<String, String> {
    let mut child = Command::new(&command[0])
        .args(&command[1..])
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| format!("{}: {e}", command[0]))?;
    let mut stdin = child.stdin.take().expect("it is piped");
    let input = input.to_owned();
    // Its output may fill the pipe before it has read everything.
    let writer = std::thread::spawn(move || drop(stdin.write_all(input.as_bytes())));
    let Output { status, stdout, stderr } = child.wait_with_output().map_err(|e| e.to_string())?;
    let _ = writer.join();
    let (stdout, stderr) = (String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
    if status.success() { Ok(stdout.into_owned()) } else { Err(format!("{stdout}{stderr}")) }
}

impl Cluster {
    /// The cluster with Weft and the shop on it, if there is one.
    pub(super) fn get() -> Option<&'static Self> {
        CLUSTER.as_ref()
    }

    fn find() -> Option<Self> {
        let node = root().join("tests/kubernetes/node").display().to_string();
        let (kubectl, load, own) = match (env::var("KUBECONFIG"), env::var("WEFT_TEST_LOAD")) {
            (Ok(_), Ok(load)) => (vec!["kubectl".to_owned()], words(&load), None),
            _ => (vec![node.clone(), "kubectl".to_owned()], vec![node.clone(), "load".to_owned()], Some(node.clone())),
        };
        let cluster = Self { kubectl, load, node: own, alone: RwLock::default(), before: OnceLock::new() };
        let is_there = || cluster.try_kubectl(&["get", "--raw", "/readyz"], "").is_ok();
        let start = || match run(&[node], &["up"], "") {
            Ok(_) => is_there(),
            Err(why) => {
                eprintln!("the node does not start: {why}");
                false
            }
        };
        (is_there() || (is_node_built() && start())).then_some(cluster)
    }

    /// Loads the images, installs Weft, and starts the shop.
    fn set_up(&self) {
        let weft = binary("weft");
        let from = weft.parent().expect("it is in a folder");
        let images = root().join("tests/kubernetes/images").display().to_string();
        let archives = root().join("target/images");
        let (from, out) = (from.display().to_string(), archives.display().to_string());
        let make =
            |more: &[&str]| run(std::slice::from_ref(&images), &[&["--from", &from, "--out", &out], more].concat(), "");
        let mut made = make(&[]).expect("images are made");
        for (name, program) in [("app", Some(binary("weft-test-app"))), ("curl", outside("curl"))] {
            let Some(program) = program else { continue };
            made += &make(&["--add", &format!("weft-test/{name}:1={}", program.display())]).expect("an image is made");
        }
        if let Some(ghz) = ghz() {
            made += &make(&["--add", &format!("weft-test/ghz:1={}", ghz.display())]).expect("an image is made");
        }
        let made: Vec<&str> = made.lines().collect();
        run(&self.load, &made, "").expect("images are loaded");
        if self.try_kubectl(&["get", "namespace", "weft"], "").is_err() {
            let _ = self.before.set(self.weft_there(&["cluster", "check", "--json"]));
        }
        self.apply(&self.weft(&["install"], ""));
        self.kubectl(&["-n", "weft", "rollout", "restart", "deployment/control"]);
        self.kubectl(&["-n", "weft", "rollout", "status", "deployment/control", "--timeout=240s"]);
        let shop = root().join("k8s/shop").display().to_string();
        // The control plane tells the API server its certificate within moments.
        self.until("the shop is applied", Duration::from_secs(60), || {
            self.try_kubectl(&["apply", "-k", &shop], "").map(drop)
        });
        self.apply(&json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "stranger", "namespace": "shop"}}).to_string());
        self.kubectl(&["-n", "shop", "rollout", "restart", "deployment"]);
        for deployment in ["auth", "notifications", "users", "products", "orders", "web"] {
            let name = format!("deployment/{deployment}");
            if let Err(error) = self.try_kubectl(&["-n", "shop", "rollout", "status", &name, "--timeout=240s"], "") {
                let pods = self.kubectl(&["-n", "shop", "get", "pods", "-o", "wide"]);
                let logs = self.try_kubectl(&["-n", "shop", "logs", "--tail=20", "--all-containers", &name], "");
                panic!("{error}\n{pods}\n{logs:?}");
            }
        }
    }

    /// Sends a signal to a part of Kubernetes (`signal KILL apiserver`), or starts it again (`restart apiserver`). Returns
    /// whether this cluster can do that.
    pub(super) fn part(&self, args: &[&str]) -> bool {
        let Some(node) = &self.node else { return false };
        run(std::slice::from_ref(node), args, "").unwrap_or_else(|error| panic!("{args:?}: {error}"));
        true
    }

    /// No test takes parts of the mesh away until this is dropped.
    pub(super) fn whole(&self) -> RwLockReadGuard<'_, ()> {
        self.alone.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// No other test uses the cluster until this is dropped.
    pub(super) fn alone(&self) -> RwLockWriteGuard<'_, ()> {
        self.alone.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn kubectl(&self, args: &[&str]) -> String {
        self.try_kubectl(args, "").unwrap_or_else(|error| panic!("kubectl {args:?}: {error}"))
    }

    pub(super) fn try_kubectl(&self, args: &[&str], input: &str) -> Result<String, String> {
        run(&self.kubectl, args, input)
    }

    /// `weft` with arguments, as a user of the cluster runs it.
    pub(super) fn weft_there(&self, args: &[&str]) -> Output {
        let mut command = match &self.kubectl[..] {
            [node, _] => {
                let mut command = Command::new(node);
                command.args([
                    "exec",
                    "env",
                    &format!("KUBECONFIG={}", node_folder().join("run/admin.kubeconfig").display()),
                ]);
                command.arg(binary("weft"));
                command
            }
            _ => Command::new(binary("weft")),
        };
        command.args(args).stdin(Stdio::null()).output().expect("weft runs")
    }

    /// By force, as tests have scaled the control plane before.
    pub(super) fn apply(&self, manifests: &str) -> String {
        self.try_kubectl(&["apply", "--server-side", "--force-conflicts", "-f", "-"], manifests).expect("it is applied")
    }

    /// What `weft` prints.
    pub(super) fn weft(&self, args: &[&str], input: &str) -> String {
        run(&[binary("weft").display().to_string()], args, input)
            .unwrap_or_else(|error| panic!("weft {args:?}: {error}"))
    }

    /// Runs `weft` in a pod of its own, under a service account. Returns what it printed, or its errors.
    pub(super) fn call(&self, namespace: &str, account: &str, args: &[&str]) -> Result<String, String> {
        self.run(namespace, account, "weft/control:0.1.0", &json!({}), args)
    }

    /// Runs an image in a pod of its own, which has these annotations. Returns what it printed, or its errors.
    pub(super) fn run(
        &self,
        namespace: &str,
        account: &str,
        image: &str,
        annotations: &Value,
        args: &[&str],
    ) -> Result<String, String> {
        let job = self.start(namespace, account, image, annotations, args);
        let ended = self.ended(namespace, &job);
        let logs = self.kubectl(&["-n", namespace, "logs", &format!("job/{job}"), "-c", "app"]);
        self.kubectl(&["-n", namespace, "delete", "job", &job, "--wait=false"]);
        if ended { Ok(logs) } else { Err(logs) }
    }

    /// Calls a method so many times a second from a pod, for some seconds. `None` if there is no ghz.
    pub(super) fn load(&self, namespace: &str, method: &str, json: &str, rate: u32, seconds: u32) -> Option<Load<'_>> {
        ghz()?;
        // By count: at the end of a time, ghz breaks its last calls off.
        let (total, rate) = ((rate * seconds).to_string(), rate.to_string());
        let args = [
            "--insecure",
            "--call",
            method,
            "-d",
            json,
            "--rps",
            &rate,
            "-n",
            &total,
            "-c",
            "20",
            "--connections",
            "4",
            "-O",
            "json",
            "127.0.0.1:15001",
        ];
        let job = self.start(namespace, "keyboard", "weft-test/ghz:1", &json!({}), &args);
        self.until("the load runs", Duration::from_secs(120), || {
            let selector = format!("job-name={job}");
            let phase = self.kubectl(&[
                "-n",
                namespace,
                "get",
                "pods",
                "-l",
                &selector,
                "-o",
                "jsonpath={.items[*].status.phase}",
            ]);
            if phase.trim() == "Running" { Ok(()) } else { Err(phase) }
        });
        Some(Load { cluster: self, namespace: namespace.to_owned(), job })
    }

    /// Starts a Job with one container, and returns its name.
    fn start(&self, namespace: &str, account: &str, image: &str, annotations: &Value, args: &[&str]) -> String {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name = format!("test-{}-{}", std::process::id(), NUMBER.fetch_add(1, Relaxed));
        let job = json!({
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": {"name": name, "namespace": namespace},
            "spec": {"backoffLimit": 0, "template": {"metadata": {"annotations": annotations}, "spec": {
                "serviceAccountName": account,
                "restartPolicy": "Never",
                "containers": [container("app", image, args)],
            }}},
        });
        self.try_kubectl(&["create", "-f", "-"], &job.to_string()).expect("the job is made");
        name
    }

    /// Waits until a Job has ended. Returns whether it succeeded.
    fn ended(&self, namespace: &str, job: &str) -> bool {
        let mut succeeded = false;
        self.until("the job ends", super::LIMIT, || {
            let status = self.kubectl(&[
                "-n",
                namespace,
                "get",
                "job",
                job,
                "-o",
                "jsonpath={.status.succeeded} {.status.failed}",
            ]);
            succeeded = status.starts_with('1');
            if succeeded || status.trim() == "1" {
                Ok(())
            } else {
                Err(self.kubectl(&["-n", namespace, "get", "pods", "-o", "wide"]))
            }
        });
        succeeded
    }

    /// Tries again until it succeeds.
    pub(super) fn until(&self, what: &str, limit: Duration, mut try_it: impl FnMut() -> Result<(), String>) {
        let end = Instant::now() + limit;
        while let Err(why) = try_it() {
            assert!(Instant::now() < end, "not within {limit:?}: {what}: {why}");
            std::thread::sleep(Duration::from_millis(500));
        }
    }
}

impl Load<'_> {
    /// Waits for its end, and says what it saw.
    pub(super) fn end(self) -> Told {
        let Self { cluster, namespace, job, .. } = &self;
        let succeeded = cluster.ended(namespace, job);
        let logs = cluster.kubectl(&["-n", namespace, "logs", &format!("job/{job}"), "-c", "app"]);
        assert!(succeeded, "{logs}");
        cluster.kubectl(&["-n", namespace, "delete", "job", job, "--wait=false"]);
        let report: Value = serde_json::from_str(&logs).expect("ghz prints JSON");
        let by_status = report["statusCodeDistribution"].clone();
        let calls = report["count"].as_u64().unwrap_or_default();
        let well = by_status["OK"].as_u64().unwrap_or_default();
        Told { calls, failed: calls - well, by_status, errors: report["errorDistribution"].clone() }
    }
}
