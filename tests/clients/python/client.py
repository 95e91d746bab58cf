"""The shop as grpcio calls it: `client.py ADDRESS` runs the cases against the sidecar there, and prints a line for each."""

import queue
import sys
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor

import grpc
from google.protobuf.empty_pb2 import Empty
from google.rpc.error_details_pb2 import BadRequest
from grpc_status import rpc_status
from shop.notifications.v1.notifications_pb2 import NotifyRequest
from shop.notifications.v1.notifications_pb2_grpc import NotificationsStub
from shop.products.v1.products_pb2 import GetRequest, Product, SearchRequest
from shop.products.v1.products_pb2_grpc import ProductsStub
from shop.users.v1 import users_pb2
from shop.users.v1.users_pb2_grpc import UsersStub

# A guard that only a very slow machine reaches.
LIMIT = 60


def main(address):
    with grpc.insecure_channel(address) as channel:
        failed = False
        for name, run in CASES.items():
            try:
                run(channel)
                print("ok", name, flush=True)
            except Exception as error:
                print("FAIL", name, repr(error).replace("\n", " "), flush=True)
                failed = True
    return 1 if failed else 0


def same(what, got, want):
    if got != want:
        raise AssertionError(f"{what} is {got!r} instead of {want!r}")


def refused(call):
    """The error that a call ends with."""
    try:
        answer = call()
    except grpc.RpcError as error:
        return error
    raise AssertionError(f"{answer!r} instead of an error")


def unary(channel):
    stub = UsersStub(channel)
    request = users_pb2.CreateRequest(name="Monty", email=f"{uuid.uuid4().hex}@example.com")
    made = stub.Create(request, timeout=LIMIT)
    same("name", stub.Get(users_pb2.GetRequest(id=made.id), timeout=LIMIT).name, "Monty")


def error_details(channel):
    request = users_pb2.CreateRequest(name="Monty", email="nowhere")
    error = refused(lambda: UsersStub(channel).Create(request, timeout=LIMIT))
    same("code", error.code(), grpc.StatusCode.INVALID_ARGUMENT)
    bad = BadRequest()
    if not any(detail.Unpack(bad) for detail in rpc_status.from_call(error).details):
        raise AssertionError(f"no BadRequest among the details of {error!r}")
    same("field", bad.field_violations[0].field, "email")


def server_stream(channel):
    count = sum(1 for _ in ProductsStub(channel).Search(SearchRequest(), timeout=LIMIT))
    if count < 12:
        raise AssertionError(f"{count} products, not the dozen that there is")


def client_stream(channel):
    sent = (Product(id=f"python-{i}", name="Imported by Python") for i in range(100))
    same("imported", ProductsStub(channel).Import(sent, timeout=LIMIT).imported, 100)


def bidi_stream(channel):
    texts = queue.SimpleQueue()

    def requests():
        while (text := texts.get(timeout=LIMIT)) is not None:
            yield NotifyRequest(user_id="monty", text=text)

    stream = NotificationsStub(channel).Stream(requests(), timeout=LIMIT)
    # Each is sent when the one before was answered: nothing may wait for the end of the stream.
    for i in range(20):
        texts.put(f"number {i}")
        same("text", next(stream).text, f"number {i}")
    texts.put(None)
    same("rest", list(stream), [])
    same("code", stream.code(), grpc.StatusCode.OK)


def metadata(channel):
    tags = (("x-tag", "one"), ("x-tag", "two"))
    blobs = (("x-blob-bin", b"\x00\x01\xfe\xff"), ("x-blob-bin", b""), ("x-blob-bin", b"odd"))
    product = ProductsStub(channel).Get(GetRequest(id="teapot"), metadata=tags + blobs, timeout=LIMIT)
    same("id", product.id, "teapot")


def deadline(channel):
    error = refused(lambda: list(UsersStub(channel).Watch(users_pb2.WatchRequest(), timeout=0.001)))
    same("code", error.code(), grpc.StatusCode.DEADLINE_EXCEEDED)


def cancel(channel):
    def requests():
        yield NotifyRequest(user_id="monty", text="the only one")
        answered.wait(LIMIT)

    answered = threading.Event()
    stream = NotificationsStub(channel).Stream(requests(), timeout=LIMIT)
    same("text", next(stream).text, "the only one")
    stream.cancel()
    same("code", stream.code(), grpc.StatusCode.CANCELLED)
    answered.set()
    same("id", ProductsStub(channel).Get(GetRequest(id="teapot"), timeout=LIMIT).id, "teapot")


def unknown_service(channel):
    call = channel.unary_unary("/shop.nothing.v1.Nothing/Do", Empty.SerializeToString, Empty.FromString)
    error = refused(lambda: call(Empty(), timeout=LIMIT))
    same("code", error.code(), grpc.StatusCode.UNIMPLEMENTED)
    names = {name for name, _ in (*error.initial_metadata(), *error.trailing_metadata())}
    if "x-weft-error" not in names:
        raise AssertionError(f"no x-weft-error among {names}")


def gzip(channel):
    call = ProductsStub(channel).Get
    same("id", call(GetRequest(id="teapot"), compression=grpc.Compression.Gzip, timeout=LIMIT).id, "teapot")


def many_calls(channel):
    get = ProductsStub(channel).Get
    with ThreadPoolExecutor(20) as pool:
        for product in pool.map(lambda _: get(GetRequest(id="teapot"), timeout=LIMIT), range(1000)):
            same("id", product.id, "teapot")


CASES = {
    "unary": unary,
    "error-details": error_details,
    "server-stream": server_stream,
    "client-stream": client_stream,
    "bidi-stream": bidi_stream,
    "metadata": metadata,
    "deadline": deadline,
    "cancel": cancel,
    "unknown-service": unknown_service,
    "gzip": gzip,
    "many-calls": many_calls,
}

if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
