// HTTP/1.1 servers of Node for the honest suite: `web.js http|express|fastify PORT`.
"use strict";
const http = require("node:http");
const zlib = require("node:zlib");
const { createHash } = require("node:crypto");
const { once } = require("node:events");

const [kind, port] = process.argv.slice(2);

// Headers that the mesh adds to a request. All others must arrive unchanged.
const ADDED = new Set(["x-forwarded-client-cert", "traceparent", "tracestate", "x-request-id", "x-weft-service"]);

// The request as it came, so that a client sees what has changed.
function seen(request, body) {
  const headers = [];
  for (let place = 0; place < request.rawHeaders.length; place += 2) {
    const name = request.rawHeaders[place].toLowerCase();
    if (!ADDED.has(name) && name !== "connection") headers.push(`${name}: ${request.rawHeaders[place + 1]}`);
  }
  const digest = createHash("sha256").update(body).digest("hex");
  return { method: request.method, url: request.url, headers: headers.sort(), bytes: body.length, digest };
}

async function whole(request) {
  const parts = [];
  for await (const part of request) parts.push(part);
  return Buffer.concat(parts);
}

// Routes of the plain server; each ends the answer.
const ROUTES = {
  "/": (_, response) => response.end("hello\n"),
  "/early-hints": (_, response) => {
    response.writeEarlyHints({ link: "</style.css>; rel=preload; as=style" });
    response.end("hinted\n");
  },
  "/processing": (_, response) => {
    response.writeProcessing();
    response.end("processed\n");
  },
  "/trailers": (_, response) => {
    response.writeHead(200, { trailer: "x-sum", "content-type": "text/plain" });
    response.write("part\n");
    response.addTrailers({ "x-sum": "42" });
    response.end();
  },
  "/events": async (_, response) => {
    response.writeHead(200, { "content-type": "text/event-stream", "cache-control": "no-cache" });
    for (let number = 0; number < 20; number++) response.write(`id: ${number}\ndata: event ${number}\n\n`);
    response.end();
  },
  "/stream": (_, response) => {
    for (let number = 0; number < 100; number++) response.write(`part ${number}\n`);
    response.end();
  },
  "/gzip": (_, response) => {
    const body = zlib.gzipSync(Buffer.alloc(100_000, "gzip "), { mtime: 0 });
    response.writeHead(200, { "content-encoding": "gzip", "content-length": body.length, vary: "accept-encoding" });
    response.end(body);
  },
  "/many-headers": (_, response) => {
    for (let number = 0; number < 100; number++) response.setHeader(`x-header-${number}`, `value ${number}`);
    response.end("many\n");
  },
  "/300-headers": (_, response) => {
    for (let number = 0; number < 300; number++) response.setHeader(`x-header-${number}`, `value ${number}`);
    response.end("many\n");
  },
  "/cookies": (_, response) => {
    response.setHeader("set-cookie", ["a=1; Path=/", "b=2; HttpOnly", "c=3; Secure; SameSite=Lax"]);
    response.end("cookies\n");
  },
  "/large-header": (_, response) => response.setHeader("x-large", "x".repeat(12_000)).end("large\n"),
  "/odd-reason": (_, response) => response.writeHead(200, "Everything Is Fine").end("fine\n"),
  "/latin1": (_, response) => response.setHeader("x-name", "caf\u00e9").end("latin\n"),
  "/empty-header": (_, response) => response.setHeader("x-empty", "").end("empty\n"),
  "/204": (_, response) => response.writeHead(204).end(),
  "/304": (_, response) => response.writeHead(304, { etag: '"one"' }).end(),
  "/close": (_, response) => response.setHeader("connection", "close").end("closing\n"),
  "/no-length": (request, response) => {
    response.shouldKeepAlive = false;
    response.useChunkedEncodingByDefault = false;
    response.removeHeader("transfer-encoding");
    response.end("until the end\n".repeat(1000));
  },
  "/large": async (request, response) => {
    const bytes = Number(new URL(request.url, "http://x").searchParams.get("bytes"));
    response.writeHead(200, { "content-length": bytes, "content-type": "application/octet-stream" });
    const part = Buffer.alloc(65536, "l");
    for (let left = bytes; left > 0; left -= part.length) {
      if (!response.write(left < part.length ? part.subarray(0, left) : part)) await once(response, "drain");
    }
    response.end();
  },
  // Answers before it has read the body, and reads none of it.
  "/early": (_, response) => response.writeHead(403).end("no\n"),
};

async function answer(request, response) {
  const path = request.url.split("?")[0];
  const status = /^\/status\/(\d+)$/.exec(path);
  if (status) return response.writeHead(Number(status[1])).end(`${status[1]}\n`);
  if (ROUTES[path] && request.method !== "OPTIONS") return ROUTES[path](request, response);
  const body = await whole(request);
  response.setHeader("content-type", "application/json");
  response.end(JSON.stringify(seen(request, body), null, 1) + "\n");
}

const SERVERS = {
  http: () => {
    const server = http.createServer({ keepAliveTimeout: 60_000, maxHeaderSize: 65536 }, answer);
    server.maxHeadersCount = 0;
    server.on("checkContinue", (request, response) => {
      if (request.url === "/refuse") return response.writeHead(417).end("too much\n");
      response.writeContinue();
      answer(request, response);
    });
    server.on("connect", (request, socket) => socket.end("HTTP/1.1 200 OK\r\ncontent-length: 8\r\n\r\ntunnel\r\n"));
    server.listen({ port, host: "127.0.0.1", backlog: 4096 });
  },
  express: () => {
    const express = require("express");
    const app = express();
    app.get("/", (_, response) => response.send("hello\n"));
    app.get("/json", (_, response) => response.json({ answer: 42, text: "ü" }));
    app.use("/files", express.static(__dirname));
    app.get("/redirect", (_, response) => response.redirect("/json?a=1&b=2"));
    app.get("/boom", () => {
      throw Object.assign(new Error("as asked"), { expose: true, status: 500, stack: "as asked" });
    });
    app.get("/stream", (_, response) => {
      for (let number = 0; number < 100; number++) response.write(`part ${number}\n`);
      response.end();
    });
    app.post("/json", express.json(), (request, response) => response.json(request.body));
    app.post("/form", express.urlencoded({ extended: true }), (request, response) => response.json(request.body));
    app.listen(port, "127.0.0.1");
  },
  fastify: () => {
    const app = require("fastify")({ bodyLimit: 100_000 });
    app.get("/", async () => "hello\n");
    app.get("/json", async () => ({ answer: 42, text: "ü" }));
    app.get("/missing", async (_, reply) => reply.code(404).send({ error: "missing" }));
    app.post("/json", async (request) => request.body);
    app.get("/boom", async () => {
      throw new Error("as asked");
    });
    app.listen({ port: Number(port), host: "127.0.0.1" });
  },
};
SERVERS[kind]();
