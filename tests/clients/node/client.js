// The shop as @grpc/grpc-js calls it: `client.js ADDRESS` runs the cases against the sidecar there, and prints a line for
// each. PROTO_PATH names the folder of the contracts, which are loaded at run time.
"use strict";

const assert = require("node:assert");
const crypto = require("node:crypto");
const { once } = require("node:events");
const path = require("node:path");
const { promisify } = require("node:util");
const grpc = require("@grpc/grpc-js");
const loader = require("@grpc/proto-loader");
const googleFiles = require("google-proto-files");

// A guard that only a very slow machine reaches.
const LIMIT_MS = 60_000;

function load(folder, file) {
  return grpc.loadPackageDefinition(loader.loadSync(file, { includeDirs: [folder], keepCase: true }));
}

const contracts = (name) => load(process.env.PROTO_PATH, `shop/${name}/v1/${name}.proto`).shop[name].v1;
const google = load(path.dirname(googleFiles.getProtoPath()), "google/rpc/error_details.proto");
const rpcStatus = load(path.dirname(googleFiles.getProtoPath()), "google/rpc/status.proto").google.rpc.Status;
const { BadRequest } = google.google.rpc;

const address = process.argv[2];
const plain = grpc.credentials.createInsecure();
// All clients share one connection: grpc-js keeps one for each address and set of options.
const users = new (contracts("users").Users)(address, plain);
const products = new (contracts("products").Products)(address, plain);
const notifications = new (contracts("notifications").Notifications)(address, plain);

const options = () => ({ deadline: Date.now() + LIMIT_MS });

function call(client, method, request, metadata = new grpc.Metadata()) {
  return promisify(client[method]).call(client, request, metadata, options());
}

/** The error that a call ends with. */
async function refused(promise, code) {
  const error = await promise.then(() => assert.fail("an answer instead of an error"), (error) => error);
  assert.strictEqual(error.code, code, String(error));
  return error;
}

/** The status that a stream ends with. Ignores its messages. */
function end(stream) {
  stream.on("error", () => {});
  return new Promise((resolve) => stream.on("status", resolve));
}

async function getTeapot(metadata) {
  assert.strictEqual((await call(products, "Get", { id: "teapot" }, metadata)).id, "teapot");
}

async function unary() {
  const email = `${crypto.randomUUID()}@example.com`;
  const made = await call(users, "Create", { name: "Noddy", email });
  assert.strictEqual((await call(users, "Get", { id: made.id })).name, "Noddy");
}

async function errorDetails() {
  const made = call(users, "Create", { name: "Noddy", email: "nowhere" });
  const error = await refused(made, grpc.status.INVALID_ARGUMENT);
  const [bytes] = error.metadata.get("grpc-status-details-bin");
  const { details } = decode(rpcStatus, bytes);
  const detail = details.find((detail) => detail.type_url.endsWith("/google.rpc.BadRequest"));
  assert.ok(detail, `no BadRequest among the details of ${error}`);
  assert.strictEqual(decode(BadRequest, detail.value).field_violations[0].field, "email");
}

/** A message that a proto-loader type describes. */
function decode(definition, bytes) {
  return definition.deserialize(bytes);
}

async function serverStream() {
  let count = 0;
  for await (const _ of products.Search({}, options())) count++;
  assert.ok(count >= 12, `${count} products, not the dozen that there is`);
}

async function clientStream() {
  const { promise, resolve, reject } = settled();
  const sent = products.Import(options(), (error, answer) => (error ? reject(error) : resolve(answer)));
  for (let i = 0; i < 100; i++) sent.write({ id: `node-${i}`, name: "Imported by Node" });
  sent.end();
  assert.strictEqual((await promise).imported, 100);
}

function settled() {
  let resolve, reject;
  const promise = new Promise((yes, no) => ([resolve, reject] = [yes, no]));
  return { promise, resolve, reject };
}

async function bidiStream() {
  const told = notifications.Stream(options());
  const ended = end(told);
  // Each is sent when the one before was answered: nothing may wait for the end of the stream.
  for (let i = 0; i < 20; i++) {
    const text = `number ${i}`;
    told.write({ user_id: "noddy", text });
    const [answer] = await once(told, "data");
    assert.strictEqual(answer.text, text);
  }
  told.end();
  assert.strictEqual((await ended).code, grpc.status.OK);
}

async function metadata() {
  const metadata = new grpc.Metadata();
  for (const tag of ["one", "two"]) metadata.add("x-tag", tag);
  for (const blob of [[0, 1, 254, 255], [], [111, 100, 100]]) metadata.add("x-blob-bin", Buffer.from(blob));
  await getTeapot(metadata);
}

async function deadline() {
  const events = users.Watch({}, { deadline: Date.now() + 1 });
  events.resume();
  assert.strictEqual((await end(events)).code, grpc.status.DEADLINE_EXCEEDED);
}

async function cancel() {
  const told = notifications.Stream(options());
  told.write({ user_id: "noddy", text: "the only one" });
  await once(told, "data");
  const ended = end(told);
  told.cancel();
  assert.strictEqual((await ended).code, grpc.status.CANCELLED);
  await getTeapot();
}

async function unknownService() {
  const same = (bytes) => bytes;
  const { promise, resolve, reject } = settled();
  const path = "/shop.nothing.v1.Nothing/Do";
  products.makeUnaryRequest(path, same, same, Buffer.alloc(0), options(), (error) => (error ? reject(error) : resolve()));
  const error = await refused(promise, grpc.status.UNIMPLEMENTED);
  assert.strictEqual(error.metadata.get("x-weft-error").length, 1, "no x-weft-error");
}

async function gzip() {
  const zipped = new (contracts("products").Products)(address, plain, {
    "grpc.default_compression_algorithm": grpc.compressionAlgorithms.gzip,
  });
  const product = await call(zipped, "Get", { id: "teapot" });
  zipped.close();
  assert.strictEqual(product.id, "teapot");
}

async function manyCalls() {
  const lane = async () => {
    for (let i = 0; i < 50; i++) await getTeapot();
  };
  await Promise.all(Array.from({ length: 20 }, lane));
}

const CASES = {
  unary,
  "error-details": errorDetails,
  "server-stream": serverStream,
  "client-stream": clientStream,
  "bidi-stream": bidiStream,
  metadata,
  deadline,
  cancel,
  "unknown-service": unknownService,
  gzip,
  "many-calls": manyCalls,
};

async function main() {
  let failed = false;
  for (const [name, run] of Object.entries(CASES)) {
    try {
      await run();
      console.log("ok", name);
    } catch (error) {
      console.log("FAIL", name, String(error.stack).replaceAll("\n", " "));
      failed = true;
    }
  }
  for (const client of [users, products, notifications]) client.close();
  process.exitCode = failed ? 1 : 0;
}

main();
