"""grpcio's part of the honest suite: `server`, `aio-server`, `client` and `aio-client`. See tests/honest/README.md."""

import asyncio
import concurrent.futures
import json
import sys
import threading
import time

import grpc

LIMITS = [("grpc.max_receive_message_length", 64 << 20), ("grpc.max_send_message_length", 64 << 20)]


def words(args):
    given = dict(arg.split("=", 1) for arg in args)
    return given, lambda name, otherwise=0: int(given.get(name, otherwise))


def options_of_server(number):
    options = LIMITS + [("grpc.so_reuseport", 0)]
    if number("max_streams"):
        options.append(("grpc.max_concurrent_streams", number("max_streams")))
    if number("max_age_ms"):
        options += [("grpc.max_connection_age_ms", number("max_age_ms")), ("grpc.max_connection_age_grace_ms", 10_000)]
    return options


def asked(context):
    """What the caller says in `x-do`: a verb and a number."""
    metadata = dict(context.invocation_metadata())
    verb, _, value = metadata.get("x-do", "").partition(":")
    return verb, int(value or 0), int(metadata.get("x-count", 10))


CODES = {code.value[0]: code for code in grpc.StatusCode}


class Echo:
    """The service, blocking."""

    def do(self, context):
        verb, value, _ = asked(context)
        if verb == "wait":
            time.sleep(value / 1000)
        elif verb == "fail":
            context.abort(CODES[value], "as asked")
        elif verb == "raise":
            raise ValueError("as asked")
        elif verb == "trailer":
            context.set_trailing_metadata((("x-large", "x" * value),))

    def unary(self, request, context):
        self.do(context)
        return request

    def server_stream(self, request, context):
        self.do(context)
        for _ in range(asked(context)[2]):
            yield request

    def client_stream(self, requests, context):
        self.do(context)
        last = b""
        for last in requests:
            pass
        return last

    def bidi(self, requests, context):
        self.do(context)
        yield from requests


class AioEcho:
    """The service, with asyncio."""

    async def do(self, context):
        verb, value, _ = asked(context)
        if verb == "wait":
            await asyncio.sleep(value / 1000)
        elif verb == "fail":
            await context.abort(CODES[value], "as asked")
        elif verb == "raise":
            raise ValueError("as asked")

    async def unary(self, request, context):
        await self.do(context)
        return request

    async def server_stream(self, request, context):
        await self.do(context)
        for _ in range(asked(context)[2]):
            yield request

    async def client_stream(self, requests, context):
        await self.do(context)
        last = b""
        async for last in requests:
            pass
        return last

    async def bidi(self, requests, context):
        await self.do(context)
        async for request in requests:
            yield request


def handlers(echo):
    methods = {
        "Unary": grpc.unary_unary_rpc_method_handler(echo.unary),
        "ServerStream": grpc.unary_stream_rpc_method_handler(echo.server_stream),
        "ClientStream": grpc.stream_unary_rpc_method_handler(echo.client_stream),
        "Bidi": grpc.stream_stream_rpc_method_handler(echo.bidi),
    }
    return [grpc.method_handlers_generic_handler("honest.v1.Echo", methods)]


def serve(given, number):
    threads = concurrent.futures.ThreadPoolExecutor(max_workers=64)
    server = grpc.server(threads, handlers(Echo()), options=options_of_server(number))
    server.add_insecure_port(f"127.0.0.1:{given['port']}")
    server.start()
    server.wait_for_termination()


async def aio_serve(given, number):
    server = grpc.aio.server(handlers=handlers(AioEcho()), options=options_of_server(number))
    server.add_insecure_port(f"127.0.0.1:{given['port']}")
    await server.start()
    await server.wait_for_termination()


