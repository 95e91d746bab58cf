//! The one table of limits: everything that can grow has a bound here, with its reason.

use std::time::Duration;

/// A row of the table, for the docs and the admin page.
#[derive(Debug, Clone, Copy)]
pub struct Limit {
    /// The constant's name.
    pub name: &'static str,
    /// Its value with its unit.
    pub value: &'static str,
    /// What is bounded, why at this value, and what happens past it.
    pub why: &'static str,
}

/// How often a peer may do something: the burst, the number per second, and the number of useful frames that allow it
/// once more (0: useful frames do not count).
pub type Rate = (u32, u32, u32);

macro_rules! limits {
    ($($name:ident: $type:ty = $value:expr, $why:literal;)*) => {
        $(#[doc = $why] pub const $name: $type = $value;)*

        /// Every limit.
        pub const ALL: &[Limit] =
            &[$(Limit { name: stringify!($name), value: stringify!($value), why: $why },)*];
    };
}

limits! {
    STREAMS_PER_CONNECTION: u32 = 1_000,
        "Concurrent calls on a connection that a sidecar accepts. Past it, an HTTP/2 client waits or opens another \
         connection.";
    CONNECTIONS_PER_ENDPOINT: usize = 8,
        "Connections that one worker opens to one endpoint, and to the local service for the calls of one caller, when \
         the peer's stream limit is reached. Past it, calls wait until another ends.";
    BLOCKED_CONNECTIONS: usize = 24,
        "Additional connections to the local service for the calls of one caller, if the service does not read what it \
         was sent on the caller's other connections.";
    CALLS_QUEUED: usize = 10_000,
        "Calls that wait for room on a worker's connections to one endpoint, or to the local service for the calls of \
         one caller. Past it, a call fails with `overloaded`, or with `service-full` at the callee, or is tried at \
         another endpoint.";
    ROOM_WAIT: Duration = Duration::from_secs(30),
        "How long a call waits for room on a connection, or for a peer that does not read what it is sent, unless its \
         deadline is sooner. Then it fails as a call past CALLS_QUEUED does.";
    REFUSED_TRIES: u32 = 8,
        "How often a call is sent to the local service while that refuses its stream unseen, with growing pauses. Then \
         the caller's sidecar tries another endpoint.";
    CALLS_IN_FLIGHT: usize = 20_000,
        "Concurrent calls through a worker's outbound side, and as many through its inbound side. One callee \
         (outbound) or one peer (inbound) may have as many as all together leave free, so one alone gets half. Past \
         it, a call fails with `overloaded`, or with `service-full` at the callee.";
    CONNECTIONS_PER_SIDE: usize = 20_000,
        "Concurrent connections on a worker's outbound side, and as many from peers on its inbound side, where one \
         peer may have as many as all together leave free. Past it, a new one is closed at once and counted.";
    HANDSHAKES: usize = 1_024,
        "Connections to a worker's inbound side whose TLS handshake is not finished, so that their identity is not \
         known. Past it, a new one is accepted, and the oldest of the network with the most is closed.";
    HEADER_LIST_BYTES: u32 = 64 * 1024,
        "Size of a header list as counted by RFC 9113, section 6.5.2, and of an HTTP/1.1 head; `--header-list-bytes` \
         changes it. A call with a longer one fails with `headers-too-large`; other calls are not affected.";
    HEADER_LIST_ROOM: u32 = 8 * 1024,
        "What sidecars add to a header list: between sidecars it may be this much longer.";
    MEMORY_BYTES: usize = 1024 * 1024 * 1024,
        "What all connections of a sidecar hold together: bytes that were received and not passed on yet, and bytes \
         that wait to be written; `--memory` changes it. Half is for the inbound side and half for the outbound one, \
         and on each side one caller, or one callee, may hold as much as all together leave free: its share. Past its \
         share, its new calls fail (`overloaded`, or `service-full` at the callee), and its connections are not read \
         until what they hold has gone. From four times its share on, calls whose bytes wait for it are broken off.";
    UNCOUNTED_LIST_BYTES: usize = 4 * 1024,
        "A call's header lists up to this size do not count in MEMORY_BYTES, as CALLS_IN_FLIGHT bounds them. A longer \
         one counts for the caller until the call ends.";
    PAUSED_TIME: Duration = Duration::from_secs(120),
        "A connection of another sidecar that is not read, because its peer holds its share of MEMORY_BYTES, ends \
         when none of its bytes were passed on for this long: otherwise nobody would notice that its calls were given \
         up.";
    STREAM_WINDOW_BYTES: u32 = 256 * 1024,
        "What one call may have in flight before its reader has taken it: bounds the memory for a slow reader.";
    CONNECTION_WINDOW_BYTES: u32 = 4 * 1024 * 1024,
        "What all calls of a connection may have in flight.";
    CONNECTION_BUFFER_BYTES: usize = 16 * 1024 * 1024,
        "What the calls on another sidecar's connection may hold back together before a slow call holds back the \
         others: up to this, the connection's window is given back at once. On connections that carry several callers' \
         calls, none holds back the others: MEMORY_BYTES bounds what they hold, for each caller.";
    SEND_BUFFER_BYTES: usize = 256 * 1024,
        "What a connection may have ready for a peer that does not read. Past it, no more DATA is framed for the peer, \
         and nothing is read from it.";
    CONTROL_OUTPUT_BYTES: usize = 64 * 1024,
        "Acknowledgements and resets that a peer has caused and does not read. Past it, nothing is read from the peer.";
    MAX_FRAME_BYTES: u32 = 16 * 1024,
        "The largest HTTP/2 frame that is accepted: the protocol's default.";
    HEADER_BLOCK_FRAMES: u32 = 16,
        "CONTINUATION frames in one header block from another sidecar, or as many as `--header-list-bytes` needs. Past \
         it, the connection ends (CVE-2024-27316).";
    HEADER_BLOCK_FRAMES_LOCAL: u32 = 1_024,
        "The same from the local service and its clients: 16 MiB. A header list over HEADER_LIST_BYTES fails only its \
         own call, and for that it has to be read to its end.";
    HPACK_TABLE_BYTES: u32 = 4 * 1024,
        "HPACK's dynamic table, in each direction: the protocol's default.";
    FLOOD_TIME: Duration = Duration::from_secs(10),
        "A peer that exceeds one of the rates below is slowed down: it is read later. If it goes on for this long, its \
         connection is drained: its calls end, and others use a new connection. A client that goes on for as long \
         again is disconnected (ENHANCE_YOUR_CALM). A service is never disconnected, as the calls on its connection \
         belong to others.";
    LOCAL_ROOM: u32 = 10,
        "The local service and its clients may exceed the rates below by this factor, as they are not strangers. This \
         does not hold for CANCELS and SMALL_DATA, which are far above honest use already.";
    CANCELS: Rate = (20_000, 20_000, 1),
        "Calls that a peer may cancel before they are answered, and one more for each call that is answered. Past it, \
         the peer is slowed down (CVE-2023-44487). A cancelled call costs as much as any other, so the bound is far \
         above honest use.";
    RESETS_OF_CALM_SERVICE: u32 = 100,
        "Calls that may be cancelled on a connection to a service that has once ended a connection with \
         ENHANCE_YOUR_CALM, as Netty's servers do after 200 cancelled calls in 30 s. Then another connection replaces \
         it, so that the calls of others go on.";
    STREAM_ERRORS: Rate = (1_024, 128, 1),
        "Streams that a peer's protocol errors may make us reset, and one more for each call that is answered. Past \
         it, the peer is slowed down (RUSTSEC-2024-0003).";
    PINGS: Rate = (1_000, 1_000, 1),
        "PINGs that a peer may send, and one more for each useful frame. Past it, the peer is slowed down \
         (CVE-2019-9512). gRPC sends one with each DATA frame to estimate the bandwidth.";
    SETTINGS: Rate = (50, 10, 16),
        "SETTINGS frames that a peer may send, and one more for 16 useful frames, as each may change the window of \
         every stream. Past it, the peer is slowed down (CVE-2019-9515).";
    EMPTY_FRAMES: Rate = (10_000, 1_000, 1),
        "Frames without effect (empty DATA, PRIORITY, WINDOW_UPDATE, unknown ones) that a peer may send, and one more \
         for each useful frame and two more for each DATA frame that is sent. Past it, the peer is slowed down \
         (CVE-2019-9518).";
    SMALL_DATA: Rate = (50_000, 20_000, 1),
        "DATA frames of fewer than 5 bytes, which is less than any gRPC message, and one more for each useful frame. \
         Past it, the peer is slowed down. Between sidecars it is ten times as many: many callers share a connection, \
         and a single byte of opaque TCP is such a frame, too. What a service answers is not counted.";
    HPACK_TABLE_CHANGES: Rate = (1_000, 100, 1),
        "How often a peer may change the size of its HPACK table, and once more for each useful frame. Past it, the \
         peer is slowed down.";
    INTERIM_ANSWERS: u32 = 100,
        "Interim answers (1xx) to one request, which no window bounds. Past it, the call fails.";
    SOCKET_BUFFER_BYTES: usize = 64 * 1024,
        "What a connection of HTTP/1.1 or opaque TCP may have in flight in each direction before its sender is held \
         back.";
    HTTP1_CHUNK_LINE_BYTES: usize = 256,
        "The line before an HTTP/1.1 chunk, with its extensions. A longer one ends the connection.";
    HTTP1_TRAILER_BYTES: usize = 16 * 1024,
        "An HTTP/1.1 trailer section. A longer one ends the connection.";
    LINGER_BYTES: u64 = 64 * 1024 * 1024,
        "The rest of a request that is answered early, by its content-length: it is read and discarded, and the \
         connection is kept. If more is left, the answer has `Connection: close`.";
    LINGER_TIME: Duration = Duration::from_secs(30),
        "How long the rest of a request that was answered early may take, as in nginx. Then the connection is closed. \
         If it were closed sooner, the client might not see the answer.";
    CLOSE_TIME: Duration = Duration::from_secs(2),
        "For a client to close an HTTP/1.1 connection after it was told that the connection closes.";
    UNREAD_TIME: Duration = Duration::from_secs(30),
        "How long a peer over HTTP/1.1 or opaque TCP may read nothing of the last bytes that it is sent, when no call \
         is left on its connection. Then the connection is aborted. While a call runs, a slow reader only holds back \
         its own sender.";
    HALF_CLOSED_TIME: Duration = Duration::from_secs(30),
        "How long a call waits for its answer when its HTTP/1.1 client has closed its side: the client may be waiting \
         or gone, which only sending shows. Then the call is cancelled and the connection closed. Each part of an \
         answer that is sent extends the time.";
    IDLE_HTTP1_CONNECTION: Duration = Duration::from_secs(4),
        "An idle connection to an HTTP/1.1 service is closed after this time, before the service does it: many close \
         theirs after 5 s.";
    HTTP1_IDLE_CONNECTIONS: usize = 4_096,
        "Idle connections that a worker keeps to an HTTP/1.1 service. The one used last is used first, and one that is \
         idle for 4 s is closed, so a worker keeps as many as were busy at once lately. Past it, a connection that \
         becomes idle is closed.";
    HTTP1_FRESH: Duration = Duration::from_secs(1),
        "A request to an HTTP/1.1 service that may not be sent twice (a POST, or one whose body is still coming) takes \
         an idle connection only if it is idle for less than this, or else a new one: the service may be closing an \
         older one just now, and the request would be lost with it.";
    HTTP1_CONNECTS: usize = 8,
        "Connections to an HTTP/1.1 service that a worker makes at the same time. Other calls wait, and use a \
         connection that becomes idle in the meantime, so a service is not asked for connections faster than it \
         accepts them.";
    HTTP1_CALLS_WAITING: usize = 10_000,
        "Calls of a worker that wait for a connection to an HTTP/1.1 service. Peers take turns, and one may have as \
         many as all together leave free. Past it, a call fails with `service-full`, or is tried at another endpoint.";
    HTTP1_DRAIN_IDLE: Duration = Duration::from_millis(500),
        "How long a client's idle HTTP/1.1 connection is kept when the sidecar stops, as a request may be on its way.";
    HTTP2_TIMEOUT: Duration = Duration::from_secs(10),
        "For a peer's HTTP/2 preface and SETTINGS, and for its acknowledgement of ours. Then its connection is closed.";
    IDLE_PING_INTERVAL: Duration = Duration::from_secs(20),
        "A PING is sent on a connection on which nothing was received for this long.";
    RESET_STREAMS_KEPT: usize = 64,
        "Streams that are remembered after we reset them, to tell late frames from errors.";
    REPLAY_BYTES_PER_CALL: usize = 16 * 1024,
        "The part of a request's body that is kept so that the call can be retried. A call with a longer body is not \
         retried once it was sent.";
    REPLAY_BYTES: usize = 16 * 1024 * 1024,
        "Request bodies that a worker keeps for all calls of its outbound side, and as many for its inbound side. One \
         callee (outbound) or one peer (inbound) may have as much kept as all together leave free, so one alone gets \
         half. Past it, a call with a body is not retried once it was sent. Bodies that wait to be sent for the first \
         time are bounded by windows and by MEMORY_BYTES.";
    TRIES: u32 = 2,
        "The most times that a call is sent to one service, a hedge included.";
    CALLS_PER_HEDGE: u32 = 10,
        "Calls of hedged methods that allow one hedge, counted for each worker and service: so a service in trouble gets \
         at most a tenth more calls. If there were fewer, and no hedge is saved (HEDGES_SAVED), a call waits for its first \
         try alone.";
    HEDGES_SAVED: u32 = 10,
        "Hedges that a worker may save up for one service while none is needed. It begins with as many.";
    DETECT_TIMEOUT: Duration = Duration::from_secs(60),
        "For the first bytes of a client on the outbound port, also for a redirected connection to an HTTP service, \
         and for an HTTP/1.1 head, as in nginx, Apache and Node. Then the connection is closed.";
    HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5),
        "For a TLS handshake with its certificate checks, on either side.";
    CONNECT_TIMEOUT: Duration = Duration::from_secs(1),
        "For a TCP connection to an endpoint: the mesh is near.";
    LOCAL_CONNECT_TIME: Duration = Duration::from_secs(30),
        "For a TCP connection to a local service that is slow to accept it; a call waits no longer than its deadline. \
         Then the caller's sidecar tries another replica. A connection that is refused fails at once.";
    OUTSIDE_CONNECT_TIMEOUT: Duration = Duration::from_secs(10),
        "For a TCP connection to a destination outside the mesh, which may be far away.";
    DISCOVERY_WAIT: Duration = Duration::from_secs(3),
        "How long a call waits for the first snapshot of its service.";
    OUTSIDE_ADDRESSES: usize = 4_096,
        "Addresses outside the mesh that a worker remembers. Past it, the one that was confirmed longest ago is \
         forgotten.";
    OUTSIDE_MEMORY: Duration = Duration::from_secs(5),
        "How long an address counts as outside the mesh before the control plane is asked again. While the control \
         plane does not answer, its last answer stays valid (OUTSIDE_KEPT); an address without an answer is refused.";
    OUTSIDE_KEPT: Duration = Duration::from_secs(24 * 3600),
        "How long the control plane's last answer about an address outside the mesh stays valid while it does not \
         answer: as long as a certificate lives (SVID_LIFE).";
    DISCOVERY_QUEUE: usize = 1_024,
        "Questions from workers that wait for discovery. Past it, a call fails with `overloaded`.";
    SERVICES_WATCHED: usize = 10_000,
        "Services that one sidecar, or one watch stream, follows. Past it, a new one is refused.";
    WATCH_QUEUE: usize = 256,
        "Changes that wait for a slow watcher. Past it, one new snapshot replaces them.";
    SNAPSHOT_FILE_BYTES: u64 = 64 * 1024 * 1024,
        "The file with the last good snapshots. A longer one is neither written nor read.";
    WATCH_IDLE: Duration = Duration::from_secs(600),
        "A service that was not called for this long is no longer watched.";
    HEARTBEAT_INTERVAL: Duration = Duration::from_secs(5),
        "How often a sidecar reports that it is alive.";
    ENDPOINT_EXPIRY: Duration = Duration::from_secs(90),
        "An endpoint is removed when nothing was heard of it for this long. If that holds for all endpoints of a \
         service, they are kept for longer (SERVICE_MEMORY).";
    SETTLING_TIME: Duration = Duration::from_secs(10),
        "For this long after its start the control plane reports no service as complete, and so nothing as missing, \
         as announcements are still coming in. It is shorter if `--services` says that it lists all services, and all \
         of them have announced themselves.";
    CONTROL_MESSAGE_BYTES: usize = 8 * 1024 * 1024,
        "The largest message between sidecar and control plane. Only descriptor sets are that large.";
    SPANS_QUEUED: usize = 8_192,
        "Spans that wait for export. Past it, they are dropped and counted.";
    SPAN_BATCH: usize = 512,
        "Spans in one export. A full batch is sent at once.";
    SPAN_BATCH_WAIT: Duration = Duration::from_secs(1),
        "How long a span waits at most for its batch to fill.";
    SPAN_EXPORT_TIMEOUT: Duration = Duration::from_secs(10),
        "For one export of spans to one target. Then the batch is lost for that target.";
    SPAN_FLUSH_TIMEOUT: Duration = Duration::from_secs(3),
        "For the spans that still wait when a process stops. Then they are lost.";
    LOG_LINES: u32 = 20,
        "Log lines of one kind that strangers, or failing calls, can cause in a second. More are left out and counted, \
         as they would fill a disk and hide other lines.";
    LOG_LINES_OF_IDENTITY: u32 = 20,
        "Lines in the control plane's log that one identity can cause in a second. More are left out and counted.";
    LOG_LINES_OF_ALL: u32 = 200,
        "The same for all identities together: as many as ten may cause.";
    LOG_BYTES_WAITING: usize = 1024 * 1024,
        "What waits of the log, or of spans on standard output, for a reader that is slow or has stopped. Past it, \
         lines are lost and counted (`weft_log_lines_lost_total`), and the log says in their place how many. No thread \
         waits for the reader.";
    LOG_FLUSH: Duration = Duration::from_secs(1),
        "For log lines that still wait when a process ends. Then it ends anyway.";
    DESCRIPTOR_SET_BYTES: usize = 8 * 1024 * 1024,
        "A serialized descriptor set. A larger one is refused, as no message to the control plane could carry it.";
    DESCRIPTOR_MEMORY_BYTES: usize = 80 * 1024 * 1024,
        "Memory of the parts and full names of a decoded descriptor set, which take several times their serialized \
         size. They are counted before it is decoded; with all that a decoder needs besides, a set may take four times as \
         much for a moment. Past it, the set is refused.";
    DESCRIPTOR_STEPS: usize = 10_000_000,
        "Comparisons that a decoder of a descriptor set makes: of the fields of each message with the messages in it, and \
         of extensions with the ranges of a message. They are counted before it is decoded. It is also the limit for the \
         values in the fixed answers of a service, each with the fields or values of the largest type. Past it, the set is \
         refused.";
    DESCRIPTOR_NAME_BYTES: usize = 2 * 1024,
        "A full name in descriptors, which all names within it repeat, or the name of a file. With a longer one, the set is \
         refused.";
    METRIC_SERIES: usize = 10_000,
        "Rows for calls in a sidecar's metrics, and services with rows for breakers. Past it, a call or a breaker is \
         counted under `_other`.";
    METRIC_SERIES_OF_A_SERVICE: usize = 1_000,
        "The rows among them of one called service. Past it, its methods are counted under `_other`.";
    HEALTH_CHECK_TIMEOUT: Duration = Duration::from_secs(1),
        "For one health check of the local service.";
    HEALTH_CHECK_INTERVAL: Duration = Duration::from_secs(1),
        "Between two health checks of the local service. A broken connection causes one at once.";
    STARTING_TIME: Duration = Duration::from_secs(20),
        "How long a service that was never up counts as starting. Until then its failed health checks, and calls that \
         find none of its endpoints up, are logged as DEBUG. Later they are logged like those of a service that went \
         down.";
    SVID_LIFE: Duration = Duration::from_secs(24 * 3600),
        "The lifetime of a workload's certificate. It is renewed after two thirds of it.";
    SVID_GRACE: Duration = Duration::from_secs(7 * 24 * 3600),
        "How long after its expiry an SVID's key still proves a sidecar's identity, and only to get a new SVID: so a \
         sidecar that was cut off for longer than its SVID lives can return by itself.";
    EXPIRY_LOOK: Duration = Duration::from_secs(1),
        "How often a worker looks for connections whose certificate has expired, so a connection lives at most this \
         much longer. It uses the wall clock, so a change of that is noticed as soon.";
    WORKER_STALL: Duration = Duration::from_secs(5),
        "If the thread of a worker, or of the control side, makes no progress for this long, the sidecar reports that \
         it is not ready and leaves discovery until the thread goes on. While the thread runs, only its own CPU time \
         counts, so neither a busy machine nor one that stood still counts as a fault.";
    WORKER_HANG: Duration = Duration::from_secs(30),
        "If it makes no progress for this long, the process ends with status 70, so that its supervisor starts a new \
         one.";
    KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(5),
        "Between two PINGs on a connection to the control plane.";
    KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(5),
        "For the answer to a PING. Then the connection counts as dead.";
    SERVICES_KNOWN: usize = 10_000,
        "Services that the control plane knows. Past it, the announcement of a new one is refused.";
    ENDPOINTS_PER_SERVICE: usize = 5_000,
        "Endpoints of one service. Past it, an announcement is refused.";
    CONTRACTS_PER_SERVICE: usize = 1_000,
        "Protobuf services that all endpoints of one service implement together. An announcement that adds more is \
         refused.";
    ADDRESSES_PER_ENDPOINT: usize = 64,
        "Addresses at which the service of one endpoint is called. An announcement with more is refused.";
    ADDRESSES_PER_SERVICE: usize = 10_000,
        "Addresses of all endpoints of one service together. An announcement that adds more is refused.";
    POLICY_BYTES: usize = 4 * 1024 * 1024,
        "The policy of one service in a message: with the most endpoints and addresses its snapshot still fits \
         CONTROL_MESSAGE_BYTES. Descriptors with a larger policy are refused.";
    FALLBACK_ANSWER_BYTES: usize = 16 * 1024,
        "An encoded fixed answer that a contract gives as a fallback. A larger one is refused: every sidecar that calls the \
         service keeps it.";
    FALLBACKS: u32 = 3,
        "How often a call goes on to another fallback. Past it, the call fails.";
    STANDS_IN_FOR: usize = 64,
        "Services that one contract stands in for. With more, the contract is refused.";
    POLICIES_PER_SERVICE: usize = 16,
        "Compiled policies of one service, for its versions and their sets of contracts. Past it, new descriptors are \
         refused until an older version has gone.";
    DESCRIPTORS_PER_SERVICE_BYTES: usize = 32 * 1024 * 1024,
        "Memory of the descriptor sets of one service together, with the index of their names and with their policies, so \
         that it can't take the room of all others. Past it, a new one is refused.";
    CLAIMS_PER_IDENTITY: usize = 2_000,
        "Contracts and virtual addresses that are pinned to one identity; each 64 bytes of a long name count as one \
         more. Past it, a new one is refused until others are released.";
    CLAIMS_PINNED: usize = 100_000,
        "Contracts and virtual addresses that are pinned in the control plane's store. Past it, a new one is refused.";
    CLAIMS_RELEASED: usize = 10_000,
        "Claims that are released, or granted, while the control plane does not run. Past it, more are refused.";
    CONTESTS_PER_IDENTITY: usize = 20,
        "Refused claims of one identity that are logged and listed. Further ones are only counted.";
    CONTESTS_LISTED: usize = 1_000,
        "Refused claims of all identities that are logged and listed. Further ones are only counted.";
    CONTESTS_TOLD: usize = 100,
        "Refused claims that one answer to an announcement names.";
    DENIALS_TOLD: usize = 20,
        "Kinds of calls that were not allowed, by caller, method and rule, which a sidecar tells the control plane for the \
         dashboard: the most frequent. The sidecar's metrics have all.";
    ADDRESS_MEMORY: Duration = SVID_LIFE,
        "How long the address of an endpoint that went without saying so stays with its service, unless another \
         endpoint announces it. For that long the endpoint may still hold a certificate and run where the control \
         plane cannot reach it, and calls to it must not leave in plain text.";
    ADDRESSES_DEPARTED: usize = 100_000,
        "Such addresses that the control plane remembers, at most ADDRESSES_PER_SERVICE of one service. Past it, the \
         service with the most loses its oldest.";
    HOSTS_PER_TOKEN: usize = 16,
        "Addresses and networks that one join token allows.";
    CONTRACT_NAME_BYTES: usize = 512,
        "The full name of a protobuf service. An announcement with a longer one is refused.";
    QUESTION_NAME_BYTES: usize = 1_024,
        "A name in a question to the control plane. A longer one is refused without a lookup.";
    HINT_NAME_BYTES: usize = 128,
        "The longest name that is compared with others to find the closest: the time grows with the square of its \
         length.";
    HINT_CANDIDATES: usize = 500,
        "Names that one unknown name is compared with to find the closest. If there are more, its neighbours in sorted \
         order.";
    HINTS_PER_SECOND: u32 = 5,
        "How often a watch stream, and all callers of Describe together, get the closest name. Further unknown names \
         are answered without it.";
    ENDPOINT_ID_BYTES: usize = 128,
        "The id of an endpoint. An announcement with a longer one is refused.";
    DESCRIPTORS_HELD_BYTES: usize = 256 * 1024 * 1024,
        "Memory of all descriptor sets in the control plane, with the index of their names and with their policies. Past \
         it, a new one is refused, and its service has the default policy.";
    HEALTH_PAUSE: Duration = Duration::from_secs(1),
        "Between two changes of an endpoint's health that watchers are told. If it changes more often, they are told \
         the latest.";
    ANNOUNCEMENTS: Rate = (5_000, 20, 0),
        "Announcements of one identity, over all its connections. The burst is as many as a service may have endpoints \
         (ENDPOINTS_PER_SERVICE), which all announce themselves again after a restart of the control plane. Further \
         ones are refused with RESOURCE_EXHAUSTED, as each takes time on the control plane's only thread.";
    SIGNATURES: Rate = (1_000, 20, 0),
        "Certificates that are signed for one identity. The burst is enough for many replicas that start together. \
         Further ones are refused with RESOURCE_EXHAUSTED, and sidecars ask again later. A signature takes a tenth of \
         a millisecond on the control plane's only thread.";
    TOKEN_REVIEWS: usize = 32,
        "Tokens of service accounts about which the control plane asks the API server at the same time. Others wait for \
         their turn.";
    TOKEN_REVIEWS_PER_NETWORK: usize = 2,
        "The same for tokens that come from one network (an IPv4 address, or 64 bits of IPv6), which is a pod's own \
         address. So those who send false tokens do not keep others waiting.";
    TOKEN_REVIEW_RATE: Rate = (250, 5, 0),
        "Reviews of tokens that one network may cause. The burst is enough for all pods of a node that start together \
         behind its address. Further ones are refused with RESOURCE_EXHAUSTED, so that a stranger can't have the control \
         plane flood the API server.";
    TOKEN_REVIEW_WAIT: Duration = Duration::from_secs(5),
        "For a review of a token, with the wait for its turn. Then the sidecar has to ask again.";
    TOKENS_REFUSED: usize = 1_024,
        "Tokens that the API server has refused and that are remembered, by their hash. Past it, the oldest one is \
         forgotten.";
    TOKEN_REFUSED_TIME: Duration = Duration::from_secs(10),
        "How long a refused token is remembered, and refused again without a review.";
    SERVICE_NEWS: Rate = (8, 1, 0),
        "How often the watchers of a service get all of it again, because its protocol, policy, contracts or addresses \
         have changed. If they change more often, watchers get the latest. One thread sends it to all watchers, and \
         each has to prepare it for calls.";
    ENDPOINT_NEWS: Rate = (250, 20, 0),
        "How often the watchers of a service are told at once that endpoints have changed. If they change more often, \
         watchers get the changes together, within a second: for each message they go through all endpoints of the \
         service.";
    ANNOUNCE_MESSAGES: u32 = 20,
        "Messages that are read from an announcing stream in a second. More wait.";
    WATCH_MESSAGES: u32 = 5_000,
        "Messages that are read from a watching stream in a second. More wait.";
    EXTENSION_NUMBERS: usize = 10_000,
        "Numbers of a message's extensions that one answer of the control plane has. More are left out.";
    STANDSTILL: Duration = Duration::from_secs(3),
        "If the control plane's clock, which it reads each second, jumps by this much, the control plane itself stood \
         still: streams that broke in that time say nothing about their endpoints.";
    SILENT_SHARE_PERCENT: usize = 50,
        "If more of a service's endpoints than this are only silent (the control plane lost their streams), callers go \
         on calling them, and failed calls decide.";
    SERVICE_MEMORY: Duration = Duration::from_secs(3600),
        "How long a service without endpoints is remembered: a call to it fails with `no-endpoint` and not with \
         `no-such-service`. Also, how long the last endpoints of a service are kept when nothing is heard of them.";
    ANNOUNCE_WAIT: Duration = Duration::from_secs(10),
        "For the first message of an announcing stream. Then the stream is ended.";
    CONTROL_CONNECTIONS: usize = 10_000,
        "Connections to the control plane from sidecars that have shown an SVID. An identity may have as many as all \
         together leave free, so one alone gets half. Its connections from one network (an IPv4 address, or 64 bits of \
         IPv6) may be as many as that leaves free, a third. So no identity takes the room of others, and no host that \
         of the same identity's other hosts. Past it, a new one is closed.";
    CONTROL_STRANGERS: usize = 4_096,
        "Connections to the control plane that have not shown an SVID, including those in their handshake. Past it, \
         the one that has waited longest is closed, or else the new one.";
    CONTROL_STRANGERS_PER_NETWORK: usize = 1_024,
        "The same, from one network.";
    CONTROL_PROOF_WAIT: Duration = Duration::from_secs(10),
        "From the end of the handshake: for the first call to the control plane by a peer that has shown an SVID, and \
         for all calls of a peer that has not, as all that it may do is ask for one. Then the connection is closed.";
    CONTROL_IDLE: Duration = Duration::from_secs(60),
        "A connection to the control plane that has had no call for this long is closed; a sidecar has streams that \
         stay open.";
    CONTROL_STREAMS: u32 = 64,
        "Concurrent calls on one connection to the control plane; a sidecar needs a handful.";
    CONTROL_STREAMS_OF_A_KIND: usize = 4,
        "Open streams of Announce, and as many of Watch and of WatchBundle, on one connection to the control plane. A \
         sidecar has one of each. A further one is refused.";
    CONTROL_STREAMS_OPEN: usize = 20_000,
        "Open streams of these kinds on all connections together: two for each possible connection, and shared like \
         CONTROL_CONNECTIONS, because an event takes time for each stream that it is sent to. A further one is \
         refused.";
    CONTROL_MESSAGE_TIME: Duration = Duration::from_secs(30),
        "For a message to the control plane to be complete after its start, and for descriptors after they were asked \
         for. Then the call ends, so that a partial message is not kept for long.";
    ANNOUNCEMENT_BYTES: usize = 128 * 1024,
        "A message to the control plane, except descriptors that were asked for (CONTROL_MESSAGE_BYTES). A larger one \
         ends its call. An announcement with as many contracts as a service may have fits if their names have 120 \
         bytes.";
    DESCRIPTORS_ASKED: usize = 4,
        "Streams of one identity from one network that send descriptors, or have known ones compiled, at the same \
         time, as each set may have CONTROL_MESSAGE_BYTES. Others wait for their turn, and need not send what a \
         replica has sent by then.";
    DESCRIPTORS_READ: usize = 2,
        "Descriptor sets that the control plane reads or compiles at the same time, as each takes several times its \
         size: one of each identity, and waiting identities take turns. The control plane's own work has other threads.";
    REFUSALS_PER_SERVICE: usize = 8,
        "Refused descriptors of one service that are remembered, with the contracts that they were compiled for: they \
         are refused again without being read. Past it, the oldest is forgotten.";
    ANSWER_BYTES_UNREAD: usize = 16 * 1024 * 1024,
        "Answers of the control plane that one identity in one network has not read. Past it, the identity gets no \
         more until it reads.";
    ANSWERS_AT_ONCE: usize = 4,
        "Answers about contracts and services of the whole mesh that one identity in one network may have at the same \
         time, as each may have CONTROL_MESSAGE_BYTES. Further ones wait for their turn.";
    LOCAL_RESETS: usize = 1_024,
        "Streams that a peer's protocol errors may make the control plane reset. Past it, the connection ends \
         (RUSTSEC-2024-0003).";
    RESETS_PENDING_ACCEPT: usize = 256,
        "Streams that a client of the control plane may reset before they are accepted. Past it, the connection ends \
         (CVE-2023-44487).";
    CONTROL_HEADER_BYTES: u32 = 16 * 1024,
        "A request's header list at the control plane. A longer one is refused.";
    CONTROL_STOP: Duration = Duration::from_secs(5),
        "For the calls that are still running when the control plane stops, and then for its last claims to be saved.";
    ADMIN_CONNECTIONS: usize = 128,
        "Concurrent connections on each of a sidecar's admin and metrics ports. Past it, the oldest one of the host \
         with the most is closed, so that a probe finds room.";
    ADMIN_IDLE: Duration = Duration::from_secs(30),
        "A connection to the admin or metrics port that has had no request for this long is closed, even if its peer \
         has not read the last answer.";
    ADMIN_STREAMS: u32 = 32,
        "Concurrent requests on one HTTP/2 connection to the admin port; a client waits or opens another connection.";
    METRICS_STREAMS: u32 = 1,
        "The same on one HTTP/2 connection to the metrics port, which needs no certificate.";
    METRICS_PAGE_INTERVAL: Duration = Duration::from_millis(250),
        "Between two pages of metrics that a sidecar makes: clients that ask in between wait for the next page and get \
         the same one.";
    METRICS_PAGES: usize = 8,
        "Pages of metrics in memory that are still being sent. Past it, the last one is sent again until one has been \
         read, or its reader is disconnected (ADMIN_IDLE).";
    APP_PROBES_BYTES: usize = 64 * 1024,
        "The probes of a pod's containers that its sidecar makes (`--probes`), as JSON. A pod with more is refused.";
    APP_PROBE_PAUSE: Duration = Duration::from_millis(250),
        "Between two runs of a probe of the application. Who asks for it during a run, or sooner after one, gets the \
         answer of that run.";
    PRE_STOP_WAIT: Duration = Duration::from_secs(5),
        "For a sidecar that is asked for a hook before it has been told that its pod is deleted. Then the hook is refused.";
    ADMIN_HEADER_BYTES: u32 = 16 * 1024,
        "A request's head on the admin and metrics ports. A longer one is refused.";
    ADMIN_TIMEOUT: Duration = Duration::from_secs(10),
        "For a client's first bytes and a request's head on the admin and metrics ports.";
    SURVEY_TIMEOUT: Duration = Duration::from_secs(1),
        "For a worker to report its calls and buffers. Then the admin port answers without them.";
    LIVE_CALLS_SHOWN: usize = 500,
        "Running calls that the admin port lists: the oldest ones. The others are only counted.";
    LOG_FILTER_BYTES: usize = 1024,
        "A log filter that is sent to the admin port. A longer one is refused.";
    PROFILE_TIME: Duration = Duration::from_secs(60),
        "The longest profile that the admin port makes. It makes one at a time.";
    TRACES_KEPT: usize = 2_000,
        "Traces in the built-in store. Past it, the trace that arrived first is dropped.";
    SPANS_PER_TRACE: usize = 2_000,
        "Spans of one trace in the built-in store. Past it, a span is refused, and its exporter is told.";
    TRACE_STORE_BYTES: usize = 64 * 1024 * 1024,
        "Memory of all spans in the built-in store. Past it, the trace that arrived first is dropped.";
    SPAN_NAME_BYTES: usize = 256,
        "The name of a span, service, event or attribute in the built-in store. A longer one is cut.";
    SPAN_VALUE_BYTES: usize = 4 * 1024,
        "One value of an attribute in the built-in store. A longer one is cut.";
    SPAN_ATTRIBUTES: usize = 64,
        "Attributes of one span, event, link or resource in the built-in store. More are dropped and counted.";
    SPAN_EVENTS: usize = 64,
        "Events, and likewise links, of one span in the built-in store. More are dropped and counted.";
    OTLP_MESSAGE_BYTES: usize = 4 * 1024 * 1024,
        "One export of spans to the built-in store. A larger one is refused with OUT_OF_RANGE, as in tonic.";
    OTLP_MEMORY_BYTES: usize = 32 * 1024 * 1024,
        "Memory of the parts of one decoded export of spans, which take several times their serialized size. They are \
         counted before it is decoded. Past it, the export is refused with RESOURCE_EXHAUSTED.";
    OTLP_READ: usize = 2,
        "Exports of spans that are decoded and filed at the same time. Others wait for their turn.";
    DASHBOARD_CONNECTIONS: usize = 512,
        "Connections of browsers and span exporters to the dashboard. Past it, the oldest one of the host with the \
         most is closed.";
    DASHBOARD_IDLE: Duration = Duration::from_secs(60),
        "A connection to the dashboard that has had no request for this long is closed, even if its peer has not read \
         the last answer.";
    DASHBOARD_STREAMS: u32 = 64,
        "Concurrent requests on one HTTP/2 connection to the dashboard; a client waits or opens another connection.";
    DASHBOARD_HEADER_BYTES: u32 = 16 * 1024,
        "A request's head at the dashboard. A longer one is refused.";
    DASHBOARD_TIMEOUT: Duration = Duration::from_secs(10),
        "For a client's first bytes, a request's head and a whole request at the dashboard, and for running requests \
         when it stops.";
    WARM_TIME: Duration = Duration::from_secs(60),
        "A service that was called within this time gets connections to its endpoints as they come up, before a call \
         needs them.";
    WARM_ENDPOINTS: usize = 16,
        "Endpoints of one service to which a worker makes connections in advance.";
    IDLE_CONNECTION: Duration = Duration::from_secs(300),
        "A connection to an endpoint on which nothing ran for this long is closed.";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_limit_has_a_reason() {
        for limit in ALL {
            assert!(limit.why.len() > 20, "{}", limit.name);
        }
    }
}
