"""Pretrained weights from a busy server, and by several processes of a machine."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torchvision

from ferkd.models.teacher import load_teacher
from ferkd.system import download as downloads
from ferkd.system.errors import InputError

NAME, WEIGHTS = "shufflenet_v2_x0_5", torchvision.models.ShuffleNet_V2_X0_5_Weights.DEFAULT


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """A server of torchvision's weights that gives its ``statuses`` one by one, then the file."""
    torch.manual_seed(0)
    network = torchvision.models.get_model(NAME)
    torch.save(network.state_dict(), tmp_path / "file")
    given = SimpleNamespace(statuses=[], sent=[], pause=0.0, network=network, headers={})

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status = given.statuses.pop(0) if given.statuses else 200
            given.sent.append(status)  # before the client can know of it
            self.send_response(status)
            for name, value in given.headers.items():
                self.send_header(name, value)
            data = (tmp_path / "file").read_bytes() if status == 200 else b""
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            time.sleep(given.pause)
            self.wfile.write(data)

        def log_message(self, *_: object) -> None: ...

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("FERKD_CACHE", str(tmp_path / "cache"))
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{running.server_port}/weights.pth"
        monkeypatch.setattr(WEIGHTS.value, "url", url)
        yield given
        running.shutdown()


def test_a_busy_server_is_asked_again_after_growing_waits(
    server: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    monkeypatch.setattr(downloads, "time", SimpleNamespace(sleep=waits.append))
    server.statuses += [429, 503, 429]
    teacher = load_teacher(f"torchvision/{NAME}", device="cpu")
    assert (waits, server.sent) == ([2.0, 4.0, 8.0], [429, 503, 429, 200])
    for name, value in server.network.state_dict().items():
        assert torch.equal(teacher.module.state_dict()[name], value), name
    load_teacher(f"torchvision/{NAME}", device="cpu")
    assert server.sent == [429, 503, 429, 200]  # it is there


def test_a_server_that_says_how_long_is_believed_and_one_that_stays_busy_is_named(
    server: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    monkeypatch.setattr(downloads, "time", SimpleNamespace(sleep=waits.append))
    server.statuses += [429] * 9
    server.headers["Retry-After"] = "7"
    with pytest.raises(InputError, match="429"):
        load_teacher(f"torchvision/{NAME}", device="cpu")
    assert (waits, server.sent) == ([7] * 5, [429] * 6)
    server.statuses[:], waits[:] = [404], []
    with pytest.raises(InputError, match="404"):
        load_teacher(f"torchvision/{NAME}", device="cpu")
    assert waits == []


def test_a_busy_answer_is_found_behind_a_library_s_own_error() -> None:
    """As the hub's libraries raise it: an error without the answer, from one with it."""
    answer = SimpleNamespace(status_code=429, headers={})
    inner = RuntimeError("429 Client Error")
    inner.response = answer  # type: ignore[attr-defined]
    outer = OSError("cannot load")
    outer.__cause__ = inner
    assert downloads._busy(outer) is answer
    answer.status_code = 404
    assert downloads._busy(outer) is None


def test_one_process_of_a_machine_downloads(server: SimpleNamespace) -> None:
    server.pause = 0.5
    pids = []
    for _ in range(3):
        pid = os.fork()
        if pid == 0:
            try:
                torch.set_num_threads(1)
                load_teacher(f"torchvision/{NAME}", device="cpu")
                os._exit(0)
            except BaseException as error:
                print(repr(error), flush=True)
                os._exit(1)
        pids.append(pid)
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids] == [0, 0, 0]
    assert server.sent == [200]
