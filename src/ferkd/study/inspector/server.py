"""The inspector of a whole store, served to a browser on this machine and to nothing else.

It listens on a loopback address alone. A request must name that address as its host, so that a
page of another site whose name was pointed here (DNS rebinding) gets nothing, and one that a
browser says comes from another site is refused. Only GET and HEAD of the routes below exist; no
part of a request becomes a path, images are asked for by their row. Requests, answers and the
number of those worked on at once are bounded.

============================  =================================================================
/                             the page
/data                         its tables
/images?cut=L,M,T&...         some of the images that pass the filters
/image/ROW, /picture/ROW      one image's crops and labels; its picture
============================  =================================================================
"""

from __future__ import annotations

import gzip
import ipaddress
import logging
import socket
import threading
from functools import cached_property
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
from numpy.typing import NDArray

from ferkd.calibration.ranks import row_chunks
from ferkd.calibration.regions import Region
from ferkd.study.inspector.page import Inspector, as_json, render
from ferkd.study.inspector.tables import regions_of
from ferkd.system.errors import InputError

logger = logging.getLogger("ferkd")

LONGEST = 640  # pixels of a picture
MOST = 48  # images in one answer
_ADDRESS = 2048  # characters of an address at most
_AT_ONCE = 8  # requests worked on
_CONNECTIONS = 64  # open; a browser keeps six
_SECONDS = 20.0  # that a client may take to say what it wants
_BUSY = 5.0  # seconds that a request waits for its turn
_ORDERS = ("", "suspicious", "discarded")


class Refused(Exception):
    """A request that gets no answer but this status and line."""

    def __init__(self, status: HTTPStatus, words: str) -> None:
        super().__init__(words)
        self.status = status


class Whole:
    """All images of a store by filter and order, whatever the thresholds; safe in threads."""

    def __init__(self, inspector: Inspector) -> None:
        self._inspector = inspector
        self._lock = threading.Lock()
        self._last: tuple[tuple[Any, ...], NDArray[np.int64]] | None = None

    def rows(
        self, cut: tuple[int, int, int], cls: int | None, region: int | None, word: str, order: str
    ) -> NDArray[np.int64]:
        """Rows that pass, in order; ``cut`` are positions of the three thresholds."""
        key = (cut, cls, region, word, order)
        with self._lock:  # the next page of the same question is cut from the same answer
            if self._last is None or self._last[0] != key:
                self._last = key, self._find(cut, cls, region, word, order)
            return self._last[1]

    def _find(
        self, cut: tuple[int, int, int], cls: int | None, region: int | None, word: str, order: str
    ) -> NDArray[np.int64]:
        judged, cells = self._inspector.judged, self._inspector.cells
        keep = np.ones(len(judged.given), bool)
        if cls is not None:
            keep &= judged.given == cls
        if word:
            keep &= (judged.given >= 0) & (judged.denied == (word == "denies"))
        rows = np.flatnonzero(keep)
        if region is not None or order == "discarded":
            counts = np.empty((len(rows), len(Region)), np.int64)
            for some in row_chunks(len(rows), cells.shape[1]):
                regions = regions_of(cells[rows[some]], *cut)
                counts[some] = np.stack([(regions == r).sum(1) for r in Region], 1)
            if region is not None:
                rows, counts = rows[counts[:, region] > 0], counts[counts[:, region] > 0]
            if order == "discarded":
                rows = rows[np.argsort(-counts[:, Region.DISCARDED], kind="stable")]
        if order == "suspicious":
            doubt = np.where(judged.given >= 0, judged.suspicion, -np.inf)
            rows = rows[np.argsort(-doubt[rows], kind="stable")]
        return rows


class Server(ThreadingHTTPServer):
    """Serves one store on a loopback address; ``port`` 0 takes a free one.

    Raises InputError for another address and for a port that is taken.
    """

    daemon_threads = True
    request_queue_size = _CONNECTIONS

    def __init__(self, inspector: Inspector, host: str = "127.0.0.1", port: int = 8765) -> None:
        self.inspector, self.whole = inspector, Whole(inspector)
        self.turns = threading.BoundedSemaphore(_AT_ONCE)
        self._places = threading.BoundedSemaphore(_CONNECTIONS)
        address = loopback(host)
        if address.version == 6:
            self.address_family = socket.AF_INET6
        if not 0 <= port <= 65535:
            raise InputError(f"--port {port}: give a number from 1 to 65535, or 0 for a free port")
        try:
            super().__init__((str(address), port), Handler)
        except OSError as error:
            raise InputError(
                f"nothing can be served on {host}, port {port}: {error.strerror}; give another "
                "--port, or 0 for a free one"
            ) from None
        self.port = int(self.server_address[1])
        literal = f"[{address}]" if address.version == 6 else str(address)
        self.url = f"http://{literal}:{self.port}/"
        names = ("localhost", literal)
        self.hosts = frozenset(f"{name}:{self.port}" for name in names)
        if self.port == 80:  # which browsers leave out
            self.hosts |= frozenset(names)

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._places.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places.release()

    @cached_property
    def page(self) -> bytes:
        return render(self.inspector, None).encode()

    @cached_property
    def data(self) -> bytes:
        pictured = self.inspector.images.pictured
        note = "Coloured by region: some crops of each image; open one for all."
        if not pictured:
            note += " Give --images for their pictures."
        shown = {"serve": True, "pictured": pictured, "images_note": note}
        return gzip.compress(as_json({**self.inspector.data, **shown}), 6, mtime=0)