class Load:
    """The options of a client, and the outcome of its calls."""

    def __init__(self, given, number):
        self.given = given
        self.kind = given.get("kind", "unary")
        self.body = b"x" * number("bytes", 128)
        self.messages = number("messages", 10)
        self.deadline = number("deadline_ms") / 1000 or None
        self.cancel_every = number("cancel_every")
        self.do_every = number("do_every", 1)
        self.connections, self.each = number("connections", 1), number("each", 1)
        self.left = number("calls", 1 << 40)
        self.expected = {CODES[int(code)] for code in given.get("expect", "").split(",") if code}
        if self.cancel_every:
            self.expected.add(grpc.StatusCode.CANCELLED)
        self.started = time.monotonic()
        self.end = self.started + number("seconds", 2)
        self.answers, self.failures, self.example = [], {}, ""
        self.options = list(LIMITS) + [("grpc.use_local_subchannel_pool", 1)]
        if number("keepalive_ms"):
            self.options += [
                ("grpc.keepalive_time_ms", number("keepalive_ms")),
                ("grpc.keepalive_permit_without_calls", 1),
                ("grpc.http2.max_pings_without_data", 0),
            ]
        self.lock = threading.Lock()

    def goes_on(self):
        with self.lock:
            self.left -= 1
            return self.left >= 0 and time.monotonic() < self.end

    def metadata(self, count):
        pairs = [("x-count", str(self.messages))]
        if "do" in self.given and count % self.do_every == 0:
            pairs.append(("x-do", self.given["do"]))
        return pairs

    def is_cancelled(self, count):
        return self.cancel_every and count % self.cancel_every == 0

    def methods(self, channel):
        return {
            "unary": channel.unary_unary("/honest.v1.Echo/Unary"),
            "server": channel.unary_stream("/honest.v1.Echo/ServerStream"),
            "client": channel.stream_unary("/honest.v1.Echo/ClientStream"),
            "bidi": channel.stream_stream("/honest.v1.Echo/Bidi"),
        }

    def arguments(self):
        return self.body if self.kind in ("unary", "server") else iter([self.body] * self.messages)

    def check(self, heard):
        wanted = [self.body] * (1 if self.kind in ("unary", "client") else self.messages)
        if heard != wanted:
            self.fail("CHANGED", f"{len(heard)} messages came back, or they were changed")

    def fail(self, kind, example):
        with self.lock:
            self.failures[kind] = self.failures.get(kind, 0) + 1
            self.example = example

    def ended(self, began, error=None):
        now = time.monotonic()
        self.answers.append((now - self.started, now - began))
        if error is not None and error.code() not in self.expected:
            self.fail(error.code().name, error.details() or "")

    def report(self):
        at = sorted(at for at, _ in self.answers)
        took = sorted(took for _, took in self.answers) or [0]
        gap = max((b - a for a, b in zip(at, at[1:])), default=0)
        quantile = lambda q: 1000 * took[int(q * (len(took) - 1))]
        told = {"calls": len(at), "failures": self.failures, "example": self.example, "gap_ms": 1000 * gap}
        print(json.dumps(told | {"p50_ms": quantile(0.5), "p99_ms": quantile(0.99), "max_ms": quantile(1)}))


def work(load, methods):
    count = 0
    while load.goes_on():
        count, began = count + 1, time.monotonic()
        try:
            method = methods[load.kind]
            given = {"timeout": load.deadline, "metadata": load.metadata(count)}
            if load.kind in ("unary", "client"):
                call = method.future(load.arguments(), **given)
            else:
                call = method(load.arguments(), **given)
            if load.is_cancelled(count):
                time.sleep(count // load.cancel_every % 20 / 10_000)
                call.cancel()
            heard = [call.result()] if load.kind in ("unary", "client") else list(call)
            load.ended(began)
            load.check(heard)
        except grpc.FutureCancelledError:
            load.ended(began)
        except grpc.RpcError as error:
            load.ended(began, error)


def run_load(given, number):
    load = Load(given, number)
    threads = []
    for _ in range(load.connections):
        methods = load.methods(grpc.insecure_channel(given["target"], load.options))
        threads += [threading.Thread(target=work, args=(load, methods)) for _ in range(load.each)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    load.report()


async def aio_work(load, methods):
    count = 0
    while load.goes_on():
        count, began = count + 1, time.monotonic()
        try:
            call = methods[load.kind](load.arguments(), timeout=load.deadline, metadata=load.metadata(count))
            if load.is_cancelled(count):
                await asyncio.sleep(count // load.cancel_every % 20 / 10_000)
                call.cancel()
            heard = [await call] if load.kind in ("unary", "client") else [message async for message in call]
            load.ended(began)
            load.check(heard)
        except asyncio.CancelledError:
            load.ended(began)
        except grpc.RpcError as error:
            load.ended(began, error)


async def aio_run_load(given, number):
    load = Load(given, number)
    channels = [grpc.aio.insecure_channel(given["target"], load.options) for _ in range(load.connections)]
    workers = [aio_work(load, load.methods(channel)) for channel in channels for _ in range(load.each)]
    await asyncio.gather(*workers)
    load.report()


def main():
    given, number = words(sys.argv[2:])
    match sys.argv[1]:
        case "server":
            serve(given, number)
        case "aio-server":
            asyncio.run(aio_serve(given, number))
        case "client":
            run_load(given, number)
        case "aio-client":
            asyncio.run(aio_run_load(given, number))


main()
