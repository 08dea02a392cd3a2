"""A real S3 protocol server on loopback, and a wire that breaks, for the tests of remote files."""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any
from unittest import mock
from urllib.request import Request, urlopen

import fsspec
from moto.server import ThreadedMotoServer

ACCOUNT, PARTITION = "123456789012", "aws"  # moto's own
SECRET = "SECRETkey/with+signs"
# Fast failures: botocore's own retries wait for seconds.
CLIENT = {"config_kwargs": {"retries": {"max_attempts": 0}, "read_timeout": 5}}


@contextmanager
def server() -> Iterator[str]:
    """Start moto's server on a free port; its URL, which fsspec's s3:// uses meanwhile."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    moto.start()
    host, port = moto.get_host_and_port()
    with endpoint(f"http://{host}:{port}"):
        yield f"http://{host}:{port}"
    # All of a process's servers share moto's buckets: the next one begins with none.
    urlopen(Request(f"http://{host}:{port}/moto-api/reset", method="POST")).close()
    moto.stop()


@contextmanager
def endpoint(url: str) -> Iterator[None]:
    """Let s3:// mean the server at ``url``, here and in child processes."""
    variables = {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": "KEYID",
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    with (
        mock.patch.dict(os.environ, variables),
        mock.patch.dict(fsspec.config.conf, {"s3": CLIENT}),
        mock.patch.object(fsspec.get_filesystem_class("s3"), "retries", 2),  # of 5, with waits
    ):
        forget_connections()
        yield
    forget_connections()


def forget_connections() -> None:
    """File systems that fsspec keeps would go on with the endpoint they were made with."""
    fsspec.get_filesystem_class("s3").clear_instance_cache()


class Wire:
    """A TCP proxy on loopback that closes a connection after so many bytes.

    ``cut_up`` / ``cut_down``: how many bytes of a connection get to the server or to the client
    before both ends are closed; None for all. ``cuts``: how many connections may still be cut.
    """

    def __init__(self, target: str) -> None:
        host, _, port = target.removeprefix("http://").rpartition(":")
        self._target = (host, int(port))
        self.cut_up: int | None = None
        self.cut_down: int | None = None
        self.cuts = 0
        self.done = 0  # how many were cut
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def break_(self, *, up: int | None = None, down: int | None = None, cuts: int) -> None:
        """Cut the next ``cuts`` connections that carry so many bytes up or down."""
        self.cut_up, self.cut_down, self.cuts, self.done = up, down, cuts, 0

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(self._target)
                pair = (client, server)
                for source, sink, up in ((client, server, True), (server, client, False)):
                    arguments: Any = (source, sink, pair, up)
                    threading.Thread(target=self._pump, args=arguments, daemon=True).start()

    def _pump(
        self, source: socket.socket, sink: socket.socket, pair: tuple[socket.socket, ...], up: bool
    ) -> None:
        carried = 0
        with suppress(OSError):
            while data := source.recv(1 << 14):
                limit = self.cut_up if up else self.cut_down
                if limit is not None and self.cuts > 0 and carried + len(data) > limit:
                    self.cuts -= 1
                    self.done += 1
                    sink.sendall(data[: limit - carried])
                    break
                sink.sendall(data)
                carried += len(data)
        for end in pair:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        source.close()


@contextmanager
def broken_wire(target: str) -> Iterator[Wire]:
    """A wire to the server at ``target`` that s3:// goes through meanwhile."""
    wire = Wire(target)
    with endpoint(wire.url):
        yield wire
    wire.close()
