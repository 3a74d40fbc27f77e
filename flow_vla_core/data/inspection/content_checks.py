"""Checks what messages hold: pictures, numbers, words; and how well the streams fit together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from flow_vla_core.contract import ActionPart, Camera, RobotContract
from flow_vla_core.data.inspection.collectors import ImageCollector, LossCollector, ValueCollector
from flow_vla_core.data.inspection.findings import Finding, Severity
from flow_vla_core.data.inspection.motion import bounds_of, idle_spans, is_rate, steps_beyond, still
from flow_vla_core.data.inspection.scan import Scan
from flow_vla_core.data.inspection.spans import Span
from flow_vla_core.data.inspection.timing import Timing

__all__ = ['Skew', 'check_images', 'check_losses', 'check_motion', 'check_values', 'check_words', 'find_idle',
           'measure_skew', 'motion_grid', 'sorted_series']

FROZEN = 1.0     # s of the same picture while something moves
IDLE = (0.5, 2.0)  # share of a bag, and s, without motion that are worth a word
SLACK = 1e-4     # of the range of a limit: commands travel as 32-bit numbers
MOST_TIMES = 10 ** 6
LEAP = 2.0       # times what the limits allow between two commands


@dataclass(frozen=True)
class Skew:
    """Says how far before the reference time a stream's samples lie, over the policy's time grid.

    Args:
        stream: name of it.
        median: s.
        worst: s.
        allowed: by the contract, s.
        beyond: grid times at which it is more than that.
        steps: grid times.
    """

    stream: str
    median: float
    worst: float
    allowed: float
    beyond: int
    steps: int


def check_images(scan: Scan, contract: RobotContract | None, idle: list[tuple[int, int]]) -> Iterator[Finding]:
    """Check sizes and encodings against the contract, lengths, and pictures that stand still."""
    bag = str(scan.path)
    cameras = {scan.found[c.name]: c for c in contract.cameras if c.name in scan.found} if contract else {}
    for name, held in scan.of_kind(ImageCollector).items():
        if name in cameras:
            yield from _compare(bag, name, held, cameras[name])
        if held.invalid:
            yield Finding.of('IMAGE_INVALID', bag, name, f'{held.invalid} of {sum(held.shapes.values())} images: '
                                                         f'{held.why}')
        frozen = [_moving((first, last), idle) for first, last in held.still]
        if contract and frozen and max(frozen) > FROZEN:
            yield Finding.of('FROZEN', bag, name, f'the same picture for {max(frozen):.1f} s while the robot moves')
    for name, held in scan.collected.items():
        if held.refused:
            yield Finding.of('MESSAGE_DAMAGED', bag, name, f'{held.refused} of {len(scan.topics[name])} messages: '
                                                           f'{held.reason}')


def check_values(scan: Scan) -> Iterator[Finding]:
    """Check that numbers are finite, and commands within their limits."""
    bag = str(scan.path)
    for name, held in scan.of_kind(ValueCollector).items():
        values, part = held.values, held.part
        wrong = ~np.isfinite(values)
        if wrong.any():
            why = held.why or ', '.join(part.names[index] for index in np.flatnonzero(wrong.any(0)))
            yield Finding.of('NOT_FINITE', bag, name, f'{int(wrong.any(1).sum())} of {len(values)} messages: {why}')
        if isinstance(part, ActionPart) and len(values):
            yield from _limits(bag, name, part, values)


def check_motion(scan: Scan, idle: list[tuple[int, int]]) -> Iterator[Finding]:
    """Check for leaps between commands, and for time without motion."""
    bag = str(scan.path)
    for name, held in scan.of_kind(ValueCollector).items():
        if isinstance(held.part, ActionPart):
            stamps, values = sorted_series(held)
            beyond = steps_beyond(held.part, stamps, values)
            if beyond.size and beyond.max() > LEAP:
                row, column = np.unravel_index(beyond.argmax(), beyond.shape)
                yield Finding.of('JUMP', bag, name, f'{held.part.names[column]}: {int((beyond > LEAP).any(1).sum())} '
                                 f'steps are more than {LEAP:g} times what the limits allow; the widest is '
                                 f'{beyond[row, column]:.1f} times that, from {values[row, column]:.3f} to '
                                 f'{values[row + 1, column]:.3f} {held.part.unit}')
    total = sum(last - first for first, last in idle) / 1e9
    if total > IDLE[1] and total > IDLE[0] * scan.duration:
        yield Finding.of('IDLE', bag, '', f'nothing moves for {total:.1f} of {scan.duration:.1f} s')


def check_words(scan: Scan, contract: RobotContract | None, words: list[Span], spans: list[Span]) -> Iterator[Finding]:
    """Check that there is an instruction, and that every episode ends."""
    bag = str(scan.path)
    if contract is not None and scan.duration > 0 and not words:
        topic = scan.found.get('instruction', contract.instruction.topic)
        yield Finding.of('NO_INSTRUCTION', bag, topic, 'no words, neither in the marks nor on the topic')
    if not scan.problems:
        for span in spans:
            if not span.ended:
                yield Finding.of('NOT_ENDED', bag, '', f'the episode {span.label!r} begins and no mark ends it')


def check_losses(scan: Scan) -> Iterator[Finding]:
    """Check what the recorder said about messages that it lost."""
    for held in scan.of_kind(LossCollector).values():
        if held.dropped:
            where = ', '.join(f'{topic} {count}' for topic, count in sorted(held.drops.items()) if count)
            yield Finding.of('LOST', str(scan.path), '', f'the recorder lost {held.dropped} messages'
                                                         f'{": " if where else ""}{where}')


def measure_skew(scan: Scan, contract: RobotContract,
                 timings: Mapping[str, Timing]) -> tuple[list[Skew], list[Finding]]:
    """Measure how far the streams lie apart on the policy's grid, and what of it the contract forbids."""
    series = {stream: _stamps(scan, stream.name) for stream in contract.streams if stream.name in scan.found}
    series = {stream: stamps for stream, stamps in series.items() if len(stamps)}
    commands = [stamps for part in contract.actions if len(stamps := _commands(scan, part.name))]
    if len(series) < len(contract.streams):
        return [], []
    start = max(int(stamps[0]) for stamps in (*series.values(), *commands))
    end = min(int(stamps[-1]) for stamps in series.values())
    if commands:
        end = min(end, max(int(stamps[-1]) for stamps in commands))
    if end < start:
        return [], [Finding.of('NO_OVERLAP', str(scan.path), '', f'all streams and commands exist from '
                               f'{start / 1e9:.3f} s on, the first of them ends at {end / 1e9:.3f} s')]
    grid = _grid(start, end, contract.rates.policy_dt_ns)
    skews, findings = [], []
    for stream, stamps in series.items():
        ages = (grid - stamps[np.searchsorted(stamps, grid, 'right') - 1]) / 1e9
        beyond = ages > stream.max_skew + 1e-9
        skews.append(Skew(stream.name, float(np.median(ages)), float(ages.max()), stream.max_skew, int(beyond.sum()),
                          len(grid)))
        findings += _skewed(scan, stream, grid[beyond], skews[-1], timings[scan.found[stream.name]])
    return skews, findings


