// Connect, gRPC and gRPC-Web with connect-node, and gRPC-Web with Google's grpc-web: `connect.js server` and `client`.
"use strict";
const http = require("node:http");
const http2 = require("node:http2");
const { create, createFileRegistry } = require("@bufbuild/protobuf");
const { FileDescriptorSetSchema } = require("@bufbuild/protobuf/wkt");
const { Code, ConnectError, createClient } = require("@connectrpc/connect");
const connect = require("@connectrpc/connect-node");

const [what, ...rest] = process.argv.slice(2);
const words = Object.fromEntries(rest.map((word) => word.split(/=(.*)/s, 2)));

// tests/proto/honest/v1/echo.proto, as protoc would have it.
const method = (name, clientStreaming, serverStreaming) => {
  const type = ".honest.v1.Message";
  return { name, inputType: type, outputType: type, clientStreaming, serverStreaming };
};
const FILE = {
  name: "honest/v1/echo.proto",
  package: "honest.v1",
  syntax: "proto3",
  messageType: [{ name: "Message", field: [{ name: "body", number: 1, type: 12, label: 1, jsonName: "body" }] }],
  service: [
    {
      name: "Echo",
      method: [
        method("Unary", false, false),
        method("ServerStream", false, true),
        method("ClientStream", true, false),
        method("Bidi", true, true),
      ],
    },
  ],
};
const registry = createFileRegistry(create(FileDescriptorSetSchema, { file: [FILE] }));
const Echo = registry.getService("honest.v1.Echo");
const Message = registry.getMessage("honest.v1.Message");

function serve() {
  const asked = (context) => {
    const [verb, value] = (context.requestHeader.get("x-do") ?? "").split(":");
    if (verb === "fail") throw new ConnectError("as asked", Number(value));
  };
  const routes = (router) =>
    router.service(Echo, {
      unary: (request, context) => {
        asked(context);
        return request;
      },
      async *serverStream(request, context) {
        asked(context);
        for (let sent = 0; sent < 10; sent++) yield request;
      },
    });
  const adapter = connect.connectNodeAdapter({ routes });
  const server = words.http === "2" ? http2.createServer(adapter) : http.createServer(adapter);
  server.listen({ port: Number(words.port), host: "127.0.0.1", backlog: 4096 });
}

// With connect-node: returns a function that makes one call.
function caller() {
  const options = {
    baseUrl: `http://${words.target}`,
    httpVersion: words.http === "2" ? "2" : "1.1",
    interceptors: [
      (next) => (request) => {
        request.header.set("x-weft-service", words.service);
        return next(request);
      },
    ],
  };
  const transports = {
    connect: connect.createConnectTransport,
    grpc: connect.createGrpcTransport,
    web: connect.createGrpcWebTransport,
  };
  const client = createClient(Echo, transports[words.protocol](options));
  const request = create(Message, { body: new Uint8Array(128).fill(120) });
  return async (headers) => {
    if (words.kind !== "server") return (await client.unary(request, { headers })).body.length === 128;
    let count = 0;
    for await (const message of client.serverStream(request, { headers })) count += message.body.length / 128;
    return count === 10;
  };
}

// The same with grpc-web, as in a browser.
function browser() {
  global.XMLHttpRequest = require("xhr2");
  const { GrpcWebClientBase, MethodDescriptor, MethodType } = require("grpc-web");
  const client = new GrpcWebClientBase({ format: words.format ?? "text" });
  const raw = (bytes) => bytes;
  const unary = new MethodDescriptor("/honest.v1.Echo/Unary", MethodType.UNARY, Object, Object, raw, raw);
  const request = new Uint8Array([10, 3, 97, 98, 99]);
  return (headers) =>
    new Promise((resolve, reject) => {
      const metadata = { ...headers, "x-weft-service": words.service };
      client.rpcCall(`http://${words.target}/honest.v1.Echo/Unary`, request, metadata, unary, (error, answer) =>
        error ? reject(error) : resolve(answer.length === request.length),
      );
    });
}

async function load() {
  const call = words.protocol === "grpc-web" ? browser() : caller();
  const [failures, took] = [{}, []];
  let example = "";
  for (let done = 1; done <= Number(words.calls ?? 200); done++) {
    const began = performance.now();
    const headers = words.do && done % 2 === 0 ? { "x-do": words.do } : {};
    let kind;
    try {
      kind = (await call(headers)) ? undefined : "CHANGED";
    } catch (error) {
      const code = Code[error.code] ?? error.code ?? "error";
      if (error.code !== Number(words.expect)) kind = String(code);
      if (kind) example = String(error.message);
    }
    if (kind) failures[kind] = (failures[kind] ?? 0) + 1;
    took.push(performance.now() - began);
  }
  const max = Math.max(...took);
  took.sort((a, b) => a - b);
  const told = { calls: took.length, failures, example, max_ms: max, gap_ms: max - took[took.length >> 1] };
  console.log(JSON.stringify(told));
  process.exit(0);
}

if (what === "server") serve();
else load();
