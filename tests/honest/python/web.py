"""The same small answers as a WSGI and as an ASGI application, for gunicorn and uvicorn."""

import json


def wsgi(environ, start_response):
    body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
    path = environ["PATH_INFO"]
    if path == "/stream":
        start_response("200 OK", [("content-type", "text/plain")])
        return (b"part %d\n" % number for number in range(100))
    if path.startswith("/status/"):
        start_response(f"{path[8:]} As Asked", [("content-type", "text/plain")])
        return [b"as asked\n"]
    told = {"method": environ["REQUEST_METHOD"], "path": path, "query": environ["QUERY_STRING"], "body": len(body)}
    start_response("200 OK", [("content-type", "application/json")])
    return [json.dumps(told).encode()]


async def asgi(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": message["type"] + ".complete"})
            if message["type"] == "lifespan.shutdown":
                return
    body, more = 0, True
    while more:
        message = await receive()
        body, more = body + len(message.get("body", b"")), message.get("more_body", False)
    path, status = scope["path"], 200
    if path.startswith("/status/"):
        status = int(path[8:])
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", b"application/json")]})
    if path == "/stream":
        for number in range(100):
            await send({"type": "http.response.body", "body": b"part %d\n" % number, "more_body": True})
        return await send({"type": "http.response.body"})
    told = {"method": scope["method"], "path": path, "query": scope["query_string"].decode(), "body": body}
    await send({"type": "http.response.body", "body": json.dumps(told).encode()})
