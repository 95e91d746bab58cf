// A client on Node's http with a keep-alive agent. It alternates between a large POST to `path` and a GET.
"use strict";
const http = require("node:http");

const words = Object.fromEntries(process.argv.slice(2).map((word) => word.split(/=(.*)/s, 2)));
const [host, port] = words.target.split(":");
const agent = new http.Agent({ keepAlive: true, maxSockets: 1 });
const body = Buffer.alloc(Number(words.bytes ?? 1_000_000), "x");
const headers = { "x-weft-service": words.service };
const [failures, took] = [{}, []];
let example = "";

function call(method, path, wanted) {
  return new Promise((resolve) => {
    const end = (kind, why) => {
      if (kind) {
        failures[kind] = (failures[kind] ?? 0) + 1;
        example = why;
      }
      resolve();
    };
    const request = http.request({ host, port, path, method, agent, headers }, (response) => {
      response.resume();
      response.on("end", () =>
        response.statusCode === wanted ? end() : end(String(response.statusCode), `${method} ${path}`),
      );
      response.on("error", (error) => end(error.code, `${method} ${path}: ${error.message}`));
    });
    request.on("error", (error) => end(error.code, `${method} ${path}: ${error.message}`));
    request.end(method === "POST" ? body : undefined);
  });
}

async function main() {
  const count = Number(words.calls ?? 100);
  for (let done = 0; done < count; done++) {
    const began = performance.now();
    // The answer may come when only half of the body is sent.
    await call("POST", words.path, Number(words.status ?? 403));
    await call("GET", "/", 200);
    took.push(performance.now() - began);
  }
  const max = Math.max(...took);
  took.sort((a, b) => a - b);
  const told = { calls: 2 * took.length, failures, example, max_ms: max, gap_ms: max - took[took.length >> 1] };
  console.log(JSON.stringify(told));
  process.exit(0);
}
main();
