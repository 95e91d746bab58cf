// WebSocket with ws, and socket.io: `sockets.js server` and `client`, `kind=ws` or `kind=socket.io`.
"use strict";
const http = require("node:http");
const { once } = require("node:events");
const { WebSocket, WebSocketServer } = require("ws");

const [what, ...rest] = process.argv.slice(2);
const words = Object.fromEntries(rest.map((word) => word.split(/=(.*)/s, 2)));

function serve() {
  const server = http.createServer((_, response) => response.end("hello\n"));
  const sockets = new WebSocketServer({ noServer: true, perMessageDeflate: true });
  sockets.on("connection", (socket) => socket.on("message", (data, isBinary) => socket.send(data, { binary: isBinary })));
  const { Server } = require("socket.io");
  new Server(server).on("connection", (socket) => socket.on("echo", (data, answer) => answer(data)));
  server.on("upgrade", (request, socket, head) => {
    if (request.url !== "/ws") return;
    sockets.handleUpgrade(request, socket, head, (opened) => sockets.emit("connection", opened, request));
  });
  server.listen({ port: Number(words.port), host: "127.0.0.1", backlog: 4096 });
}

const headers = { "x-weft-service": words.service };

// Opens a connection, and returns a function that sends one message and resolves to its echo.
async function ws() {
  const socket = new WebSocket(`ws://${words.target}/ws`, { headers });
  await once(socket, "open");
  return async (text) => {
    socket.send(text);
    const [heard] = await once(socket, "message");
    return String(heard);
  };
}

async function socketIo() {
  const { io } = require("socket.io-client");
  const transports = words.transports?.split(",") ?? ["polling", "websocket"];
  const socket = io(`http://${words.target}`, { extraHeaders: headers, forceNew: true, transports, reconnection: false });
  await Promise.race([once(socket, "connect"), once(socket, "connect_error").then(([error]) => Promise.reject(error))]);
  return (text) => socket.timeout(10_000).emitWithAck("echo", text);
}

async function load() {
  const [at, failures] = [[], {}];
  let [max, example] = [0, ""];
  const fail = (error) => {
    failures[error.code ?? error.message] = (failures[error.code ?? error.message] ?? 0) + 1;
    example = String(error.message);
  };
  const open = () => (words.kind === "ws" ? ws() : socketIo()).catch(fail);
  const opened = await Promise.all(Array.from({ length: Number(words.connections ?? 1) }, open));
  const end = performance.now() + 1000 * Number(words.seconds ?? 2);
  const work = async (echo) => {
    try {
      for (let count = 0; performance.now() < end; count++) {
        const [began, text] = [performance.now(), String(count).padEnd(Number(words.bytes ?? 128))];
        if ((await echo(text)) !== text) fail(new Error("CHANGED"));
        at.push(performance.now());
        max = Math.max(max, performance.now() - began);
      }
    } catch (error) {
      fail(error);
    }
  };
  await Promise.all(opened.filter(Boolean).map(work));
  let gap = 0;
  for (let place = 1; place < at.length; place++) gap = Math.max(gap, at[place] - at[place - 1]);
  console.log(JSON.stringify({ calls: at.length, failures, example, gap_ms: gap, max_ms: max }));
  process.exit(0);
}

if (what === "server") serve();
else load();
