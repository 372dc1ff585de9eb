"""A machine's name, and calls to it over its socket."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sublet.control import Call, ControlServer, Operations, call, claim, running, wire
from sublet.errors import HostRefused, InternalError, UsageError, WrongMoment


@pytest.fixture(autouse=True)
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))


@pytest.fixture
def server() -> Iterator[ControlServer]:
    with claim("web", exact=True) as machine:
        serving = ControlServer(machine.socket)
        serving.attach(_operations())
        yield serving
        serving.close()


def _operations() -> Operations:
    operations = Operations()
    operations.add("echo", lambda parameters, call: parameters)
    operations.add("fail", _fail)
    operations.add("bug", lambda parameters, call: 1 // 0)
    operations.add("count", _count)
    return operations


def _fail(parameters: dict[str, Any], call: Call) -> None:
    raise WrongMoment("not now", remedy="Later.")


def _count(parameters: dict[str, Any], call: Call) -> str:
    for done in range(3):
        call.progress(done, 3)
    return "done"


def test_a_call_returns_what_the_handler_returns(server: ControlServer) -> None:
    assert call("web", "echo", text="x", number=3) == {"text": "x", "number": 3}


def test_errors_arrive_as_they_were_raised(server: ControlServer) -> None:
    with pytest.raises(WrongMoment, match="not now") as caught:
        call("web", "fail")
    assert caught.value.remedy == "Later."


def test_a_bug_in_a_handler_is_an_internal_error(server: ControlServer) -> None:
    with pytest.raises(InternalError, match="ZeroDivisionError"):
        call("web", "bug")


def test_progress_comes_before_the_result(server: ControlServer) -> None:
    seen: list[tuple[int, int]] = []
    assert call("web", "count", on_progress=lambda done, total: seen.append((done, total))) == "done"
    assert seen == [(0, 3), (1, 3), (2, 3)]


def test_unknown_operations_and_machines_are_named(server: ControlServer) -> None:
    with pytest.raises(UsageError, match=r"'sing'.*echo"):
        call("web", "sing")
    with pytest.raises(UsageError, match="'dbase'") as caught:
        call("dbase", "echo")
    assert "web" in caught.value.remedy


def test_between_power_cycles_the_moment_is_wrong(server: ControlServer) -> None:
    server.attach(None)
    with pytest.raises(WrongMoment):
        call("web", "echo")


def test_a_client_that_leaves_cancels(server: ControlServer) -> None:
    started, ended = threading.Event(), threading.Event()

    def wait(parameters: dict[str, Any], request: Call) -> None:
        started.set()
        while not request.cancelled():
            pass
        ended.set()

    operations = Operations()
    operations.add("wait", wait)
    server.attach(operations)
    from sublet.control.client import _connect

    with _connect("web") as connection:
        connection.sendall(wire.encode({"operation": "wait", "parameters": {}}))
        assert started.wait(10)
    assert ended.wait(10)


@pytest.mark.parametrize(
    "line", [b"\n", b"[]\n", b"{\n", b'{"operation": 3}\n', b"\xff\n", b"[" * 5000 + b"\n"]
)
def test_nonsense_is_answered_with_an_error(server: ControlServer, line: bytes) -> None:
    from sublet.control.client import _connect

    with _connect("web") as connection, connection.makefile("rb") as stream:
        connection.sendall(line)
        answer = wire.read(stream)
    assert answer is not None
    assert answer["error"]["kind"] == "UsageError"


def test_a_name_is_held_once_and_free_afterwards() -> None:
    with claim("web", exact=True):
        assert [machine.name for machine in running()] == ["web"]
        with pytest.raises(UsageError, match="'web' is running"), claim("web", exact=True):
            pass
        with claim("web", exact=False) as second:
            assert second.name == "web-2"
    assert running() == []


@pytest.mark.parametrize("name", ["", "../x", "a/b", "-x", ".x", "x" * 41, "a b", "a\n"])
def test_what_is_no_name_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="no name"), claim(name, exact=True):
        pass


def test_a_directory_that_others_could_write_to_is_refused(tmp_path: Path) -> None:
    (tmp_path / "sublet").mkdir()
    os.chmod(tmp_path / "sublet", 0o777)
    with pytest.raises(HostRefused, match="yours alone"):
        running()
