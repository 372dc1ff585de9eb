"""Worker threads, the input route and requests."""

from __future__ import annotations

import threading

import pytest

from sublet.devices.storage.serial_queue import SerialQueue
from sublet.machine.console import InputRoute
from sublet.machine.control import Control, Request
from sublet.machine.host import GsiLine, MsiPort, SharedLine, WorkerPool
from sublet.testing.fake_engine import FakeVm


@pytest.fixture
def errors() -> list[Exception]:
    return []


@pytest.fixture
def pool(errors: list[Exception]) -> WorkerPool:
    return WorkerPool(errors.append)


def test_work_runs_on_another_thread(pool: WorkerPool) -> None:
    done = threading.Event()
    pool.submit(done.set)
    assert done.wait(10)
    assert pool.close()


def test_work_after_close_is_dropped(pool: WorkerPool) -> None:
    assert pool.close()
    assert pool.close()
    pool.submit(lambda: pytest.fail("ran after close"))


def test_close_waits_for_work_in_progress(pool: WorkerPool) -> None:
    begun, release, finished = threading.Event(), threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        release.wait()
        finished.set()

    pool.submit(work)
    begun.wait()
    threading.Timer(0.01, release.set).start()
    assert pool.close()
    assert finished.is_set()


def test_a_disk_that_waits_keeps_no_other_from_working(pool: WorkerPool) -> None:
    release, done = threading.Event(), threading.Event()
    slow, quick = pool.branch(1), pool.branch(1)
    for _ in range(20):
        slow.submit(release.wait)
    quick.submit(done.set)
    assert done.wait(10)
    release.set()
    assert pool.close()
    slow.submit(lambda: pytest.fail("ran after close"))


def test_cables_with_a_thread_each_do_not_wait_for_each_other(pool: WorkerPool) -> None:
    release, done = threading.Event(), threading.Event()
    threads = pool.branch(3)
    cables = [SerialQueue(threads) for _ in range(3)]
    for slow in cables[:2]:
        for _ in range(3):
            slow.submit(release.wait)
    cables[2].submit(done.set)
    assert done.wait(10)
    release.set()
    assert pool.close()


def test_an_exception_is_reported_and_the_worker_goes_on(pool: WorkerPool, errors: list[Exception]) -> None:
    def fail() -> None:
        raise OSError("broken disk")

    done = threading.Event()
    for _ in range(10):
        pool.submit(fail)
    pool.submit(done.set)
    assert done.wait(10)
    pool.close()
    assert [str(error) for error in errors] == ["broken disk"] * 10


def test_input_is_held_back_until_there_is_a_guest() -> None:
    route = InputRoute()
    assert route.offer(b"abc") == 0
    taken: list[bytes] = []
    route.connect(lambda data: taken.append(data[:2]) or 2)  # type: ignore[func-returns-value]
    assert route.offer(b"abc") == 2
    route.connect(None)
    assert route.offer(b"c") == 0
    assert taken == [b"ab"]


def test_requests_arrive_in_order() -> None:
    control = Control()
    error = ValueError("why")
    control.post(Request.POWER_BUTTON)
    control.post(Request.FAILED, error)
    assert control.wait().request is Request.POWER_BUTTON
    assert control.wait().error is error


def test_lines_and_messages_reach_the_core() -> None:
    vm = FakeVm(lambda: iter(()))
    GsiLine(vm, 4).set_level(True)  # type: ignore[arg-type]
    MsiPort(vm).signal(0xFEE0_0000, 0x31)  # type: ignore[arg-type]
    assert vm.irq_levels == [(4, True)]
    assert vm.messages == [(0xFEE0_0000, 0x31)]


def test_a_shared_line_is_high_while_anyone_holds_it() -> None:
    vm = FakeVm(lambda: iter(()))
    line = SharedLine(GsiLine(vm, 20))  # type: ignore[arg-type]
    first, second = line.input(), line.input()
    for holder, level in ((first, True), (second, True), (first, False), (first, False), (second, False)):
        holder.set_level(level)
    assert vm.irq_levels == [(20, True), (20, False)]
