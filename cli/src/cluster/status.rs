//! `weft cluster status`: one line for each sidecar.

use std::{collections::HashMap, net::IpAddr};

use anyhow::Context as _;
use serde::Serialize;
use serde_json::json;
use weft_control::kubernetes::names::NAMESPACE;

use super::{
    api::Api,
    check,
    control_plane::{self, Endpoint, Sidecar},
    pods::{self, Pod},
};
use crate::{
    console::{note, say},
    terminal,
};

/// How many endpoints of a sidecar are shown on a line.
const SHOWN: usize = 3;

/// The longest cell of the table, in characters. `--json` has all of it.
const CELL_CHARS: usize = 100;

/// All sidecars.
pub(super) struct Table {
    rows: Vec<Row>,
    is_cut: bool,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
struct Row {
    /// `NAMESPACE/NAME`; none for a sidecar outside of the cluster.
    pod: Option<String>,
    address: Option<IpAddr>,
    spiffe_id: String,
    /// The sidecar's; it is not known outside of the cluster.
    version: Option<String>,
    ready: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    not_ready: Option<String>,
    connected: bool,
    connected_seconds: u64,
    /// Whether it has been sent all that it follows.
    in_sync: bool,
    follows: u64,
    unsent: u64,
    endpoints: Vec<Endpoint>,
}

/// # Errors
/// The pods, or what the control plane knows, can't be read.
pub(super) async fn read(api: &Api, namespace: Option<&str>) -> anyhow::Result<Table> {
    let namespaces = check::namespaces(api).await.context("the namespaces can't be listed")?;
    let trust_domain = check::trust_domain(api).await?;
    let pods = pods::all(api, &namespaces).await.context("the pods can't be listed")?;
    let sidecars = control_plane::sidecars(api).await.with_context(|| {
        format!("the control plane can't be asked, which needs a right to get services/proxy in {NAMESPACE}")
    })?;
    Ok(Table { rows: rows(&pods.items, sidecars, &trust_domain, namespace), is_cut: pods.is_cut })
}

fn rows(pods: &[Pod], sidecars: Vec<Sidecar>, trust_domain: &str, namespace: Option<&str>) -> Vec<Row> {
    let mut known: HashMap<(IpAddr, String), Sidecar> =
        sidecars.into_iter().map(|sidecar| ((sidecar.address, sidecar.spiffe_id.clone()), sidecar)).collect();
    let mut rows = Vec::new();
    for pod in pods.iter().filter(|pod| pod.has_sidecar()) {
        let pods::Sidecar::Has(version) = &pod.sidecar else { continue };
        let spiffe_id = check::identity(pod, trust_domain).unwrap_or_default();
        let sidecar = pod.ip.and_then(|ip| known.remove(&(ip, spiffe_id.clone())));
        if namespace.is_some_and(|namespace| namespace != pod.namespace) {
            continue;
        }
        rows.push(Row {
            pod: Some(pod.full_name()),
            address: pod.ip,
            version: Some(version.clone()),
            ready: pod.not_ready.is_none(),
            not_ready: pod.not_ready.clone(),
            ..Row::of(spiffe_id, sidecar)
        });
    }
    if namespace.is_none() {
        let others = known.into_iter().map(|((address, id), sidecar)| {
            let ready = sidecar.endpoints.iter().any(|endpoint| endpoint.health == "up");
            Row { address: Some(address), ready, ..Row::of(id, Some(sidecar)) }
        });
        rows.extend(others);
    }
    rows.sort_by(|a, b| (a.pod.is_none(), &a.pod, &a.address).cmp(&(b.pod.is_none(), &b.pod, &b.address)));
    rows
}

impl Row {
    fn of(spiffe_id: String, sidecar: Option<Sidecar>) -> Self {
        let is_known = sidecar.as_ref().is_some_and(|sidecar| sidecar.connected);
        let (connected_seconds, follows, unsent, endpoints) =
            sidecar.map(|of| (of.connected_seconds, of.follows, of.unsent, of.endpoints)).unwrap_or_default();
        Self {
            pod: None,
            address: None,
            spiffe_id,
            version: None,
            ready: false,
            not_ready: None,
            connected: is_known,
            connected_seconds,
            in_sync: is_known && unsent == 0,
            follows,
            unsent,
            endpoints,
        }
    }

