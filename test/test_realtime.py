"""What the executor asks of the operating system: granted and undone, or refused with a reason."""

from __future__ import annotations

from collections.abc import Callable, Iterator
import ctypes
import os
import threading

import pytest

from flow_vla_ros import realtime

pytestmark = pytest.mark.skipif(not hasattr(os, 'sched_setscheduler'), reason='SCHED_FIFO is of Linux')


@pytest.fixture
def ordinary() -> Iterator[None]:
    """Be an ordinary process again afterwards."""
    yield
    realtime.set_priority(0)
    realtime.unlock_memory()


def test_a_priority_is_in_force_or_there_is_a_reason(ordinary: None) -> None:
    reason = realtime.set_priority(10)
    granted = os.sched_getscheduler(0) == os.SCHED_FIFO
    assert granted == (not reason)
    assert granted or 'limits.conf' in reason
    if granted:
        assert os.sched_getparam(0).sched_priority == 10
        assert realtime.set_priority(0) == '' and os.sched_getscheduler(0) == os.SCHED_OTHER


def test_all_threads_get_the_priority_and_give_it_back(ordinary: None) -> None:
    ready, end = threading.Event(), threading.Event()
    thread = threading.Thread(target=lambda: ready.set() or end.wait(20))
    thread.start()
    try:
        assert ready.wait(20)
        if realtime.set_priority(10):
            pytest.skip('this user may not raise priorities')
        assert os.sched_getscheduler(thread.native_id) == os.SCHED_FIFO
        realtime.set_priority(0)
        assert os.sched_getscheduler(thread.native_id) == os.SCHED_OTHER
    finally:
        end.set()
        thread.join()


def test_a_priority_that_does_not_exist_is_told(ordinary: None) -> None:
    assert realtime.set_priority(1000)
    assert os.sched_getscheduler(0) == os.SCHED_OTHER


def locked_kilobytes() -> int:
    with open('/proc/self/status') as status:
        return next(int(line.split()[1]) for line in status if line.startswith('VmLck'))


def test_memory_is_locked_or_there_is_a_reason(ordinary: None) -> None:
    reason = realtime.lock_memory()
    assert (locked_kilobytes() > 0) == (not reason)
    assert not reason or 'limits.conf' in reason
    assert realtime.unlock_memory() == '' and locked_kilobytes() == 0


@pytest.mark.parametrize(('error', 'said'), [(1, 'memlock unlimited'), (22, 'Invalid argument')])
def test_a_refusal_of_the_kernel_is_explained(monkeypatch: pytest.MonkeyPatch, error: int, said: str) -> None:
    class Libc:
        """Refuses every call."""

        mlockall: Callable = staticmethod(lambda *_: ctypes.set_errno(error) or -1)

    monkeypatch.setattr(ctypes, 'CDLL', lambda *_, **__: Libc())
    assert said in realtime.lock_memory()
