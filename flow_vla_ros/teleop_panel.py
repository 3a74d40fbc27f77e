"""What a person who drives and records wants to see, as lines of text."""

from __future__ import annotations

from collections.abc import Iterable

from flow_vla.msg import Episode, ExecutionStatus, RecorderStatus
from flow_vla_core.errors import Code
from flow_vla_core.execution import ExecutionState
from flow_vla_core.types import Actor

__all__ = ['describe_execution', 'describe_recorder', 'describe_topics', 'in_lines']

OUTCOMES = {Episode.UNKNOWN: 'not marked', Episode.SUCCESS: 'success', Episode.FAILURE: 'failure'}


def describe_execution(status: ExecutionStatus | None) -> list[str]:
    """Say who acts, what the executor does, and why not, if so."""
    if status is None:
        return ['robot     nothing heard from the executor']
    name, state = Actor(status.source).name.lower(), ExecutionState(status.state).name
    complaint = '' if status.code in (Code.OK, Code.NO_CHUNK) else f'   {_code_name(status.code)}: {status.message}'
    return [f'robot     {state}, {name} acts, speed {status.speed:.0%}{complaint}']


def describe_recorder(status: RecorderStatus | None) -> list[str]:
    """Say which episode is recorded, under which words, how much is lost, and for how long the disk lasts."""
    if status is None:
        return ['recorder  nothing heard from the recorder']
    room = f'disk      {status.free_mb:,} MB free{_time_left(status.seconds_left)}'
    if status.state == RecorderStatus.IDLE:
        complaint = f'not ready: {_code_name(status.code)}: {status.message}' if status.code else 'ready'
        return [f'recorder  {complaint}, {status.kept} episodes kept', room]
    return [
        f'recorder  RECORDING {status.id}, {status.duration:.1f} s, {status.messages:,} messages, '
        f'{status.bytes / 2 ** 20:.1f} MB, {OUTCOMES.get(status.outcome, "?")}, {status.kept} kept before',
        f'words     {status.instruction}',
        f'dropped   {status.dropped} messages' + ('  LOST ' + ', '.join(_lost(status)) if status.dropped else ''), room]


def describe_topics(status: RecorderStatus | None) -> list[str]:
    """Say at what rate each topic comes, how old its newest sample is, and what was lost of it."""
    if status is None or not status.topics:
        return []
    width = max(map(len, status.topics))
    rows = zip(status.topics, status.rates, status.ages, status.counts, status.drops)
    return [f'{"topic":{width}}  {"Hz":>6}  {"age":>8}  {"messages":>9}  {"lost":>5}', *(
        f'{topic:{width}}  {rate:6.1f}  {f"{age:.2f} s" if age >= 0 else "never":>8}  {count:9,}  {lost:5}'
        for topic, rate, age, count, lost in rows)]


def in_lines(words: Iterable[str], width: int) -> list[str]:
    """Put words side by side, as many to a line as fit."""
    lines: list[str] = []
    for word in words:
        if lines and len(lines[-1]) + 3 + len(word) <= width:
            lines[-1] += f'   {word}'
        else:
            lines.append(word)
    return lines


def _lost(status: RecorderStatus) -> Iterable[str]:
    return (f'{topic}: {lost}' for topic, lost in zip(status.topics, status.drops) if lost)


def _time_left(seconds: float) -> str:
    if seconds < 0:
        return ''
    hours, minutes = divmod(int(seconds) // 60, 60)
    return f', {hours} h {minutes:02} min at this rate'


def _code_name(code: int) -> str:
    return Code(code).name if code in Code._value2member_map_ else str(code)
