"""The greeter: implements hello.v1.Greeter of proto/hello/v1/hello.proto."""

import os
import signal
import sys
import threading
from concurrent import futures

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from hello.v1 import hello_pb2, hello_pb2_grpc


class Greeter(hello_pb2_grpc.GreeterServicer):
    def __init__(self, replica):
        self.replica = replica

    def Hello(self, request, context):
        print(f"hello to {request.name or 'the world'}", flush=True)
        return hello_pb2.HelloResponse(
            text=f"Hello, {request.name or 'world'}!",
            answered_by=self.replica,
        )


def main(replica):
    # `weft up` sets the address. Only the sidecar calls it, so it needs no TLS: the sidecars have TLS between them.
    address = os.environ.get("WEFT_LISTEN", "127.0.0.1:50051")
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=16))
    hello_pb2_grpc.add_GreeterServicer_to_server(Greeter(replica), server)
    checks = health.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(checks, server)
    server.add_insecure_port(address)

    stop = threading.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, lambda *_: stop.set())
    server.start()
    # The sidecar asks for this, and sends no calls before the answer is SERVING.
    checks.set("", health_pb2.HealthCheckResponse.SERVING)
    print(f"{replica} listens at {address}", flush=True)

    stop.wait()
    # Accepts no new calls; running calls have 5 s.
    server.stop(5).wait()


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "greeter")