def motion_grid(scan: Scan, contract: RobotContract | None) -> np.ndarray:
    """Return the times at which motion is looked at, from the first to the last message, (G,) ns."""
    return _grid(scan.start, scan.end, contract.rates.policy_dt_ns if contract else 10 ** 8)


def find_idle(scan: Scan, contract: RobotContract | None) -> list[tuple[int, int]]:
    """Return the stretches in which neither state nor commands move, as pairs of times, ns; none if nobody knows."""
    grid = motion_grid(scan, contract)
    series = [(held, *sorted_series(held)) for held in scan.of_kind(ValueCollector).values()]
    series = [(held, stamps, values) for held, stamps, values in series if len(stamps) > 1]
    if not series or len(grid) < 2:
        return []
    quiet = [still(stamps, values, grid, isinstance(held.part, ActionPart) and is_rate(held.part))
             for held, stamps, values in series]
    return idle_spans(np.all(quiet, 0), grid)


def sorted_series(held: ValueCollector) -> tuple[np.ndarray, np.ndarray]:
    """Return (N,) stamps and (N, D) values in the order of the stamps."""
    order = np.argsort(held.stamps, kind='stable')
    return held.stamps[order], held.values[order]


def _grid(start: int, end: int, step: int) -> np.ndarray:
    """Return times from start to end, (G,) int64; wider apart where stamps from anywhere make them too many."""
    step = max(step, (end - start) // MOST_TIMES)
    return start + step * np.arange((end - start) // step + 1, dtype=np.int64)


def _compare(bag: str, name: str, held: ImageCollector, camera: Camera) -> Iterator[Finding]:
    total = sum(held.shapes.values())
    sizes = {size: count for (_, size), count in held.shapes.items() if size not in (None, tuple(camera.resolution))}
    raw = camera.message.endswith('/Image')
    codes = {code: count for (code, _), count in held.shapes.items() if raw and code != camera.encoding}
    for size, count in sizes.items():
        rows, columns = camera.resolution
        yield Finding.of('RESOLUTION_WRONG', bag, name, f'{count} of {total} images have {size[0]} rows and {size[1]} '
                                                        f'columns, the contract says {rows} and {columns}')
    for code, count in codes.items():
        yield Finding.of('ENCODING_WRONG', bag, name, f'{count} of {total} images are {code!r}, the contract says '
                                                      f'{camera.encoding!r}')


def _limits(bag: str, name: str, part: ActionPart, values: np.ndarray) -> Iterator[Finding]:
    low, high = bounds_of(part)
    slack = SLACK * np.where(np.isfinite(high - low), high - low, 1.0)
    outside = np.isfinite(values) & ((values < low - slack) | (values > high + slack))
    for index in np.flatnonzero(outside.any(0)):
        column = values[:, index][np.isfinite(values[:, index])]
        yield Finding.of('OUT_OF_LIMITS', bag, name, f'{part.names[index]}: {int(outside[:, index].sum())} of '
                         f'{len(values)} commands; {column.min():.4g} to {column.max():.4g}, allowed '
                         f'{low[index]:.4g} to {high[index]:.4g} {part.unit}')


def _skewed(scan: Scan, stream: object, beyond: np.ndarray, skew: Skew, timing: Timing) -> list[Finding]:
    """Report steps at which a stream lies too far away, without those that a gap explains."""
    for gap in timing.gaps:
        beyond = beyond[(beyond < gap.start) | (beyond > gap.start + gap.length * 1e9)]
    if not len(beyond):
        return []
    severity = Severity.ERROR if 2 * len(beyond) > skew.steps else Severity.WARNING
    return [Finding.of('SKEWED', str(scan.path), scan.found[stream.name],
                       f'at {len(beyond)} of {skew.steps} steps more than {skew.allowed:g} s before the reference time '
                       f'(median {skew.median:.3f} s, at most {skew.worst:.3f} s)', severity)]


def _stamps(scan: Scan, name: str) -> np.ndarray:
    topic = scan.topics[scan.found[name]]
    stamps = topic.log if topic.stamps is None else topic.stamps[topic.stamps != 0]
    return np.sort(stamps)


def _commands(scan: Scan, name: str) -> np.ndarray:
    held = scan.collected.get(scan.found.get(f'action {name}', ''))
    return np.sort(held.stamps) if isinstance(held, ValueCollector) else np.zeros(0, np.int64)


def _moving(span: tuple[int, int], idle: list[tuple[int, int]]) -> float:
    """Return how much of a span something moves, s."""
    first, last = span
    resting = sum(max(0, min(last, stop) - max(first, start)) for start, stop in idle)
    return (last - first - resting) / 1e9
