use futures_util::FutureExt as _;
use tokio::{
    task::{LocalSet, yield_now},
    time::advance,
};
use weft_mesh::policy::{AccessRules, DefaultAccess, FromObjects, MeshAccess};
use weft_wire::{Headers, Limits, Name};

use super::*;
use crate::{
    message::failure::ERROR_HEADER,
    shared::{contracts::Contracts, survey::Live as _},
    trial::{
        self,
        mesh::{body, grpc, run},
        peer::{self, Calls, connected_to, post},
        service::connect,
    },
};

#[tokio::test(start_paused = true)]
async fn a_call_that_is_not_admitted_is_answered_and_recorded() {
    LocalSet::new()
        .run_until(async {
            let worker = trial::worker_with_flags(&["--service", "users", "--app", "127.0.0.1:1"]);
            let (mut client, calls, _serving) = peer::connected(&worker, &Rc::default(), false);
            let mut tunnel = Headers::new();
            tunnel.set(Name::METHOD, b"CONNECT");
            tunnel.set(Name::AUTHORITY, b"users.shop:80");
            client.call(&tunnel, 0);
            client.call(&post(), 0);
            client.pass(1).await.expect("the connection lives");
            let [tunnel, call] = [0, 1].map(|number| Rc::clone(&calls.borrow()[number]));
            let id = "spiffe://weft.local/ns/shop/sa/orders".parse().unwrap();
            let proxy = Proxy::new(Rc::clone(&worker));
            let peer = Peer::new(&proxy, id, ([127, 0, 0, 1], 1).into(), &Rc::default(), Vec::new());
            let local = proxy.local.as_ref().expect("it fronts a service");
            assert!(admit(&peer, local, &call, Wants::of(&call)).is_ok());
            carry(Rc::clone(&peer), Rc::clone(&tunnel)).await;
            assert!(tunnel.is_over() && !call.is_over());
            client.pass(1).await.expect("the connection lives");
            assert_eq!(client.heads[0].get(ERROR_HEADER), Some(&b"permission-denied"[..]));
            let rows = worker.shared.metrics.labels();
            assert!(rows.values().all(|labels| labels.peer == "orders.shop"), "{rows:?}");
            assert_eq!(rows.len(), 1, "both are counted, as calls of no known method");
            call.reset(Code::CANCEL);
            drop(calls.take());
        })
        .await;
}

/// Until the control plane has told who may call, nobody may. The caller's sidecar may try another endpoint.
#[test]
fn nobody_is_let_in_before_the_rules_are_known_and_running_calls_are_judged_again() {
    run(async {
        let mut local = Local::new(|_| {}).await;
        let worker = Rc::clone(&local.way.proxy.worker);
        let service = worker.shared.local_service.clone().expect("it fronts a service");
        let deny = |is_audit| MeshAccess {
            default: DefaultAccess::Mesh { is_allowed: false },
            is_audit,
            from: FromObjects { default: "MeshDefaults default".into(), ..FromObjects::default() },
            ..MeshAccess::default()
        };
        let set = |access| worker.shared.local_terms.set_access(AccessRules::new(&service, access));

        worker.shared.local_terms.forget_access();
        local.call(&grpc(), &body(10)).await;
        assert_eq!((local.calls[0].is_over(), local.error()), (true, Some(&b"service-full"[..])));

        assert!(set(deny(true)) && !set(deny(true)), "the same rules change nothing");
        worker.shared.local_terms.doubt_contracts();
        local.call(&grpc(), &body(10)).await;
        let refused = |local: &Local, place: usize| local.caller.heads[place].get(ERROR_HEADER).map(<[u8]>::to_vec);
        assert_eq!(refused(&local, 1), Some(b"service-full".to_vec()), "it was not asked for its contracts yet");
        worker.shared.local_terms.set_contracts(Contracts::default());
        local.call(&grpc(), &body(10)).await;
        let running = Rc::clone(local.calls.last().expect("it runs"));
        assert!(!running.is_over(), "rules that are only tried refuse nothing");
        set(deny(false));
        running.judge_again();
        local.settle().await;
        assert!(running.is_over());
        assert_eq!(refused(&local, 2), Some(b"permission-denied".to_vec()));
        let message = local.caller.heads[2].get(Name::GRPC_MESSAGE).map(<[u8]>::to_vec).unwrap_or_default();
        let message = String::from_utf8_lossy(&message).replace("%20", " ");
        assert!(message.contains("by the mesh's default (MeshDefaults default)"), "{message}");
        assert_eq!(worker.shared.metrics.not_allowed.load(Relaxed), 2, "one was only tried");
    });
}

/// A caller's sidecar, this one, and its local service, which speaks HTTP/2.
struct Local {
    caller: peer::Peer,
    service: peer::Peer,
    calls: Vec<Rc<Call>>,
    way: Rc<Peer>,
    begun: Calls,
}

impl Local {
    async fn new(limit: impl FnOnce(&mut Limits)) -> Self {
        let worker = trial::worker_with_flags(&["--service", "users", "--app", "127.0.0.1:1"]);
        let proxy = Proxy::new(Rc::clone(&worker));
        let id: SpiffeId = "spiffe://weft.local/ns/shop/sa/orders".parse().expect("it is one");
        let local = proxy.local.as_ref().expect("it fronts a service");
        let Connections::Http2(pools) = &local.connections else { panic!("it speaks HTTP/2") };
        let mut limits = Limits::clone(&worker.wire_limits.mesh);
        limit(&mut limits);
        let service = connect(&worker, &pools.of(&id), limits).await;
        let load = Rc::default();
        let way = Peer::new(&proxy, id, ([127, 0, 0, 1], 1).into(), &load, Vec::new());
        spawn_local(async move { worker.deadlines.run().await });
        let (caller, begun, _serving) = connected_to(&proxy.worker, &load, Rc::clone(&way) as _);
        let mut local = Self { caller, service, calls: Vec::new(), way, begun };
        local.settle().await;
        local
    }

