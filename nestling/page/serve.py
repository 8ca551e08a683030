"""A page on this machine's own address, with the histories of trainings as they grow."""

from __future__ import annotations

import contextlib
import hashlib
import ipaddress
import json
import os
import socket
import sys
from collections.abc import Callable
from functools import cache
from http.server import BaseHTTPRequestHandler
from socketserver import ThreadingTCPServer
from typing import Any
from urllib.parse import urlsplit

from nestling.files import UserError, finite, say


def serve(page: Callable[[], str], histories: Callable[[], dict[str, Any]], host: str, port: int) -> None:
    """Answers until Ctrl-C. The page is made once the address is had."""
    with server(cached := cache(page), histories, host, port) as running:
        cached()
        address, port = running.socket.getsockname()[:2]
        usable = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address, address)
        also = "" if usable == address else ", and to other machines under this one's address"
        say(f"http://{f'[{usable}]' if ':' in usable else usable}:{port}/ shows the page{also}; Ctrl-C ends it.")
        running.serve_forever()


def server(page: Callable[[], str], histories: Callable[[], dict[str, Any]], host: str,
           port: int) -> ThreadingTCPServer:
    """GET / is the page, GET /history.json what `histories` returns by then; there is nothing else.

    On a loopback address only requests that name one are answered: a foreign site whose name a DNS server maps to
    127.0.0.1 reads nothing.
    """
    answers: dict[str, tuple[str, Callable[[], str]]] = {
        "/": ("text/html; charset=utf-8", page),
        "/history.json": ("application/json", lambda: json.dumps(finite(histories()), allow_nan=False))}

    class Handler(BaseHTTPRequestHandler):             # of HTTP/1.0: a connection, and its thread, ends by itself
        timeout = 30                                   # seconds for a silent client

        def do_GET(self) -> None:
            if self.path in answers and (loopback(self.headers.get("Host", "")) or not private):
                kind, content = answers[self.path]
                self.answer(200, kind, content().encode())
            else:
                self.answer(404, "text/plain", b"There is nothing here but / .\n")

        def answer(self, status: int, kind: str, content: bytes) -> None:
            tag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
            if status == 200 and self.headers.get("If-None-Match") == tag:
                status = 304
            self.send_response(status)
            for name, value in (("Content-Type", kind), ("Content-Length", str(len(content))), ("ETag", tag),
                                ("Cache-Control", "no-cache"), ("X-Content-Type-Options", "nosniff")):
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(b"" if status == 304 else content)

        def log_message(self, *_: Any) -> None:
            pass

    class Server(ThreadingTCPServer):                  # http.server's asks DNS for the host's name
        address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        allow_reuse_address = os.name == "posix"       # elsewhere two servers would share the port
        daemon_threads = True

        def handle_error(self, *arguments: Any) -> None:
            if not isinstance(sys.exc_info()[1], OSError):     # a client that went away is no fault
                super().handle_error(*arguments)

    try:
        running = Server((host, port), Handler)
    except (OSError, OverflowError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{host}:{port} cannot be listened on ({reason}); give another --port or --host.") from error
    address = ipaddress.ip_address(running.socket.getsockname()[0])
    private = (getattr(address, "ipv4_mapped", None) or address).is_loopback
    return running


def loopback(host: str) -> bool:
    """Does a request's Host name this machine alone?"""
    with contextlib.suppress(ValueError):
        name = urlsplit(f"//{host}").hostname or ""
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    return False
