"""The served inspector answers this machine's browser and nobody else, within bounds."""

from __future__ import annotations

import gzip
import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from blots import colours, write_blots

from ferkd.calibration.regions import Regions, mine
from ferkd.images import open_images
from ferkd.labelling.run import label
from ferkd.store import LabelStore
from ferkd.study.inspector.page import prepare
from ferkd.study.inspector.server import MOST, Server, loopback
from ferkd.study.suspicious import judge
from ferkd.system.errors import InputError


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    root = tmp_path_factory.mktemp("served")
    write_blots(root / "images", ("a", "b", "c"), 20, 3)
    store = label(root / "images", colours(3), root / "labels", crops=6, workers=1)
    (root / "images" / "a" / "005.jpg").write_bytes(b"changed since")
    with Server(prepare(store, open_images(root / "images")), port=0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def ask(
    server: Server, path: str, method: str = "GET", **headers: str
) -> tuple[int, http.client.HTTPMessage, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(method, path, headers=named)
    answer = connection.getresponse()
    data = answer.read()
    connection.close()
    if answer.headers.get("Content-Encoding") == "gzip" and data:
        data = gzip.decompress(data)
    return answer.status, answer.headers, data


def images(server: Server, **query: object) -> dict:
    start = ",".join(map(str, server.inspector.data["start"]))
    words = "&".join(f"{name}={value}" for name, value in ({"cut": start} | query).items())
    status, _, data = ask(server, f"/images?{words}")
    assert status == 200, data
    return json.loads(data)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.7", "example.org", "", "127.0.0.1.x"])
def test_other_addresses_than_loopback_are_refused(host: str) -> None:
    with pytest.raises(InputError, match="served on loopback only"):
        loopback(host)
    assert str(loopback("localhost")) == "127.0.0.1" and str(loopback("::1")) == "::1"


def test_a_port_that_is_taken_is_named(served: Server) -> None:
    with pytest.raises(InputError, match=f"port {served.port}.*another --port"):
        Server(served.inspector, port=served.port)
    with pytest.raises(InputError, match="--port 70000"):
        Server(served.inspector, port=70000)


def test_only_this_host_by_name(served: Server) -> None:
    """A rebound name arrives in Host, and another site in Origin or Sec-Fetch-Site."""
    assert served.server_address[0] == "127.0.0.1"
    for host in (f"localhost:{served.port}", f"127.0.0.1:{served.port}"):
        assert ask(served, "/", Host=host)[0] == 200
    for host in (
        "evil.example",
        f"evil.example:{served.port}",
        "127.0.0.1",
        f"localhost.:{served.port}",
    ):
        status, _, data = ask(served, "/data", Host=host)
        assert status == 421 and b"positions" not in data
    assert ask(served, "/data", Origin="http://evil.example")[0] == 403
    assert ask(served, "/data", Origin="null")[0] == 403
    assert ask(served, "/data", Sec_Fetch_Site="cross-site")[0] == 403
    assert ask(served, "/data", Sec_Fetch_Site="same-origin", Origin=served.url[:-1])[0] == 200


def test_answers_forbid_what_the_page_does_not_need(served: Server) -> None:
    status, headers, page = ask(served, "/")
    assert status == 200 and b"script-src 'sha256-" in page and b"connect-src 'self'" in page
    assert headers["X-Content-Type-Options"] == "nosniff" and headers["X-Frame-Options"] == "DENY"
    assert "Access-Control-Allow-Origin" not in headers
    status, headers, data = ask(served, "/", "HEAD")
    assert status == 200 and data == b"" and int(headers["Content-Length"]) == len(page)
    for method in ("POST", "PUT", "DELETE", "OPTIONS"):
        assert ask(served, "/", method)[0] == 501


@pytest.mark.parametrize(
    "path",
    [
        *("/picture/../../etc/passwd", "/picture/%2e%2e%2fmanifest.json", "/picture/-1"),
        *(
            "/picture/60",
            "/picture/1e1",
            "/picture/%D9%A3",
            "/picture/",
            "/picture/1/2",
            "/image/x",
        ),
        *("/data/", "/etc/passwd", "/page/core.js", "/picture", "/image/99999999999999999999"),
    ],
)
def test_no_path_leads_anywhere(served: Server, path: str) -> None:
    status, _, data = ask(served, path)
    assert status == 404 and data in (b"there is no such page", b"there is no such image")


def test_requests_are_bounded(served: Server) -> None:
    assert ask(served, "/images?cut=" + "1" * 3000)[0] == 414
    for query in ("", "cut=1,2", "cut=3,2,1", "cut=0,1,5000", "cut=a,b,c", "cut=0,1,2,3"):
        assert ask(served, f"/images?{query}")[0] == 400
    for query in ("cls=9", "region=3", "word=x", "order=x", f"count={MOST + 1}", "offset=-1"):
        assert ask(served, f"/images?cut=0,0,9&{query}")[0] == 400
    assert len(images(served, count=MOST)["items"]) == MOST


def test_clients_that_say_nothing_are_few(served: Server) -> None:
    """They hold a thread, no turn of the others; and past a number they are sent away."""
    address = ("127.0.0.1", served.port)
    silent = [socket.create_connection(address, timeout=5) for _ in range(20)]
    assert ask(served, "/")[0] == 200
    silent += [socket.create_connection(address, timeout=5) for _ in range(60)]
    assert silent[-1].recv(1) == b""  # closed at once
    for connection in silent:
        connection.close()
    for _ in range(100):  # until their threads have noticed
        with suppress(OSError, http.client.HTTPException):
            if ask(served, "/")[0] == 200:
                return
        time.sleep(0.05)
    raise AssertionError("no answer after they had gone")


def test_a_changed_image_is_not_shown(served: Server) -> None:
    row = served.inspector.store.ids.find("a/005.jpg")
    status, _, data = ask(served, f"/picture/{row}")
    assert status == 404 and b"not the one that was labelled" in data
    status, headers, data = ask(served, "/picture/0")
    assert status == 200 and headers["Content-Type"] == "image/jpeg" and data[:2] == b"\xff\xd8"


def test_filters_and_orders_are_those_of_the_whole_store(served: Server) -> None:
    store: LabelStore = served.inspector.store
    judged = judge(store)
    places = served.inspector.data["positions"]
    cut = [places.index(0.3), places.index(0.5), places.index(0.9)]
    regions = mine(store, Regions(thresholds=(0.3, 0.5, 0.9))).by_score()
    query = {"cut": ",".join(map(str, cut)), "count": MOST}
    for region in range(3):
        has = np.flatnonzero((regions == region).any(1))
        found = images(served, **query, region=region)
        assert found["total"] == len(has)
        assert [item["row"] for item in found["items"]] == has[:MOST].tolist()
    found = images(served, **query, word="denies", order="suspicious")
    rows = judged.ranked()
    assert [i["row"] for i in found["items"]] == rows[judged.denied[rows]].tolist()
    agreeing = images(served, **query, word="agrees", cls=1, offset=2)
    assert agreeing["total"] == int((~judged.denied & (store.targets == 1)).sum())
    assert len(agreeing["items"]) == agreeing["total"] - 2
    first = images(served, **query, order="discarded")["items"][0]
    assert (regions[first["row"]] == 0).sum() == (regions == 0).sum(1).max()


def test_the_command_refuses_a_public_address(tmp_path: Path, command_line) -> None:
    status, _, said = command_line("inspect", tmp_path, "--serve", "--host", "0.0.0.0")
    assert status == 2 and "loopback only" in said and "ssh -L" in said
    status, _, said = command_line("inspect", tmp_path, "--serve", "--html", tmp_path / "x.html")
    assert status == 2 and "--serve writes nothing" in said