def loopback(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """The address of ``host`` where it is this machine's own; InputError for any other."""
    try:
        address = ipaddress.ip_address("127.0.0.1" if host == "localhost" else host)
    except ValueError:
        address = None
    if address is None or not address.is_loopback:
        raise InputError(
            f"--host {host}: the inspector shows images and labels to whoever asks, so it is "
            "served on loopback only; give 127.0.0.1, ::1 or localhost, and from another machine "
            "forward the port (ssh -L 8765:127.0.0.1:8765 HOST)"
        )
    return address


class Handler(BaseHTTPRequestHandler):
    """One request to a :class:`Server`."""

    server: Server
    server_version, sys_version = "ferkd", ""
    protocol_version = "HTTP/1.1"
    timeout = _SECONDS

    def do_GET(self) -> None:
        # A body is never read, so none may follow on this connection.
        self.close_connection = True
        if not self.server.turns.acquire(timeout=_BUSY):
            self._send(HTTPStatus.SERVICE_UNAVAILABLE, "text/plain", b"busy, ask again")
            return
        try:
            self._check()
            self._route()
        except Refused as refused:
            self._send(refused.status, "text/plain", str(refused).encode())
        except InputError as error:
            self._send(HTTPStatus.NOT_FOUND, "text/plain", str(error).encode())
        except (BrokenPipeError, ConnectionResetError):  # the browser went on to another page
            pass
        finally:
            self.server.turns.release()

    do_HEAD = do_GET

    def _check(self) -> None:
        if self.headers.get("Host") not in self.server.hosts:
            raise Refused(
                HTTPStatus.MISDIRECTED_REQUEST, f"ask for {self.server.url}, by that name"
            )
        origin = self.headers.get("Origin")
        if self.headers.get("Sec-Fetch-Site", "none") not in ("none", "same-origin") or (
            origin is not None and origin.removeprefix("http://") not in self.server.hosts
        ):
            raise Refused(HTTPStatus.FORBIDDEN, "other sites get nothing here")
        if len(self.path) > _ADDRESS:
            raise Refused(HTTPStatus.REQUEST_URI_TOO_LONG, f"more than {_ADDRESS} characters")

    def _route(self) -> None:
        inspector, address = self.server.inspector, urlsplit(self.path)
        _, first, *rest = [*address.path.split("/"), ""][:4]
        if first == "" and address.path == "/":
            self._send(HTTPStatus.OK, "text/html; charset=utf-8", self.server.page)
        elif address.path == "/data":
            self._send(HTTPStatus.OK, "application/json", self.server.data, "gzip")
        elif address.path == "/images":
            self._json(self._images(address.query))
        elif first == "image":
            self._json(inspector.images.describe(self._row(rest)))
        elif first == "picture":
            jpeg = inspector.images.jpeg(self._row(rest), LONGEST)
            self._send(HTTPStatus.OK, "image/jpeg", jpeg)
        else:
            raise Refused(HTTPStatus.NOT_FOUND, "there is no such page")

    def _row(self, rest: list[str]) -> int:
        number = _number(rest[0], 0, len(self.server.inspector.store) - 1) if rest else None
        if number is None or rest[1:] not in ([], [""]):
            raise Refused(HTTPStatus.NOT_FOUND, "there is no such image")
        return number

    def _images(self, query: str) -> dict[str, Any]:
        asked = parse_qs(query, max_num_fields=16)
        inspector = self.server.inspector
        last = len(inspector.data["positions"]) - 1

        def number(name: str, low: int, high: int) -> int | None:
            text = asked.get(name, [""])[0]
            found = _number(text, low, high)
            if text and found is None:
                raise Refused(HTTPStatus.BAD_REQUEST, f"{name} must be {low} to {high}")
            return found

        places = [_number(text, 0, last) for text in asked.get("cut", [""])[0].split(",")]
        cut = [place for place in places if place is not None]
        word, order = asked.get("word", [""])[0], asked.get("order", [""])[0]
        if len(places) != 3 or len(cut) != 3 or cut != sorted(cut):
            raise Refused(HTTPStatus.BAD_REQUEST, "cut must be three positions, ascending")
        if word not in ("", "denies", "agrees") or order not in _ORDERS:
            raise Refused(HTTPStatus.BAD_REQUEST, "no such filter or order")
        rows = self.server.whole.rows(
            (cut[0], cut[1], cut[2]),
            number("cls", -1, inspector.store.num_classes - 1),
            number("region", 0, len(Region) - 1),
            word,
            order,
        )
        start = number("offset", 0, len(inspector.store)) or 0
        some = rows[start : start + (number("count", 1, MOST) or MOST)]
        items = [inspector.images.describe(int(row)) for row in some]
        return {"items": items, "total": len(rows)}

    def _json(self, value: dict[str, Any]) -> None:
        self._send(HTTPStatus.OK, "application/json", gzip.compress(as_json(value), 1), "gzip")

    def _send(self, status: HTTPStatus, kind: str, data: bytes, encoding: str = "") -> None:
        self.send_response(status)
        headers = {
            "Content-Type": kind,
            "Content-Length": str(len(data)),
            "X-Content-Type-Options": "nosniff",
            "Cross-Origin-Resource-Policy": "same-origin",
            "Referrer-Policy": "no-referrer",
            "Cache-Control": "no-store",
            "X-Frame-Options": "DENY",
            "Connection": "close",
        } | ({"Content-Encoding": encoding} if encoding else {})
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        logger.debug("inspector: %s", format % args)


def _number(text: str, low: int, high: int) -> int | None:
    """A whole number from ``low`` to ``high``, written plainly; None for anything else."""
    if not text.removeprefix("-").isdecimal() or not text.isascii() or len(text) > 9:
        return None
    return int(text) if low <= int(text) <= high else None