    async fn call(&mut self, head: &Headers, body: &[u8]) {
        let stream = self.caller.core.open(head, false, 0).expect("there is room");
        self.caller.core.send_data(stream, body, true);
        self.settle().await;
    }

    async fn settle(&mut self) {
        for _ in 0..20 {
            self.caller.pump().expect("its connection lives");
            // It has nothing more to say when its connection is gone.
            let _ = self.service.pump();
            for call in self.begun.take() {
                carry(Rc::clone(&self.way), Rc::clone(&call)).await;
                self.calls.push(call);
            }
            yield_now().await;
        }
    }

    /// What the caller's sidecar is told.
    fn error(&self) -> Option<&[u8]> {
        self.caller.heads.first()?.get(ERROR_HEADER)
    }
}

/// A service that is full, or that is about to close the connection, has not processed the call. Its sidecar asks it
/// again before another endpoint is asked.
#[test]
fn a_call_that_the_local_service_refuses_is_sent_again_after_growing_pauses() {
    run(async {
        let mut local = Local::new(|_| {}).await;
        let (request, began) = (body(100), tokio::time::Instant::now());
        local.call(&grpc(), &request).await;
        let mut sent_at = Vec::new();
        while !local.calls[0].is_over() {
            assert!(began.elapsed() < Duration::from_secs(60), "it never ends");
            if let Some((stream, _)) = local.service.requests.pop() {
                assert!(std::mem::take(&mut local.service.body) == request, "it gets the whole request");
                sent_at.push(began.elapsed());
                local.service.core.reset(stream, Code::REFUSED_STREAM);
            }
            local.settle().await;
            advance(Duration::from_millis(1)).await;
        }
        let pauses: Vec<_> = sent_at.windows(2).map(|at| at[1] - at[0]).collect();
        assert_eq!(pauses.len(), limits::REFUSED_TRIES as usize);
        for (number, pause) in pauses.iter().enumerate() {
            let least = FIRST_PAUSE * ((1 << number) - 1);
            assert!((least..least + Duration::from_millis(10)).contains(pause), "{number}: {pause:?}");
        }
        local.settle().await;
        assert_eq!(local.error(), Some(&b"service-full"[..]), "another endpoint may be tried");
    });
}

/// Whether the caller's sidecar may try another endpoint depends on what it is told.
#[test]
fn the_callers_sidecar_is_told_how_the_local_service_failed() {
    // (what the service does, the error that its caller's sidecar sees, or else the code of a reset)
    type Case = (fn(&mut peer::Peer), Result<Code, &'static str>);
    let cases: [Case; 3] = [
        (peer::Peer::vanish, Err("connection-broke")),
        (
            |service| {
                let stream = service.requests[0].0;
                service.core.reset(stream, Code::INTERNAL_ERROR);
            },
            Ok(Code::INTERNAL_ERROR),
        ),
        (
            |service| {
                let stream = service.requests[0].0;
                let mut head = crate::trial::mesh::answer();
                head.append(Name::other("x-long"), &[b'x'; 80 << 10]);
                service.core.respond(stream, &head, true);
            },
            Err("answer-headers-too-large"),
        ),
    ];
    for (fails, expected) in cases {
        run(async {
            let mut local = Local::new(|_| {}).await;
            local.call(&grpc(), b"hello").await;
            fails(&mut local.service);
            local.settle().await;
            match expected {
                Err(error) => assert_eq!(local.error(), Some(error.as_bytes())),
                Ok(code) => assert_eq!(local.caller.resets.iter().map(|reset| reset.1).collect::<Vec<_>>(), [code]),
            }
            let call = &local.calls[0];
            assert!(call.is_over() && Rc::strong_count(call) == 1);
        });
    }
}

/// Some servers would close the connection, and with it end all other calls on it.
#[test]
fn a_head_that_is_longer_than_the_local_service_takes_is_not_sent() {
    run(async {
        let mut local = Local::new(|limits| limits.header_list_bytes = 1_000).await;
        let mut long = grpc();
        long.append(Name::other("x-long"), &[b'x'; 1_000]);
        local.call(&long, b"hello").await;
        assert!(local.service.requests.is_empty());
        assert_eq!(local.error(), Some(&b"headers-too-large"[..]));
    });
}

/// It is the caller's fault, so no other endpoint is asked and nothing is wrong with the service.
#[test]
fn a_call_that_the_local_service_has_no_form_for_is_malformed() {
    run(async {
        let mut local = Local::new(|_| {}).await;
        local.call(&grpc(), b"hello").await;
        let call = Rc::clone(&local.calls[0]);
        call.missed(Miss::Malformed("it has no form there".into()));
        local.settle().await;
        assert_eq!(local.error(), Some(&b"malformed"[..]));
        assert_eq!(local.service.resets.len(), 1, "the service need not go on with it");
        let shared = &call.worker.shared;
        assert!(shared.check_health_now.notified().now_or_never().is_none(), "nothing says that it is ill");
        assert!(call.is_over());
    });
}
