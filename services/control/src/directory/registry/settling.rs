//! Whether a missing service or endpoint does not exist, or may only not have announced itself yet.
//!
//! The registry settles [`limits::SETTLING_TIME`] after its start, or as soon as all services of the mesh have
//! announced their endpoints, if it knows how many there are.
//!
//! It settles once more after this process stood still ([`limits::STANDSTILL`]): stopped, or starved of CPU. Streams
//! that broke in that time may have broken because of it. So until then a broken stream does not make its member
//! silent.

use std::{collections::BTreeMap, mem, time::Duration};

use tokio::time::Instant;
use weft_mesh::{limits, names::ServiceName};

use super::{Event, Registry, member::Member};

#[derive(Debug)]
pub(super) struct Settling {
    at: Instant,
    is_settled: bool,
    /// How many endpoints each service has, for the services that have not announced all of them; `None` if that is not
    /// known.
    awaited: Option<BTreeMap<ServiceName, usize>>,
    /// It settles after a standstill and not after the start.
    stood_still: bool,
    /// When it last looked at the clock, and how much CPU time this process had used by then.
    looked: Instant,
    ran: Duration,
}

impl Settling {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            at: now + limits::SETTLING_TIME,
            is_settled: false,
            awaited: None,
            stood_still: false,
            looked: now,
            ran: cpu_time(),
        }
    }

    /// Whether it settles after a standstill.
    pub(super) fn stood_still(&self) -> bool {
        self.stood_still
    }
}

impl Registry {
    /// All services of the mesh, with the number of their endpoints: the registry settles as soon as all are there.
    pub(crate) fn await_all(&mut self, mesh: BTreeMap<ServiceName, usize>) {
        self.settling.awaited = Some(mesh);
    }

    /// True when a missing service does not exist; false while it may still announce itself.
    pub(crate) fn is_settled(&self) -> bool {
        self.settling.is_settled
    }

    /// Notices that this process stood still. Members could not be heard in that time, so it does not count as silence.
    pub(super) fn look_at_clock(&mut self, now: Instant) {
        let Settling { looked, ran, .. } = &mut self.settling;
        let passed = now.saturating_duration_since(*looked);
        let worked = cpu_time().saturating_sub(*ran);
        *looked = now;
        *ran += worked;
        if passed < limits::STANDSTILL {
            return;
        }
        // A busy process may also look at the clock late, and members can keep it busy.
        if worked > passed / 2 {
            return tracing::warn!(for_time = ?passed, "the control plane was too busy to look at the clock");
        }
        for member in self.services.values_mut().flat_map(|entry| entry.members.values_mut()) {
            member.heard += passed;
        }
        self.settling.at = now + limits::SETTLING_TIME;
        self.settling.is_settled = false;
        self.settling.stood_still = true;
        self.bump();
        tracing::warn!(for_time = ?passed, "the control plane stood still: it waits for its sidecars to announce again");
    }

    /// An endpoint of the service has joined: settles if no other is missing. After a standstill the former members are
    /// still there, present or not, so their number proves nothing.
    pub(super) fn settle_if_all_are_here(&mut self, service: &ServiceName, now: Instant) {
        let Some(awaited) = &mut self.settling.awaited else { return };
        let Some(endpoints) = awaited.get(service) else { return };
        let members = self.services.get(service).into_iter().flat_map(|entry| entry.members.values());
        if members.filter(|member| member.is_connected).count() < *endpoints {
            return;
        }
        awaited.remove(service);
        if awaited.is_empty() && !self.settling.is_settled && !self.settling.stood_still {
            self.settle(now);
        }
    }

    pub(super) fn settle_if_due(&mut self, now: Instant) {
        if !self.settling.is_settled && now >= self.settling.at {
            self.settle(now);
        }
    }

    fn settle(&mut self, now: Instant) {
        self.settling.is_settled = true;
        if mem::take(&mut self.settling.stood_still) {
            let is_lost = |member: &&Member| !member.is_connected;
            let lost: Vec<(ServiceName, String)> = self
                .services
                .iter()
                .flat_map(|(name, entry)| entry.members.values().filter(is_lost).map(move |member| (name, member)))
                .map(|(name, member)| (name.clone(), member.endpoint.id.clone()))
                .collect();
            for (service, endpoint) in lost {
                self.make_silent(&service, &endpoint, now);
            }
        }
        self.bump();
        self.events.push(Event::Settled);
    }
}

/// How much CPU time this process has used.
fn cpu_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::try_from(time).unwrap_or_default()
}
