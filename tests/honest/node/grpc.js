// grpc-js's part of the honest suite: `server` and `client`. See tests/honest/README.md.
"use strict";
const grpc = require("@grpc/grpc-js");
const { setTimeout: pause } = require("node:timers/promises");

const [what, ...rest] = process.argv.slice(2);
const words = Object.fromEntries(rest.map((word) => [word.slice(0, word.indexOf("=")), word.slice(word.indexOf("=") + 1)]));
const number = (name, otherwise = 0) => Number(words[name] ?? otherwise);

// Messages are plain bytes, so that no generated code is needed.
const same = (bytes) => bytes;
const method = (name, requestStream, responseStream) => ({
  path: `/honest.v1.Echo/${name}`,
  requestStream,
  responseStream,
  requestSerialize: same,
  requestDeserialize: same,
  responseSerialize: same,
  responseDeserialize: same,
});
const ECHO = {
  unary: method("Unary", false, false),
  server: method("ServerStream", false, true),
  client: method("ClientStream", true, false),
  bidi: method("Bidi", true, true),
};
const LIMITS = { "grpc.max_receive_message_length": 64 << 20, "grpc.max_send_message_length": 64 << 20 };

// Does what the caller says in `x-do`. Returns whether the call goes on.
async function asked(call, end) {
  const [verb, value] = String(call.metadata.get("x-do")[0] ?? "").split(":");
  if (verb === "wait") await pause(Number(value));
  if (verb === "fail") end({ code: Number(value), details: "as asked" });
  return verb !== "fail";
}

function serve() {
  const options = { ...LIMITS };
  if (number("max_streams")) options["grpc.max_concurrent_streams"] = number("max_streams");
  if (number("max_age_ms")) {
    options["grpc.max_connection_age_ms"] = number("max_age_ms");
    options["grpc.max_connection_age_grace_ms"] = 10_000;
  }
  const server = new grpc.Server(options);
  const broken = (call) => (error) => call.emit("error", error);
  server.addService(ECHO, {
    async unary(call, answer) {
      if (await asked(call, answer)) answer(null, call.request);
    },
    async server(call) {
      if (!(await asked(call, broken(call)))) return;
      const count = Number(call.metadata.get("x-count")[0] ?? 10);
      for (let sent = 0; sent < count; sent++) call.write(call.request);
      call.end();
    },
    async client(call, answer) {
      if (!(await asked(call, answer))) return;
      let last = Buffer.alloc(0);
      call.on("data", (message) => (last = message));
      call.on("end", () => answer(null, last));
    },
    async bidi(call) {
      if (!(await asked(call, broken(call)))) return;
      call.on("data", (message) => call.write(message));
      call.on("end", () => call.end());
    },
  });
  server.bindAsync(`127.0.0.1:${words.port}`, grpc.ServerCredentials.createInsecure(), (error) => {
    if (error) throw error;
  });
}

const kind = words.kind ?? "unary";
const body = Buffer.alloc(number("bytes", 128), "x");
const messages = number("messages", 10);

// Makes one call, and resolves to the messages that came back.
function call(client, count) {
  const metadata = new grpc.Metadata();
  metadata.set("x-count", String(messages));
  if (words.do && count % number("do_every", 1) === 0) metadata.set("x-do", words.do);
  const options = number("deadline_ms") ? { deadline: Date.now() + number("deadline_ms") } : {};
  return new Promise((resolve, reject) => {
    const heard = [];
    const { path, requestStream, responseStream } = ECHO[kind];
    const answer = (error, message) => (error ? reject(error) : resolve([message]));
    let running;
    if (kind === "unary") running = client.makeUnaryRequest(path, same, same, body, metadata, options, answer);
    if (kind === "server") running = client.makeServerStreamRequest(path, same, same, body, metadata, options);
    if (kind === "client") running = client.makeClientStreamRequest(path, same, same, metadata, options, answer);
    if (kind === "bidi") running = client.makeBidiStreamRequest(path, same, same, metadata, options);
    if (responseStream) {
      running.on("error", reject);
      running.on("data", (message) => {
        heard.push(message);
        if (kind === "bidi") heard.length < messages ? running.write(body) : running.end();
      });
      running.on("end", () => resolve(heard));
    }
    if (requestStream) running.write(body);
    if (kind === "client") {
      for (let sent = 1; sent < messages; sent++) running.write(body);
      running.end();
    }
    const every = number("cancel_every");
    if (every && count % every === 0) setTimeout(() => running.cancel(), (count / every) % 3);
  });
}

async function load() {
  const expected = new Set([number("expect", -1), number("cancel_every") ? grpc.status.CANCELLED : -1]);
  const options = { ...LIMITS, "grpc.use_local_subchannel_pool": 1 };
  if (number("keepalive_ms")) {
    options["grpc.keepalive_time_ms"] = number("keepalive_ms");
    options["grpc.keepalive_permit_without_calls"] = 1;
  }
  const end = performance.now() + 1000 * number("seconds", 2);
  const [at, took, failures] = [[], [], {}];
  let example = "";
  const fail = (code, why) => {
    failures[code] = (failures[code] ?? 0) + 1;
    example = why;
  };
  const work = async (client) => {
    for (let count = 1; performance.now() < end; count++) {
      const began = performance.now();
      try {
        const heard = await call(client, count);
        const wanted = kind === "unary" || kind === "client" ? 1 : messages;
        const isSame = heard.length === wanted && heard.every((message) => message.equals(body));
        if (!isSame) fail("CHANGED", `${heard.length} messages came back`);
      } catch (error) {
        if (!expected.has(error.code)) fail(grpc.status[error.code] ?? "error", String(error.details ?? error));
      }
      at.push(performance.now());
      took.push(performance.now() - began);
      if (number("pause_ms")) await pause(number("pause_ms"));
    }
  };
  const workers = [];
  for (let connection = 0; connection < number("connections", 1); connection++) {
    const client = new grpc.Client(words.target, grpc.credentials.createInsecure(), options);
    for (let worker = 0; worker < number("each", 1); worker++) workers.push(work(client));
  }
  await Promise.all(workers);
  let gap = 0;
  for (let place = 1; place < at.length; place++) gap = Math.max(gap, at[place] - at[place - 1]);
  took.sort((a, b) => a - b);
  const told = { gap_ms: gap, p50_ms: took[took.length >> 1] ?? 0, max_ms: took.at(-1) ?? 0 };
  console.log(JSON.stringify({ calls: at.length, failures, example, ...told }));
  process.exit(0);
}

if (what === "server") serve();
else load();