    fn cells(&self) -> [String; 7] {
        let id = self.spiffe_id.clone();
        let name = self.pod.clone().or_else(|| Some(format!("{} ({id})", self.address?))).unwrap_or(id);
        let sync = match (self.connected, self.unsent) {
            (false, _) => "no".to_owned(),
            (true, 0) => "yes".to_owned(),
            (true, unsent) => format!("{unsent} to go"),
        };
        let endpoints = self.endpoints.iter().take(SHOWN).map(|endpoint| match endpoint.silent {
            true => format!("{} (silent)", endpoint.service),
            false if endpoint.health == "up" => endpoint.service.clone(),
            false => format!("{} ({})", endpoint.service, endpoint.health),
        });
        let mut endpoints: Vec<String> = endpoints.collect();
        if self.endpoints.len() > SHOWN {
            endpoints.push(format!("{} more", self.endpoints.len() - SHOWN));
        }
        let connected = if self.connected { ago(self.connected_seconds) } else { "no".to_owned() };
        let cells = [
            name,
            self.version.clone().unwrap_or_else(|| "-".to_owned()),
            if self.ready { "yes".to_owned() } else { "no".to_owned() },
            connected,
            sync,
            self.follows.to_string(),
            if endpoints.is_empty() { "-".to_owned() } else { endpoints.join(", ") },
        ];
        cells.map(|cell| shortened(&terminal::line(&cell)))
    }
}

/// As the owners of pods choose some of the texts, and all rows are as wide as the widest.
fn shortened(cell: &str) -> String {
    match cell.char_indices().nth(CELL_CHARS) {
        Some((end, _)) => format!("{}…", &cell[..end]),
        None => cell.to_owned(),
    }
}

fn ago(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3_600 => format!("{}m", seconds / 60),
        3_600..86_400 => format!("{}h", seconds / 3_600),
        _ => format!("{}d", seconds / 86_400),
    }
}

impl Table {
    /// # Errors
    /// It can't be printed.
    pub(super) fn print(&self, is_json: bool) -> anyhow::Result<()> {
        if self.is_cut {
            note(format_args!("weft: there are more pods than the {} that are shown", super::api::MOST));
        }
        if is_json {
            say(terminal::json(&serde_json::to_string_pretty(&json!({ "sidecars": self.rows }))?))?;
            return Ok(());
        }
        let head = ["POD", "VERSION", "READY", "CONNECTED", "IN SYNC", "FOLLOWS", "ENDPOINT OF"].map(str::to_owned);
        let lines: Vec<[String; 7]> = std::iter::once(head).chain(self.rows.iter().map(Row::cells)).collect();
        let mut widths = [0; 7];
        for line in &lines {
            for (width, cell) in widths.iter_mut().zip(line) {
                *width = (*width).max(cell.chars().count());
            }
        }
        for line in &lines {
            let cells = line.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}"));
            say(cells.collect::<Vec<_>>().join("  ").trim_end())?;
        }
        let reasons = self.rows.iter().filter_map(|row| Some((row.pod.as_ref()?, row.not_ready.as_ref()?)));
        for (pod, why) in reasons {
            say(terminal::line(&format!("{pod} is not ready: {why}")))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::{super::tests::pod, *};

    #[test]
    fn a_pod_and_its_sidecar_are_one_line() {
        let sidecar = |name: &str, ip: [u8; 4], unsent| Sidecar {
            address: ip.into(),
            spiffe_id: format!("spiffe://weft.test/ns/shop/sa/{name}"),
            connected: true,
            connected_seconds: 90,
            follows: 2,
            unsent,
            endpoints: vec![Endpoint { service: format!("{name}.shop"), health: "up".to_owned(), silent: false }],
        };
        let pods = [pod("b", [10, 0, 0, 2]), pod("a", [10, 0, 0, 1]), pod("c", [10, 0, 0, 3])];
        let known =
            || vec![sidecar("a", [10, 0, 0, 1], 0), sidecar("b", [10, 0, 0, 2], 3), sidecar("host", [192, 0, 2, 1], 0)];
        let all = rows(&pods, known(), "weft.test", None);
        let lines: Vec<String> = all.iter().map(|row| row.cells().join(" ")).collect();
        assert_eq!(
            lines,
            [
                "shop/a 1 yes 1m yes 2 a.shop",
                "shop/b 1 yes 1m 3 to go 2 b.shop",
                "shop/c 1 yes no no 0 -",
                "192.0.2.1 (spiffe://weft.test/ns/shop/sa/host) - yes 1m yes 2 host.shop",
            ]
        );
        assert!(rows(&pods, known(), "weft.test", Some("till")).is_empty());
        assert_eq!(rows(&pods, known(), "weft.test", Some("shop")).len(), 3);
    }
}
