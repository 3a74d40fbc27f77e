"""Checks what can be said without looking into messages: files, topics, types, stamps and rates."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from flow_vla_core.contract import ActionPart, RobotContract
from flow_vla_core.data.inspection.collectors import message_of, named_parts
from flow_vla_core.data.inspection.findings import Finding, Severity
from flow_vla_core.data.inspection.scan import Scan, TopicScan
from flow_vla_core.data.inspection.timing import Gap, Timing

__all__ = ['check_files', 'check_order', 'check_regularity', 'check_stamps', 'check_topics']

EPISODE = 'flow_vla/msg/Episode'  # of a bag that was cut, marks lie where it begins and ends
FUTURE = 0.05   # s that a stamp may lie ahead of the receipt: clocks are never quite equal
FAR = 1.0       # s that a message may take on its way
AGREE = 1.0     # s within which the delays of all topics count as one and the same offset
MISSING = 0.01  # share of single messages that may be missing
SHOWN = 3       # problems of one bag
SLOW = 1.5      # policy steps between two samples


def check_files(scan: Scan, information: Mapping[str, Any]) -> Iterator[Finding]:
    """Check the files, and what the metadata say about them."""
    bag, count = str(scan.path), sum(len(topic) for topic in scan.topics.values())
    if scan.problems:
        more = f'; and {len(scan.problems) - SHOWN} more' if len(scan.problems) > SHOWN else ''
        yield Finding.of('DAMAGED', bag, '', '; '.join(scan.problems[:SHOWN]) + more)
    if count == 0 and not scan.problems:
        yield Finding.of('EMPTY', bag, '', '0 messages')
    told = information.get('message_count')
    if count and not scan.problems and isinstance(told, int) and told != count:
        yield Finding.of('COUNT_DIFFERS', bag, '', f'the metadata speak of {told} messages, the files hold {count}')


def check_topics(scan: Scan, contract: RobotContract | None) -> Iterator[Finding]:
    """Check that what the contract needs is there, with its type, and that types are known."""
    bag, wrong = str(scan.path), set()
    for name, part in named_parts(contract).items() if scan.topics else ():
        recorded = scan.found.get(name)
        topic = scan.topics.get(recorded or '')
        if topic is None:
            if name != 'instruction':  # its absence is judged with the words
                there = ', '.join(sorted(scan.topics))
                yield Finding.of('TOPIC_MISSING', bag, part.topic, f'{name}: not recorded; there are {there}')
        elif topic.type != message_of(part):
            wrong.add(recorded)
            yield Finding.of('TYPE_WRONG', bag, recorded, f'recorded as {topic.type}, the contract says '
                                                          f'{message_of(part)}')
        elif not len(topic) and name != 'instruction' and any(map(len, scan.topics.values())):
            yield Finding.of('TOPIC_SILENT', bag, recorded, f'{name}: 0 messages')
    for topic in scan.topics.values():
        if not topic.known and topic.name not in wrong:
            yield Finding.of('TYPE_FOREIGN', bag, topic.name, f'no definition of {topic.type} is known; its '
                                                              f'{len(topic)} messages were counted and not looked at')


def check_stamps(scan: Scan, contract: RobotContract | None, timings: Mapping[str, Timing]) -> Iterator[Finding]:
    """Check that stamps are there, and close to the times of receipt."""
    bag = str(scan.path)
    commands = {scan.found.get(f'action {part.name}') for part in contract.actions} if contract else set()
    timings = {name: timing for name, timing in timings.items() if scan.topics[name].type != EPISODE}
    delays = {name: timing.delay for name, timing in timings.items() if timing.delay}
    far = [name for name, delay in delays.items() if delay[1] > FAR]
    medians = [delays[name][1] for name in far]
    common = len(far) > 1 and len(far) == len(delays) and max(medians) - min(medians) < AGREE
    if common:
        yield Finding.of('STAMP_FAR', bag, '', f'all stamps lie {medians[0]:.3f} s behind their receipt: recorded from '
                                               f'a simulation without use_sim_time, or the clocks differ')
    for name, timing in timings.items():
        if timing.zeros and name not in commands:  # controllers read a zero in a command as now
            yield Finding.of('STAMP_ZERO', bag, name, f'{timing.zeros} of {timing.count} stamps are zero')
        if timing.delay and timing.delay[0] < -FUTURE:
            count = _outside(scan.topics[name], -np.inf, -FUTURE)
            yield Finding.of('STAMP_FUTURE', bag, name, f'{count} of {timing.count} stamps lie after their receipt, '
                                                        f'by up to {-timing.delay[0]:.3f} s')
        if not common and timing.delay and timing.delay[3] > FAR and not timing.jumps:
            count = _outside(scan.topics[name], FAR, np.inf)
            yield Finding.of('STAMP_FAR', bag, name, f'{count} of {timing.count} stamps lie more than {FAR:g} s before '
                                                     f'their receipt, up to {timing.delay[3]:.3f} s')


def check_order(scan: Scan, timings: Mapping[str, Timing]) -> Iterator[Finding]:
    """Check that stamps only grow."""
    bag = str(scan.path)
    for name, timing in timings.items():
        if timing.jumps:
            yield Finding.of('STAMP_BACKWARDS', bag, name, f'stamps jump back {_times(timing.jumps)}, and go on from '
                                                           f'there')
        if timing.overtaken:
            yield Finding.of('REORDERED', bag, name, f'{timing.overtaken} of {timing.count} messages come after later '
                                                     f'ones')
        if timing.repeated and not timing.jumps:
            yield Finding.of('STAMP_REPEATED', bag, name, f'{timing.repeated} of {timing.count} messages carry a stamp '
                                                          f'that another one has')


def check_regularity(scan: Scan, contract: RobotContract | None, timings: Mapping[str, Timing]) -> Iterator[Finding]:
    """Check rates, gaps and missing messages."""
    bag, parts = str(scan.path), named_parts(contract)
    roles = {recorded: parts[name] for name, recorded in scan.found.items() if name in parts}
    for name, timing in timings.items():
        part = roles.get(name)
        if timing.gaps and not timing.jumps:
            yield _gap(scan, name, timing, part)
        expected = timing.count + timing.drops
        if timing.drops > MISSING * expected:
            yield Finding.of('DROPS', bag, name, f'about {timing.drops} of {expected} messages are missing one by one '
                                                 f'({100 * timing.drops / expected:.1f} %)')
        if hasattr(part, 'max_skew') and not timing.repeated and timing.period > SLOW * contract.rates.policy_dt:
            yield Finding.of('RATE_LOW', bag, name, f'{1 / timing.period:.1f} Hz, the policy steps at '
                                                    f'{1 / contract.rates.policy_dt:.1f} Hz')


def _gap(scan: Scan, name: str, timing: Timing, part: Any) -> Finding:
    longest: Gap = max(timing.gaps, key=lambda gap: gap.length)
    allowed = getattr(part, 'max_skew', None)
    total = sum(gap.length for gap in timing.gaps)
    message = (f'{_times(len(timing.gaps), "gap")}, {total:.2f} s in all; the longest lasts {longest.length:.2f} s '
               f'from second {(longest.start - _origin(scan, name)) / 1e9:.2f} on')
    if allowed is None or isinstance(part, ActionPart) or longest.length <= allowed + timing.period:
        return Finding.of('GAP', str(scan.path), name, message)
    return Finding.of('GAP', str(scan.path), name, f'{message}; the contract allows {allowed:g} s', Severity.ERROR)


def _origin(scan: Scan, name: str) -> int:
    """Return the time at which the bag begins, in the clock by which a topic's gaps were measured."""
    topic = scan.topics[name]
    offset = 0 if topic.stamps is None else int(np.median(topic.log - topic.stamps))
    return scan.start - (offset if abs(offset) > FAR * 1e9 else 0)


def _outside(topic: TopicScan, low: float, high: float) -> int:
    real = topic.stamps != 0
    delay = (topic.log[real] - topic.stamps[real]) / 1e9
    return int(((delay > low) & (delay < high)).sum())


def _times(count: int, what: str = 'time') -> str:
    return f'{count} {what}{"" if count == 1 else "s"}'
