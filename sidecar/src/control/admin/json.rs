//! The sidecar's state as JSON.

use serde_json::{Value, json};
use weft_contracts::weft::{
    admin::v1::{BreakerState, EndpointState, Limit, LiveCall, Log, Memory, Setting, State, WatchedService, Worker},
    policy::v1 as policy,
};

/// Follows protobuf's JSON mapping, except that all fields are always present.
pub(super) fn of(state: &State) -> Value {
    json!({
        "service": state.service,
        "identity": state.identity.as_ref().map(|identity| json!({
            "spiffeId": identity.spiffe_id,
            "notAfter": identity.not_after.as_ref().map(ToString::to_string),
        })),
        "localHealth": state.local_health().as_str_name(),
        "controlPlaneConnected": state.control_plane_connected,
        "services": state.services.iter().map(service_json).collect::<Vec<_>>(),
        "version": state.version,
        "uptime": duration_json(state.uptime.as_ref()),
        "unreadyReason": state.unready_reason,
        "calls": state.calls.as_ref().map(|calls| json!({
            "total": calls.total,
            "oldest": calls.oldest.iter().map(call_json).collect::<Vec<_>>(),
        })),
        "limits": state.limits.iter().map(limit_json).collect::<Vec<_>>(),
        "configuration": state.configuration.iter().map(setting_json).collect::<Vec<_>>(),
        "log": state.log.as_ref().map(log),
        "memory": state.memory.as_ref().map(memory_json),
        "workers": state.workers.iter().map(worker_json).collect::<Vec<_>>(),
    })
}

fn call_json(call: &LiveCall) -> Value {
    json!({
        "direction": call.direction().as_str_name(),
        "service": call.service,
        "method": call.method,
        "peer": call.peer,
        "endpoint": call.endpoint,
        "address": call.address,
        "progress": call.progress().as_str_name(),
        "age": duration_json(call.age.as_ref()),
        "deadlineLeft": duration_json(call.deadline_left.as_ref()),
        "requestBytes": call.request_bytes.to_string(),
        "responseBytes": call.response_bytes.to_string(),
        "tries": call.tries,
        "worker": call.worker,
    })
}

fn limit_json(limit: &Limit) -> Value {
    json!({
        "name": limit.name,
        "value": limit.value,
        "why": limit.why,
        "use": limit.r#use.as_ref().map(|use_| json!({
            "now": use_.now.to_string(),
            "of": use_.of.to_string(),
            "highest": use_.highest.map(|highest| highest.to_string()),
        })),
        "timesReached": limit.times_reached.map(|times| times.to_string()),
    })
}

fn setting_json(setting: &Setting) -> Value {
    json!({
        "name": setting.name,
        "value": setting.value,
        "origin": setting.origin().as_str_name(),
        "variable": setting.variable,
    })
}

/// The log filter.
pub(super) fn log(log: &Log) -> Value {
    json!({
        "filter": log.filter,
        "filterAtStart": log.filter_at_start,
        "left": duration_json(log.left.as_ref()),
    })
}

fn memory_json(memory: &Memory) -> Value {
    json!({
        "resident": memory.resident.as_ref().map(|resident| json!({
            "residentBytes": resident.resident_bytes.to_string(),
            "proportionalBytes": resident.proportional_bytes.to_string(),
            "anonymousBytes": resident.anonymous_bytes.to_string(),
            "fileBytes": resident.file_bytes.to_string(),
            "swappedBytes": resident.swapped_bytes.to_string(),
            "peakBytes": resident.peak_bytes.to_string(),
        })),
        "accounts": memory.accounts.iter().map(|account| json!({
            "name": account.name,
            "bytes": account.bytes.to_string(),
            "what": account.what,
        })).collect::<Vec<_>>(),
        "holders": memory.holders.iter().map(|holder| json!({
            "direction": holder.direction().as_str_name(),
            "peer": holder.peer,
            "bytes": holder.bytes.to_string(),
        })).collect::<Vec<_>>(),
    })
}

fn worker_json(worker: &Worker) -> Value {
    json!({
        "index": worker.index,
        "answered": worker.answered,
        "calls": worker.calls,
        "connectionsAccepted": worker.connections_accepted,
        "connectionsMade": worker.connections_made,
    })
}

