//! Several control planes: one acts, and the others stand by.

use std::{
    sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    thread,
    time::Duration,
};

use serde_json::json;

use super::{
    LIMIT,
    cluster::{Cluster, pod},
    shop,
};

impl Cluster {
    /// The pod of the control plane that acts: the one to which the Service leads.
    fn leader(&self) -> Option<String> {
        let pods = ["-n", "weft", "get", "pods", "-l", "weft.dev/role=leader", "--field-selector=status.phase=Running"];
        let names = self.kubectl(&[&pods[..], &["-o", "jsonpath={.items[*].metadata.name}"]].concat());
        // Not two of them.
        let mut names = names.split_whitespace();
        names.next().filter(|_| names.next().is_none()).map(str::to_owned)
    }

    /// Waits until another control plane acts, and the mesh is what it was.
    fn until_another_acts(&self, before: &str) -> String {
        let mut leader = String::new();
        self.until("another control plane acts", LIMIT, || {
            leader = self.leader().filter(|leader| leader != before).ok_or_else(|| format!("{before} acts"))?;
            Ok(())
        });
        self.until("a call succeeds", LIMIT, || {
            self.call("shop", "keyboard", &["call", "shop.users.v1.Users/List", "{}"]).map(drop)
        });
        leader
    }

    /// With one control plane, or with a second one that stands by.
    fn install(&self, flags: &[&str]) {
        self.apply(&self.weft(&[&["install"], flags].concat(), ""));
        self.kubectl(&["-n", "weft", "rollout", "status", "deployment/control", "--timeout=240s"]);
    }
}

#[test]
fn another_control_plane_takes_over_and_pods_are_made_all_the_time() {
    let Some(cluster) = shop() else { return };
    let _alone = cluster.alone();
    cluster.install(&["--ha"]);
    let (is_over, made) = (AtomicBool::new(false), AtomicUsize::new(0));
    let making = || {
        let plain = pod("shop", "made-all-the-time", json!({}), json!({})).to_string();
        while !is_over.load(Relaxed) {
            let told = cluster.try_kubectl(&["create", "--dry-run=server", "-o", "yaml", "-f", "-"], &plain)?;
            if !told.contains("weft-sidecar") {
                return Err(told);
            }
            made.fetch_add(1, Relaxed);
            thread::sleep(Duration::from_millis(100));
        }
        Ok(())
    };
    let made_all = thread::scope(|scope| {
        let making = scope.spawn(making);
        // Each pod is replaced, one after the other.
        let first = cluster.leader().expect("one acts");
        cluster.kubectl(&["-n", "weft", "rollout", "restart", "deployment/control"]);
        cluster.kubectl(&["-n", "weft", "rollout", "status", "deployment/control", "--timeout=240s"]);
        cluster.until_another_acts(&first);
        is_over.store(true, Relaxed);
        making.join().expect("it does not panic")
    });
    made_all.unwrap_or_else(|error| panic!("after {} pods: {error}", made.load(Relaxed)));
    assert!(made.load(Relaxed) > 10);
    // It ends without a word: the Lease is taken when it has run out.
    let killed = cluster.leader().expect("one acts");
    cluster.kubectl(&["-n", "weft", "delete", "pod", &killed, "--grace-period=0", "--force"]);
    cluster.until_another_acts(&killed);
    cluster.install(&[]);
    cluster.until_another_acts("");
    // One that still ends could have acted until now, and the next tests would see another one begin.
    cluster.until("one control plane is left, and it acts", LIMIT, || {
        let pods = ["-n", "weft", "get", "pods", "-l", "app.kubernetes.io/name=control", "-o", "name"];
        let pods = cluster.kubectl(&pods);
        let left: Vec<&str> = pods.lines().filter_map(|pod| pod.strip_prefix("pod/")).collect();
        match (&left[..], cluster.leader()) {
            ([one], Some(leader)) if **one == leader => Ok(()),
            (_, leader) => Err(format!("{left:?}; {leader:?} acts")),
        }
    });
}
