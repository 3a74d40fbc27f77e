"""What the operating system can do so that a control loop is on time."""

from __future__ import annotations

from contextlib import suppress
import ctypes
import errno
import os
import resource
import sys

__all__ = ['be_ordinary', 'be_punctual', 'lock_memory', 'set_priority', 'unlock_memory']

MCL_CURRENT, MCL_FUTURE = 1, 2
TASKS = '/proc/self/task'


def be_punctual(priority: int, memory: bool) -> list[str]:
    """Raise the priority, unless it is 0, and lock the memory, if asked for; return what the system refused."""
    refused = {'priority': set_priority(priority) if priority else '', 'lock_memory': lock_memory() if memory else ''}
    return [f'{name}: {reason}' for name, reason in refused.items() if reason]


def be_ordinary(priority: int, memory: bool) -> None:
    """Undo `be_punctual`."""
    if priority:
        set_priority(0)
    if memory:
        unlock_memory()


def set_priority(priority: int) -> str:
    """Let every thread of this process run before all ordinary ones (SCHED_FIFO, 1 to 99; 0: as ordinary ones).

    Those of the middleware too, which bring the emergency stop, and hold locks that publishing waits for: a busy
    machine would otherwise hold up the loop by way of them. Threads that are made later take after their makers.

    Returns:
        why the system does not let us, or nothing.
    """
    if not hasattr(os, 'sched_setscheduler'):
        return f'{sys.platform} has no SCHED_FIFO'
    policy = os.SCHED_FIFO if priority else os.SCHED_OTHER
    try:
        for thread in map(int, os.listdir(TASKS)):
            with suppress(ProcessLookupError):  # it has ended meanwhile
                os.sched_setscheduler(thread, policy, os.sched_param(priority))
    except PermissionError:
        return (f'this user may not raise priorities (limit: {resource.getrlimit(resource.RLIMIT_RTPRIO)[0]}); '
                'allow it with a line "USER - rtprio 98" in /etc/security/limits.conf')
    except OSError as error:
        return f'SCHED_FIFO: {error.strerror}'
    return ''


def lock_memory() -> str:
    """Keep every page of this process in memory, those of the future too; return why not, or nothing."""
    return _call('mlockall', MCL_CURRENT | MCL_FUTURE)


def unlock_memory() -> str:
    """Undo `lock_memory`; return why not, or nothing."""
    return _call('munlockall')


def _call(name: str, *arguments: int) -> str:
    function = getattr(ctypes.CDLL(None, use_errno=True), name, None) if os.name == 'posix' else None
    if function is None:
        return f'{sys.platform} has no {name}'
    if function(*arguments) == 0:
        return ''
    number = ctypes.get_errno()
    if number in (errno.EPERM, errno.ENOMEM):
        return ('this user may not lock so much memory; allow it with a line "USER - memlock unlimited" in '
                '/etc/security/limits.conf')
    return f'{name}: {os.strerror(number)}'