fn service_json(service: &WatchedService) -> Value {
    json!({
        "name": service.name,
        // 64-bit numbers are strings in protobuf's JSON.
        "version": service.version.map(|version| json!({
            "epoch": version.epoch.to_string(),
            "counter": version.counter.to_string(),
        })),
        "endpoints": service.endpoints.iter().map(endpoint_json).collect::<Vec<_>>(),
        "breaker": service.breaker.as_ref().map(breaker_json),
        "policy": service.policy.as_ref().map(policy_json),
        "age": duration_json(service.age.as_ref()),
        "complete": service.complete,
        "unused": duration_json(service.unused.as_ref()),
    })
}

fn endpoint_json(endpoint: &EndpointState) -> Value {
    json!({
        "id": endpoint.id,
        "address": endpoint.address,
        "spiffeId": endpoint.spiffe_id,
        "health": endpoint.health().as_str_name(),
        "callsInFlight": endpoint.calls_in_flight,
        "connections": endpoint.connections,
        "breaker": endpoint.breaker.as_ref().map(breaker_json),
        "shunned": endpoint.shunned,
        "silent": endpoint.silent,
    })
}

fn breaker_json(breaker: &BreakerState) -> Value {
    json!({
        "state": breaker.state().as_str_name(),
        "calls": breaker.calls,
        "failures": breaker.failures,
        "consecutiveFailures": breaker.consecutive_failures,
        "timesOpened": breaker.times_opened.to_string(),
        "callsRefused": breaker.calls_refused.to_string(),
        "slowCalls": breaker.slow_calls,
    })
}

fn policy_json(policy: &policy::ServicePolicy) -> Value {
    json!({
        "contracts": policy.contracts.iter().map(|contract| json!({
            "name": contract.name,
            "methods": contract.methods.iter().map(method_json).collect::<Vec<_>>(),
        })).collect::<Vec<_>>(),
        "breaker": policy.breaker.as_ref().map(|breaker| json!({
            "consecutiveFailures": breaker.consecutive_failures,
            "failureRatio": breaker.failure_ratio,
            "minimumCalls": breaker.minimum_calls,
            "window": duration_json(breaker.window.as_ref()),
            "openFor": duration_json(breaker.open_for.as_ref()),
            "probes": breaker.probes,
            "origin": breaker.origin().as_str_name(),
            "slowCall": breaker.slow_call.as_ref().map(|slow_call| json!({
                "longerThan": duration_json(slow_call.longer_than.as_ref()),
                "ratio": slow_call.ratio,
            })),
        })),
        "methodPolicy": Some(policy.method_policy.as_str()).filter(|name| !name.is_empty()),
    })
}

fn method_json(method: &policy::Method) -> Value {
    json!({
        "name": method.name,
        "clientStreaming": method.client_streaming,
        "serverStreaming": method.server_streaming,
        "timeout": method.timeout.as_ref().map(|timeout| json!({
            "value": duration_json(timeout.value.as_ref()),
            "origin": timeout.origin().as_str_name(),
        })),
        "idempotency": method.idempotency().as_str_name(),
        "fallback": method.fallback.as_ref().map(fallback_json),
        "hedge": method.hedge.as_ref().map(|hedge| json!({
            "after": duration_json(hedge.after.as_ref()),
            "origin": hedge.origin().as_str_name(),
        })),
    })
}

fn fallback_json(fallback: &policy::Fallback) -> Value {
    let (elsewhere, answer) = match &fallback.to {
        Some(policy::fallback::To::Elsewhere(elsewhere)) => (Some(elsewhere), None),
        // As it is in the contract, which is what somebody wants to read.
        Some(policy::fallback::To::Answer(answer)) => (None, Some(json!({ "json": answer.json }))),
        None => (None, None),
    };
    json!({
        "elsewhere": elsewhere.map(|to| json!({ "service": to.service, "method": to.method })),
        "answer": answer,
        "origin": fallback.origin().as_str_name(),
    })
}

fn duration_json(duration: Option<&prost_types::Duration>) -> Option<String> {
    duration.map(ToString::to_string)
}

#[cfg(test)]
mod tests {
    use weft_contracts::weft::admin::v1::{live_call::Direction, memory::Holder};

    use super::*;

    #[test]
    fn who_holds_memory_is_in_the_json() {
        let holder = Holder { direction: Direction::Inbound.into(), peer: "orders.shop".into(), bytes: 1 << 53 };
        let memory = Memory { holders: vec![holder], ..Memory::default() };
        let state = State { memory: Some(memory), ..State::default() };
        let expected =
            json!([{ "direction": "DIRECTION_INBOUND", "peer": "orders.shop", "bytes": "9007199254740992" }]);
        assert_eq!(of(&state)["memory"]["holders"], expected);
    }
}
