//! The one table of limits: whatever can grow has a bound here, with its reason.

use std::time::Duration;

/// A row of the table, for the docs and the admin page.
#[derive(Debug, Clone, Copy)]
pub struct Limit {
    /// The constant's name.
    pub name: &'static str,
    /// Its value with its unit.
    pub value: &'static str,
    /// What is bounded, why there, and what happens at the bound.
    pub why: &'static str,
}

/// How often a peer may do something: so many times at once, so many a second, and once more for so many useful frames
/// (0: they earn nothing).
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
        "Calls at once on a connection that a sidecar accepts; a client that knows HTTP/2 waits or opens another.";
    CONNECTIONS_PER_ENDPOINT: usize = 8,
        "Connections that one worker opens to one endpoint, and to the local service for the calls of one caller, when the \
         peer's stream limit is reached; past it calls wait for one that ends.";
    BLOCKED_CONNECTIONS: usize = 24,
        "Connections to the local service besides those, for the calls of a caller on whose other ones the service does not \
         read what it was sent.";
    CALLS_QUEUED: usize = 10_000,
        "Calls that wait for room on a worker's connections to one endpoint, or on those to the local service for the calls of \
         one caller; past it a call is answered `overloaded`, or by the callee `service-full`, or is tried at another endpoint.";
    ROOM_WAIT: Duration = Duration::from_secs(30),
        "How long such a call waits, and one whose peer does not read what it is sent, unless its deadline is sooner; then \
         it is answered as those are.";
    REFUSED_TRIES: u32 = 8,
        "How often a call is sent to the local service that refuses its stream unseen, with growing pauses; then the \
         caller's sidecar tries another endpoint.";
    CALLS_IN_FLIGHT: usize = 20_000,
        "Calls at once through a worker's outbound side, and as many through its inbound side. A callee on the one, and a \
         peer on the other, may have as many as all leave free: one alone half. Past it a call is answered `overloaded`, or by \
         the callee `service-full`.";
    CONNECTIONS_PER_SIDE: usize = 20_000,
        "Connections at once on a worker's outbound side, and as many of peers on its inbound side, where one peer may have as \
         many as all leave free; past it a new one is closed at once and counted.";
    HANDSHAKES: usize = 1_024,
        "Connections to a worker's inbound side whose TLS handshake is not done, so that nobody knows whose they are; past it \
         a new one is taken, and the one that has taken longest of the network with the most is closed.";
    HEADER_LIST_BYTES: u32 = 64 * 1024,
        "Size of a header list as RFC 9113, section 6.5.2, counts it, and of an HTTP/1.1 head; `--header-list-bytes` sets \
         another. The call with a longer one is answered `headers-too-large`, and no other suffers.";
    HEADER_LIST_ROOM: u32 = 8 * 1024,
        "What sidecars add to a header list: between them it may be so much longer.";
    MEMORY_BYTES: usize = 1024 * 1024 * 1024,
        "What all connections of a sidecar hold together: what has come and has not gone on, and what waits to be written; \
         `--memory` sets another. Half is for the inbound side and half for the outbound one, and on either a caller, or a \
         callee, may hold as much as all leave free. Past it its new calls are refused (`overloaded`, and by the callee \
         `service-full`) and its connections are not read until what they hold has gone; from four times as much on, calls whose \
         bytes wait for it are broken off.";
    UNCOUNTED_LIST_BYTES: usize = 4 * 1024,
        "A call's header lists up to this size do not count in MEMORY_BYTES: CALLS_IN_FLIGHT bounds them. A longer one counts \
         for the caller until the call ends.";
    PAUSED_TIME: Duration = Duration::from_secs(120),
        "A connection of another sidecar that is not read, as its peer holds its part of MEMORY_BYTES, and of whose bytes none \
         have gone on for so long, ends: nobody would hear that its calls were given up.";
    STREAM_WINDOW_BYTES: u32 = 256 * 1024,
        "What one call may have under way before its reader has taken it: bounds the memory of a slow reader.";
    CONNECTION_WINDOW_BYTES: u32 = 4 * 1024 * 1024,
        "What all calls of a connection may have under way.";
    CONNECTION_BUFFER_BYTES: usize = 16 * 1024 * 1024,
        "What the calls of another sidecar's connection may hold back together before a slow one holds back the others: up \
         to here the connection's window is given back at once. On connections that carry several callers' calls none \
         holds back the others: what they hold is bounded by MEMORY_BYTES, for each of them.";
    SEND_BUFFER_BYTES: usize = 256 * 1024,
        "What a connection may have ready for a peer that does not read; past it no more DATA is framed for it, and \
         nothing is read from it.";
    CONTROL_OUTPUT_BYTES: usize = 64 * 1024,
        "Acknowledgements and resets that a peer has provoked and does not read; past it nothing is read from it.";
    MAX_FRAME_BYTES: u32 = 16 * 1024,
        "The largest HTTP/2 frame that is accepted: the protocol's own default.";
    HEADER_BLOCK_FRAMES: u32 = 16,
        "CONTINUATION frames of one header block of another sidecar, or as many as `--header-list-bytes` needs; past it \
         the connection ends (CVE-2024-27316).";
    HEADER_BLOCK_FRAMES_LOCAL: u32 = 1_024,
        "The same of the local service and its clients: 16 MiB. A header list over HEADER_LIST_BYTES ends its own call \
         only, and for that it has to be read to its end.";
    HPACK_TABLE_BYTES: u32 = 4 * 1024,
        "HPACK's dynamic table, either way: the protocol's own default.";
    FLOOD_TIME: Duration = Duration::from_secs(10),
        "A peer that goes past one of the rates below is slowed: it is read later. One that goes on for this long has its \
         connection drained, so that its calls end and others take a new connection; a client that goes on for as long \
         again is cut off (ENHANCE_YOUR_CALM). A service is never cut off, as the calls on its connection are others'.";
    LOCAL_ROOM: u32 = 10,
        "The local service and its clients may go so many times as fast as the rates below say, as they are no strangers; \
         but for CANCELS and SMALL_DATA, which are far above honest use as they are.";
    CANCELS: Rate = (20_000, 20_000, 1),
        "Calls that a peer may cancel before they are answered, besides one for each that is answered; past it the peer is \
         slowed (CVE-2023-44487). A call costs as much whether it is cancelled or not, so the bound is far above honest use.";
    RESETS_OF_CALM_SERVICE: u32 = 100,
        "Calls that are cancelled on a connection to a service that has once ended one with ENHANCE_YOUR_CALM, as Netty's \
         servers do after 200 in 30 s; then another connection takes its place, so that the others' calls go on.";
    STREAM_ERRORS: Rate = (1_024, 128, 1),
        "Streams that a peer's protocol errors may make us reset, besides one for each call that is answered; past it the \
         peer is slowed (RUSTSEC-2024-0003).";
    PINGS: Rate = (1_000, 1_000, 1),
        "PINGs that a peer may send, besides one for each useful frame; past it the peer is slowed (CVE-2019-9512). gRPC \
         sends one with each DATA frame to learn the bandwidth.";
    SETTINGS: Rate = (50, 10, 16),
        "SETTINGS that a peer may send, besides one for 16 useful frames, as each may move the window of every stream; \
         past it the peer is slowed (CVE-2019-9515).";
    EMPTY_FRAMES: Rate = (10_000, 1_000, 1),
        "Frames that move nothing (empty DATA, PRIORITY, WINDOW_UPDATE, unknown ones), besides one for each useful frame and \
         two for each DATA frame that is sent; past it the peer is slowed (CVE-2019-9518).";
    SMALL_DATA: Rate = (50_000, 20_000, 1),
        "DATA frames of fewer than 5 bytes, which is less than a gRPC message has, besides one for each useful frame; past \
         it the peer is slowed. Between sidecars, where many callers share a connection and a byte of opaque TCP is such a \
         frame too, it is ten times as many. What a service answers with is not counted.";
    HPACK_TABLE_CHANGES: Rate = (1_000, 100, 1),
        "How often a peer may change the size of its HPACK table, besides once for each useful frame; past it the peer is \
         slowed.";
    INTERIM_ANSWERS: u32 = 100,
        "Interim answers (1xx) to one request, which no window bounds; past it the call fails.";
    SOCKET_BUFFER_BYTES: usize = 64 * 1024,
        "What a connection of HTTP/1.1 or of opaque TCP may have under way each way before its sender is held back.";
    HTTP1_CHUNK_LINE_BYTES: usize = 256,
        "The line before an HTTP/1.1 chunk, its extensions included; a longer one ends the connection.";
    HTTP1_TRAILER_BYTES: usize = 16 * 1024,
        "An HTTP/1.1 trailer section; a longer one ends the connection.";
    LINGER_BYTES: u64 = 64 * 1024 * 1024,
        "What may be left, by its content-length, of a request that is answered early: it is read and thrown away, and the \
         connection kept. If more is left the answer says `Connection: close`.";
    LINGER_TIME: Duration = Duration::from_secs(30),
        "For the rest of a request that was answered early, as long as nginx gives; then the connection is closed, as \
         before that the client might not see its answer.";
    CLOSE_TIME: Duration = Duration::from_secs(2),
        "For a client to close an HTTP/1.1 connection of which it was told that it closes.";
    UNREAD_TIME: Duration = Duration::from_secs(30),
        "For so long a peer over HTTP/1.1 or opaque TCP may read nothing of the last bytes that it is sent, when no call is \
         left on its connection; then that is aborted. While a call runs, a slow reader only holds its own sender back.";
    HALF_CLOSED_TIME: Duration = Duration::from_secs(30),
        "How long a call waits for its answer when its HTTP/1.1 client has ended its side: it may be waiting, or gone, \
         which only sending shows. Then the call is cancelled and the connection closed. Each part of an answer that is \
         sent gives as much time again.";
    IDLE_HTTP1_CONNECTION: Duration = Duration::from_secs(4),
        "A connection to an HTTP/1.1 service on which nothing ran for so long is closed, before the service does: many \
         close theirs after 5 s.";
    HTTP1_IDLE_CONNECTIONS: usize = 4_096,
        "Idle connections that a worker keeps to an HTTP/1.1 service. The one used last is used first, and one that is idle \
         for 4 s is closed, so it keeps as many as were busy at once lately; past the limit one that becomes idle is closed.";
    HTTP1_CONNECTS: usize = 8,
        "Connections to an HTTP/1.1 service that a worker makes at once. Others wait, and take one that becomes idle \
         meanwhile, so a service is not asked for connections faster than it accepts them.";
    HTTP1_CALLS_WAITING: usize = 10_000,
        "Calls of a worker that wait for a connection to an HTTP/1.1 service, where peers take turns and one may have as many \
         as all leave free; past it a call is answered `service-full`, or tried at another endpoint.";
    HTTP1_DRAIN_IDLE: Duration = Duration::from_millis(500),
        "For so long a client's idle HTTP/1.1 connection is kept when the sidecar stops, as a request may be on its way.";
    HTTP2_TIMEOUT: Duration = Duration::from_secs(10),
        "For a peer's HTTP/2 preface and SETTINGS, and for its acknowledgement of ours; then its connection is closed.";
    IDLE_PING_INTERVAL: Duration = Duration::from_secs(20),
        "A connection on which nothing was heard for so long is asked for a sign of life.";
    RESET_STREAMS_KEPT: usize = 64,
        "Streams that are remembered after we reset them, to tell late frames from errors.";
    REPLAY_BYTES_PER_CALL: usize = 16 * 1024,
        "Request body kept so that a call can be sent again; a call with a longer one is not tried again once it was sent.";
    REPLAY_BYTES: usize = 16 * 1024 * 1024,
        "Request bodies that a worker keeps for all calls of its outbound side, and as many for those of its inbound side. A \
         callee on the one, and a peer on the other, may have as much kept as all leave free: one alone half. Past it a call \
         with a body is not tried again once it was sent; what waits to be sent the first time is bounded by windows and by \
         MEMORY_BYTES.";
    TRIES: u32 = 2,
        "How often a call is sent at most.";
    DETECT_TIMEOUT: Duration = Duration::from_secs(60),
        "For the first bytes of a client on the outbound port, also where a service of HTTP is called by redirection, and for \
         an HTTP/1.1 head, as long as nginx, Apache and Node give; then its connection is closed.";
    HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5),
        "For a TLS handshake with its certificate checks, either side.";
    CONNECT_TIMEOUT: Duration = Duration::from_secs(1),
        "For a TCP connection to an endpoint: the mesh is near.";
    LOCAL_CONNECT_TIME: Duration = Duration::from_secs(30),
        "For a TCP connection to the local service that is slow to accept it; a call waits no longer than its deadline. \
         Then the caller's sidecar tries another replica. A connection that is refused fails at once.";
    OUTSIDE_CONNECT_TIMEOUT: Duration = Duration::from_secs(10),
        "For a TCP connection to what is outside the mesh, and may be far.";
    DISCOVERY_WAIT: Duration = Duration::from_secs(3),
        "How long a call waits for the first snapshot of its service.";
    OUTSIDE_ADDRESSES: usize = 4_096,
        "Addresses outside the mesh that a worker remembers; past it the one of which it was said longest ago is forgotten.";
    OUTSIDE_MEMORY: Duration = Duration::from_secs(5),
        "For so long an address is taken to be outside the mesh before the control plane is asked again. While there is no \
         answer, what it said last holds on (OUTSIDE_KEPT); an address of which it said nothing is refused.";
    OUTSIDE_KEPT: Duration = Duration::from_secs(24 * 3600),
        "For so long what the control plane said of an address outside the mesh holds on while it does not answer: as long \
         as a certificate lives (SVID_LIFE), without which the sidecar has no mesh either.";
    DISCOVERY_QUEUE: usize = 1_024,
        "Questions of workers to discovery that wait; past it a call is answered `overloaded`.";
    SERVICES_WATCHED: usize = 10_000,
        "Services that one sidecar, or one watch stream, follows; past it a new one is refused.";
    WATCH_QUEUE: usize = 256,
        "Changes that wait for a slow watcher; past it they are dropped for one fresh snapshot.";
    SNAPSHOT_FILE_BYTES: u64 = 64 * 1024 * 1024,
        "The file of last good snapshots; a longer one is neither written nor read.";
    WATCH_IDLE: Duration = Duration::from_secs(600),
        "A service that was not called for so long is no longer watched.";
    HEARTBEAT_INTERVAL: Duration = Duration::from_secs(5),
        "How often a sidecar says that it lives.";
    ENDPOINT_EXPIRY: Duration = Duration::from_secs(90),
        "An endpoint of which nothing was heard for so long is gone.";
    SETTLING_TIME: Duration = Duration::from_secs(10),
        "For so long after its start the control plane says nothing is complete: announcements are still coming in. Sooner if \
         `--services` says that it has all services, and all have come.";
    CONTROL_MESSAGE_BYTES: usize = 8 * 1024 * 1024,
        "The largest message between sidecar and control plane; descriptor sets are what is large.";
    SPANS_QUEUED: usize = 8_192,
        "Spans that wait for export; past it they are dropped and counted.";
    SPAN_BATCH: usize = 512,
        "Spans in one export; a batch that is full leaves at once.";
    SPAN_BATCH_WAIT: Duration = Duration::from_secs(1),
        "How long a span waits at most for others to join its batch.";
    SPAN_EXPORT_TIMEOUT: Duration = Duration::from_secs(10),
        "For one export of spans to one target; then the batch is lost for that target.";
    SPAN_FLUSH_TIMEOUT: Duration = Duration::from_secs(3),
        "For the spans that still wait when a process stops; then they are lost.";
    LOG_LINES: u32 = 20,
        "Lines of one kind that strangers, or calls that fail, can cause in a second; more are left out and counted, as they \
         would fill a disk, and what else is said would be lost among them.";
    LOG_LINES_OF_IDENTITY: u32 = 20,
        "Lines of the control plane's log that one identity can cause in a second; more are left out and counted.";
    LOG_LINES_OF_ALL: u32 = 200,
        "The same of all identities together: ten have what one may have.";
    LOG_BYTES_WAITING: usize = 1024 * 1024,
        "What of the log, or of spans on standard output, waits for a reader that is slow or has stopped; past it lines are \
         lost and counted (`weft_log_lines_lost_total`), and the log says how many in their place. Nothing waits for the \
         reader.";
    LOG_FLUSH: Duration = Duration::from_secs(1),
        "For what still waits when a process ends; then it ends all the same.";
    DESCRIPTOR_SET_BYTES: usize = 8 * 1024 * 1024,
        "A serialized descriptor set; a larger one is refused. No message to the control plane could carry it.";
    DESCRIPTOR_MEMORY_BYTES: usize = 64 * 1024 * 1024,
        "Memory of the parts of a decoded descriptor set, which take several times their serialized size; past it \
         the set is refused.";
    METRIC_SERIES: usize = 10_000,
        "Rows of calls that a sidecar's metrics hold; past it a call is counted under `_other`.";
    METRIC_SERIES_OF_A_SERVICE: usize = 1_000,
        "Those of them that one service has which is called from here; past it its methods are counted under `_other`.";
    HEALTH_CHECK_TIMEOUT: Duration = Duration::from_secs(1),
        "For one health check of the local service.";
    HEALTH_CHECK_INTERVAL: Duration = Duration::from_secs(1),
        "Between two health checks of the local service; a broken connection makes one at once.";
    STARTING_TIME: Duration = Duration::from_secs(20),
        "How long a service that was never up counts as starting: until then its failed health checks, and calls that find \
         none of its endpoints up, are no news for the log (DEBUG). Past it they are logged as those of a service that went down.";
    SVID_LIFE: Duration = Duration::from_secs(24 * 3600),
        "The life of a workload's certificate; it is renewed at two thirds of it.";
    SVID_GRACE: Duration = Duration::from_secs(7 * 24 * 3600),
        "For so long after its expiry an SVID's key still proves who a sidecar is, to get a new one and for nothing else: a \
         sidecar that was cut off for longer than its SVID lives gets back in by itself.";
    EXPIRY_LOOK: Duration = Duration::from_secs(1),
        "How often a worker looks for connections whose certificate has expired: one lives so much longer at most. By the \
         wall clock, so a clock that was set is noticed as soon.";
    WORKER_STALL: Duration = Duration::from_secs(5),
        "A worker, or the control side, whose thread makes no progress for so long has the sidecar say that it is not \
         ready and leave discovery, until the thread goes on. Of a thread that runs only its own CPU time counts, so \
         neither a busy machine nor one that stood still is taken for a fault.";
    WORKER_HANG: Duration = Duration::from_secs(30),
        "The same for so long, and the process ends with status 70: whoever supervises it starts a fresh one.";
    KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(5),
        "Between two PINGs on a connection to the control plane.";
    KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(5),
        "For the answer to a PING; then the connection is dead.";
    SERVICES_KNOWN: usize = 10_000,
        "Services that the control plane knows; past it the announcement of a new one is refused.";
    ENDPOINTS_PER_SERVICE: usize = 5_000,
        "Endpoints of one service; past it an announcement is refused.";
    CONTRACTS_PER_SERVICE: usize = 1_000,
        "Protobuf services that all endpoints of one service implement together; an announcement that adds more is \
         refused.";
    ADDRESSES_PER_ENDPOINT: usize = 64,
        "Addresses at which one endpoint's service is called; an announcement of more is refused.";
    ADDRESSES_PER_SERVICE: usize = 10_000,
        "Addresses of all endpoints of one service together; an announcement that adds more is refused.";
    POLICY_BYTES: usize = 4 * 1024 * 1024,
        "What the policy of one service takes in a message: with the most endpoints and addresses its snapshot still fits \
         CONTROL_MESSAGE_BYTES. Descriptors that say more are refused.";
    FALLBACK_ANSWER_BYTES: usize = 16 * 1024,
        "A fixed answer that a contract gives as a fallback, encoded; a larger one is refused. Every sidecar that calls the \
         service keeps it.";
    FALLBACKS: u32 = 3,
        "How often a call goes on to another fallback, as the one before cannot take it either; then it fails.";
    POLICIES_PER_SERVICE: usize = 16,
        "Compiled policies of one service, of its versions and their sets of contracts; past it new descriptors are \
         refused until an older version has gone.";
    DESCRIPTORS_PER_SERVICE_BYTES: usize = 32 * 1024 * 1024,
        "Descriptor sets of one service together, so that it can't take the room of all others; past it a new one is \
         refused.";
    CLAIMS_PER_IDENTITY: usize = 2_000,
        "Contracts and virtual addresses that are pinned to one identity; past it a new one is not taken until others are \
         released.";
    CLAIMS_PINNED: usize = 100_000,
        "Contracts and virtual addresses that are pinned in the control plane's store; past it a new one is not taken.";
    CLAIMS_RELEASED: usize = 10_000,
        "Claims that are released while the control plane does not run; past it a release is refused until it does.";
    CONTESTS_PER_IDENTITY: usize = 20,
        "Refused claims of one identity that are logged and listed; further ones are counted only.";
    CONTESTS_LISTED: usize = 1_000,
        "Refused claims that are logged and listed; further ones are counted only.";
    CONTESTS_TOLD: usize = 100,
        "Refused claims that one answer to an announcement names.";
    ADDRESS_MEMORY: Duration = SVID_LIFE,
        "An address of an endpoint that went without a word stays its service's for so long, unless another endpoint announces \
         it: as long as the endpoint may hold a certificate and live out of the control plane's reach. What is meant for it \
         does not leave in plain text.";
    ADDRESSES_DEPARTED: usize = 100_000,
        "Such addresses that the control plane remembers, of one service as many as ADDRESSES_PER_SERVICE; past it the service \
         that has most loses its oldest.";
    HOSTS_PER_TOKEN: usize = 16,
        "Addresses and networks that one join token allows its identity.";
    CONTRACT_NAME_BYTES: usize = 512,
        "The full name of a protobuf service; an announcement of a longer one is refused.";
    QUESTION_NAME_BYTES: usize = 1_024,
        "A name in a question to the control plane; a longer one is refused unread.";
    HINT_NAME_BYTES: usize = 128,
        "The longest name that is compared with others to find the closest: comparing takes time by the square of it.";
    HINT_CANDIDATES: usize = 500,
        "Names that one unknown name is compared with to find the closest; of more, those near it in their order.";
    HINTS_PER_SECOND: u32 = 5,
        "How often a watch stream, and all callers of Describe together, are told the closest name; more unknown names are \
         answered without.";
    ENDPOINT_ID_BYTES: usize = 128,
        "The id of an endpoint; an announcement with a longer one is refused.";
    DESCRIPTORS_HELD_BYTES: usize = 256 * 1024 * 1024,
        "All descriptor sets in the control plane; past it a new one is refused, its service has default policy.";
    HEALTH_PAUSE: Duration = Duration::from_secs(1),
        "Between two changes of an endpoint's health that watchers are told of: of what changes more often they are told the last.";
    ANNOUNCEMENTS: Rate = (5_000, 20, 0),
        "Announcements of one identity, over all its connections: at once as many as a service may have endpoints \
         (ENDPOINTS_PER_SERVICE), which all come again after a restart of the control plane; further ones are refused with \
         RESOURCE_EXHAUSTED, as each costs the control plane's one thread time.";
    SIGNATURES: Rate = (1_000, 20, 0),
        "Certificates that one identity is given: at once as many as many replicas that start together need; further ones \
         are refused with RESOURCE_EXHAUSTED, and sidecars ask again later. A signature takes the control plane's one thread \
         a tenth of a millisecond.";
    SERVICE_NEWS: Rate = (8, 1, 0),
        "How often the watchers of a service are told all of it anew, as its protocol, policy, contracts or addresses have \
         changed; of what changes more often they are told the last. Each makes of it what it needs for calls, and all are \
         told by one thread. Endpoints are told at once.";
    ANNOUNCE_MESSAGES: u32 = 20,
        "Messages that are read from an announcing stream in a second; more wait.";
    STANDSTILL: Duration = Duration::from_secs(3),
        "When the control plane's clock, which is looked at each second, jumps by so much, the control plane itself stood still: streams that broke meanwhile say nothing of endpoints.";
    SILENT_SHARE_PERCENT: usize = 50,
        "When more of a service's endpoints than this are only silent (the control plane lost their streams), callers go on calling them, and failed calls decide.";
    SERVICE_MEMORY: Duration = Duration::from_secs(3600),
        "A service without endpoints is remembered for so long: a call to it says `no-endpoint`, not `no-such-service`.";
    ANNOUNCE_WAIT: Duration = Duration::from_secs(10),
        "For the first message of an announcing stream; then it is ended.";
    CONTROL_CONNECTIONS: usize = 10_000,
        "Connections of sidecars, which have shown an SVID, to the control plane. An identity may have as many as all leave \
         free, so that one alone comes to half of them, and those from one network (an IPv4 address, or 64 bits of IPv6) as \
         many as that leaves free, a third: so no identity takes the room of another, nor one host that of the same identity's \
         other hosts. Past it a new one is closed.";
    CONTROL_STRANGERS: usize = 4_096,
        "Connections to the control plane that have not shown an SVID, those in their handshake included; past it the one \
         that has waited longest makes room, or the new one is closed.";
    CONTROL_STRANGERS_PER_NETWORK: usize = 1_024,
        "The same, from one network.";
    CONTROL_PROOF_WAIT: Duration = Duration::from_secs(10),
        "For the first call to the control plane by a peer that has shown an SVID, and for all calls of one that has not, as \
         all that it may do is ask for one; from the end of the handshake. Then the connection is cut off.";
    CONTROL_IDLE: Duration = Duration::from_secs(60),
        "A connection to the control plane that has had no call for so long is cut off; a sidecar has streams that stay.";
    CONTROL_STREAMS: u32 = 64,
        "Calls at once on one connection to the control plane; a sidecar needs a handful.";
    CONTROL_STREAMS_OF_A_KIND: usize = 4,
        "Open streams of Announce, and as many of Watch and of WatchBundle, on one connection to the control plane, where a \
         sidecar has one of each; a further one is refused.";
    CONTROL_STREAMS_OPEN: usize = 20_000,
        "The same, of all connections together, two for each that there may be; they are shared as CONTROL_CONNECTIONS are: \
         what concerns many watchers costs time for each. A further one is refused.";
    CONTROL_MESSAGE_TIME: Duration = Duration::from_secs(30),
        "For a message to the control plane to come whole once it has begun, and for descriptors once they were asked for; \
         then its call ends, so that half a message is not kept for long.";
    ANNOUNCEMENT_BYTES: usize = 128 * 1024,
        "A message to the control plane, but for descriptors that were asked for (CONTROL_MESSAGE_BYTES): a larger one ends its \
         call. An announcement with as many contracts as a service may have fits with names of 120 bytes.";
    DESCRIPTORS_ASKED: usize = 4,
        "Streams of one identity from one network that are asked for descriptors at once, as each may send \
         CONTROL_MESSAGE_BYTES, or have known ones compiled; others wait for their turn, and need not send what a replica has \
         sent by then.";
    DESCRIPTORS_READ: usize = 4,
        "Sets of descriptors that the control plane reads or compiles at once, of all services, as each takes several times its \
         size: of each identity one, and identities that wait take turns.";
    REFUSALS_PER_SERVICE: usize = 8,
        "Descriptors of one service that are remembered to be of no use, with the contracts for which they were compiled: they \
         are refused again unread. Past it the oldest is forgotten.";
    ANSWER_BYTES_UNREAD: usize = 16 * 1024 * 1024,
        "Of what the control plane has answered to one identity in one network and that was not read: past it the identity is \
         told nothing more until it reads.";
    ANSWERS_AT_ONCE: usize = 4,
        "Answers about contracts and services of the whole mesh that one identity in one network has at once, as each may have \
         CONTROL_MESSAGE_BYTES; further ones wait for their turn.";
    LOCAL_RESETS: usize = 1_024,
        "Streams that a peer's protocol errors may make the control plane reset before its connection ends \
         (RUSTSEC-2024-0003).";
    RESETS_PENDING_ACCEPT: usize = 256,
        "Streams that a client of the control plane has reset before they were taken before its connection ends \
         (CVE-2023-44487).";
    CONTROL_HEADER_BYTES: u32 = 16 * 1024,
        "A request's header list at the control plane; a longer one is refused.";
    CONTROL_STOP: Duration = Duration::from_secs(5),
        "For the calls that the control plane still answers when it stops.";
    ADMIN_CONNECTIONS: usize = 128,
        "Connections at once on each of a sidecar's admin and metrics ports; past it the oldest of the host that has the \
         most is closed, so that a probe finds room.";
    ADMIN_IDLE: Duration = Duration::from_secs(30),
        "A connection to the admin or metrics port on which no request came for so long is closed, also when its peer has \
         not read the last answer.";
    ADMIN_STREAMS: u32 = 32,
        "Requests at once on one HTTP/2 connection to the admin port; a client waits or opens another.";
    METRICS_STREAMS: u32 = 1,
        "The same on one HTTP/2 connection to the metrics port, which needs no certificate.";
    METRICS_PAGE_INTERVAL: Duration = Duration::from_millis(250),
        "Between two pages of metrics that a sidecar makes: all who ask meanwhile wait for the next and get the same one.";
    METRICS_PAGES: usize = 8,
        "Pages of metrics in memory that are still being sent; past it the last one is sent again until one has been read, or \
         its reader is closed (ADMIN_IDLE).";
    ADMIN_HEADER_BYTES: u32 = 16 * 1024,
        "A request's head on the admin and metrics ports; a longer one is refused.";
    ADMIN_TIMEOUT: Duration = Duration::from_secs(10),
        "For a client's first bytes and a request's head on the admin and metrics ports.";
    SURVEY_TIMEOUT: Duration = Duration::from_secs(1),
        "For a worker to say what it does; then the admin port answers without it.";
    LIVE_CALLS_SHOWN: usize = 500,
        "Calls that the admin port lists of those that run: the oldest; of the others it gives the number.";
    LOG_FILTER_BYTES: usize = 1024,
        "A filter of log lines as the admin port takes it; a longer one is refused.";
    PROFILE_TIME: Duration = Duration::from_secs(60),
        "The longest profile that the admin port makes, one at a time.";
    TRACES_KEPT: usize = 2_000,
        "Traces in the built-in store; past it the one that began to arrive first makes room.";
    SPANS_PER_TRACE: usize = 2_000,
        "Spans of one trace in the built-in store; past it a span is refused, which its exporter is told.";
    TRACE_STORE_BYTES: usize = 64 * 1024 * 1024,
        "Memory of all spans in the built-in store; past it the trace that began to arrive first makes room.";
    SPAN_NAME_BYTES: usize = 256,
        "A span's, service's, event's or attribute's name in the built-in store; a longer one is cut.";
    SPAN_VALUE_BYTES: usize = 4 * 1024,
        "One value of an attribute in the built-in store; a longer one is cut.";
    SPAN_ATTRIBUTES: usize = 64,
        "Attributes of one span, event, link or resource in the built-in store; more are dropped and counted.";
    SPAN_EVENTS: usize = 64,
        "Events, and likewise links, of one span in the built-in store; more are dropped and counted.";
    OTLP_MESSAGE_BYTES: usize = 4 * 1024 * 1024,
        "One export of spans as the built-in store takes it; a larger one is refused with OUT_OF_RANGE, as tonic does.";
    DASHBOARD_CONNECTIONS: usize = 512,
        "Connections of browsers and span exporters to the dashboard; past it the oldest of the host that has the most is \
         closed.";
    DASHBOARD_IDLE: Duration = Duration::from_secs(60),
        "A connection to the dashboard on which no request came for so long is closed, also when its peer has not read the \
         last answer.";
    DASHBOARD_STREAMS: u32 = 64,
        "Requests at once on one HTTP/2 connection to the dashboard; a client waits or opens another.";
    DASHBOARD_HEADER_BYTES: u32 = 16 * 1024,
        "A request's head at the dashboard; a longer one is refused.";
    DASHBOARD_TIMEOUT: Duration = Duration::from_secs(10),
        "For a client's first bytes, a request's head and a whole request at the dashboard, and for open ones at stop.";
    WARM_TIME: Duration = Duration::from_secs(60),
        "A service that was called within this time has connections made to its endpoints as they come up, before a call \
         needs them.";
    WARM_ENDPOINTS: usize = 16,
        "Endpoints of one service to which a worker makes connections in advance.";
    IDLE_CONNECTION: Duration = Duration::from_secs(300),
        "A connection to an endpoint on which nothing ran for so long is closed.";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_limit_says_why() {
        for limit in ALL {
            assert!(limit.why.len() > 20, "{}", limit.name);
        }
    }
}
