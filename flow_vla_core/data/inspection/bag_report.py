"""Inspects one bag: reads it once, checks it, and keeps what a table and a page show of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from flow_vla_core.contract import ActionPart, RobotContract, find_contract
from flow_vla_core.data.bag_reader import open_bag
from flow_vla_core.data.bags import try_information
from flow_vla_core.data.inspection import content_checks as contents
from flow_vla_core.data.inspection import storage_checks as storage
from flow_vla_core.data.inspection.collectors import ImageCollector, LossCollector, ValueCollector
from flow_vla_core.data.inspection.findings import Finding, Severity
from flow_vla_core.data.inspection.motion import Distribution, bounds_of, distribute
from flow_vla_core.data.inspection.scan import Scan, scan
from flow_vla_core.data.inspection.spans import Span, acting, episodes, instructions
from flow_vla_core.data.inspection.timing import Timing, measure, runs_of
from flow_vla_core.errors import ContractError, DataError

__all__ = ['BagReport', 'Curve', 'Detail', 'TopicReport', 'choose_contract', 'inspect_bag']


@dataclass(frozen=True)
class Detail:
    """Says how much is kept of each bag, so that a page of many stays small.

    Args:
        pictures: thumbnails of each camera.
        points: of each curve.
        runs: stretches of each topic's time line.
    """

    pictures: int = 8
    points: int = 240
    runs: int = 200

    @classmethod
    def none(cls) -> Detail:
        """Keep nothing but numbers."""
        return cls(0, 0, 0)

    @classmethod
    def share(cls, bags: int) -> Detail:
        """Choose for a page of so many bags: about 3 MB of curves and 400 pictures of each camera at most."""
        if bags > 400:
            return cls(1, 24, 20)
        return cls(max(1, min(8, 400 // max(bags, 1))), max(24, min(240, 12_000 // max(bags, 1))), 20 + 180 // bags)


@dataclass(frozen=True)
class TopicReport:
    """Describes one topic of a bag.

    Args:
        name: as recorded.
        type: of its messages.
        role: name of the contract's part that it is, or empty.
        size: bytes.
        timing: rates, gaps and delay.
        runs: pairs of first and last second, from the start of the bag, of stretches without a gap.
        lost: messages that the recorder counted as lost.
    """

    name: str
    type: str
    role: str
    size: int
    timing: Timing
    runs: tuple[tuple[float, float], ...] = ()
    lost: int = 0


@dataclass(frozen=True)
class Curve:
    """Holds the values of one dimension over time, thinned out: seconds from the start, and values."""

    name: str
    unit: str
    seconds: tuple[float, ...]
    values: tuple[float, ...]


@dataclass(frozen=True)
class BagReport:
    """Describes one bag.

    Args:
        path: as it was given.
        findings: what is wrong with it.
        contract: that it was held against; None if there was none.
        start: time of the first message, ns.
        duration: s.
        task: free label of the marks.
        topics: by name.
        episodes: that marks delimit, or the bag as one.
        instructions: in force, one after another.
        acting: who acted, one after another.
        idle: stretches without motion.
        skews: of the contract's streams.
        actions: how commands are distributed.
        state: how measurements are.
        curves: of actions and state.
        pictures: topic -> (second, (Y, X, C) uint8), a few.
        digest: of the contents.
    """

    path: Path
    findings: tuple[Finding, ...]
    contract: RobotContract | None = None
    start: int = 0
    duration: float = 0.0
    task: str = ''
    topics: tuple[TopicReport, ...] = ()
    episodes: tuple[Span, ...] = ()
    instructions: tuple[Span, ...] = ()
    acting: tuple[Span, ...] = ()
    idle: tuple[Span, ...] = ()
    skews: tuple[contents.Skew, ...] = ()
    actions: tuple[Distribution, ...] = ()
    state: tuple[Distribution, ...] = ()
    curves: tuple[Curve, ...] = ()
    pictures: dict[str, list[tuple[float, np.ndarray]]] = field(default_factory=dict)
    digest: str = ''

    @property
    def size(self) -> int:
        """Bytes of all messages."""
        return sum(topic.size for topic in self.topics)

    @property
    def messages(self) -> int:
        """Messages of all topics."""
        return sum(topic.timing.count for topic in self.topics)


def inspect_bag(path: Path, contract: RobotContract | None = None, detail: Detail | None = None) -> BagReport:
    """Inspect a bag; whatever is wrong with it becomes a finding.

    Args:
        path: a rosbag2 folder or file.
        contract: to hold it against; by default the one that its marks name, if that is found.
        detail: how much is kept besides numbers.
    """
    detail = detail or Detail()
    try:
        information, _ = try_information(path)
        bag = open_bag(path)
    except DataError as error:
        reason = str(error).removeprefix(f'{path}: ')
        code = 'EMPTY' if reason == 'no messages' else 'UNREADABLE'
        return BagReport(path, (Finding.of(code, str(path), '', '0 messages' if code == 'EMPTY' else reason),))
    chosen, findings = choose_contract(path, bag.marks, contract)
    scanned = scan(bag, chosen, detail.pictures)
    return _Inspection(scanned, chosen, information, detail).report(findings)


@dataclass(frozen=True)
class _Inspection:
    """Puts a report together."""

    scan: Scan
    contract: RobotContract | None
    information: dict[str, Any]
    detail: Detail

    def report(self, findings: list[Finding]) -> BagReport:
        scanned, contract = self.scan, self.contract
        timings = {name: measure(topic) for name, topic in scanned.topics.items()}
        idle = contents.find_idle(scanned, contract)
        skews, skewed = contents.measure_skew(scanned, contract, timings) if contract else ([], [])
        spans, words = episodes(scanned), instructions(scanned)
        findings = [*findings, *self._findings(timings, idle)]
        findings = [*findings, *_unexplained(skewed, findings),
                    *contents.check_words(scanned, contract, words, spans)]
        return BagReport(
            scanned.path, tuple(findings), contract, scanned.start, scanned.duration,
            str(scanned.marks.get('task', '')), tuple(self._topics(timings)), tuple(spans), tuple(words),
            tuple(acting(scanned)), tuple(Span(first, last, 'idle') for first, last in idle), tuple(skews),
            tuple(self._distributions(True)), tuple(self._distributions(False)), tuple(self._curves()),
            self._pictures(), scanned.digest)

    def _findings(self, timings: dict[str, Timing], idle: list[tuple[int, int]]) -> Iterator[Finding]:
        scanned, contract = self.scan, self.contract
        yield from storage.check_files(scanned, self.information)
        yield from storage.check_topics(scanned, contract)
        yield from storage.check_stamps(scanned, contract, timings)
        yield from storage.check_order(scanned, timings)
        yield from storage.check_regularity(scanned, contract, timings)
        yield from contents.check_images(scanned, contract, idle)
        yield from contents.check_values(scanned)
        yield from contents.check_motion(scanned, idle)
        yield from contents.check_losses(scanned)

    def _topics(self, timings: dict[str, Timing]) -> Iterator[TopicReport]:
        lost: dict[str, int] = {}
        for held in self.scan.of_kind(LossCollector).values():
            lost.update(held.drops)
        for name, topic in self.scan.topics.items():
            runs = runs_of(timings[name], np.sort(topic.log))
            yield TopicReport(name, topic.type, topic.role, topic.size, timings[name],
                              tuple(self._seconds(pair) for pair in _thin(runs, self.detail.runs)), lost.get(name, 0))

    def _seconds(self, pair: tuple[int, int]) -> tuple[float, float]:
        return (pair[0] - self.scan.start) / 1e9, (pair[1] - self.scan.start) / 1e9

    def _series(self, actions: bool) -> Iterator[tuple[ValueCollector, np.ndarray, np.ndarray]]:
        for held in self.scan.of_kind(ValueCollector).values():
            if isinstance(held.part, ActionPart) == actions and len(held.values):
                yield held, *contents.sorted_series(held)

    def _distributions(self, actions: bool) -> Iterator[Distribution]:
        for held, _, values in self._series(actions):
            low, high = bounds_of(held.part) if actions else np.full((2, values.shape[1]), np.nan)
            for index, name in enumerate(held.part.names):
                label = f'{"action" if actions else "state"} {held.part.name}.{name}'
                yield distribute(label, held.part.unit, values[:, index], low[index], high[index])

    def _curves(self) -> Iterator[Curve]:
        for actions in (True, False):
            for held, stamps, values in self._series(actions):
                chosen = np.unique(np.linspace(0, len(stamps) - 1, min(len(stamps), self.detail.points)).astype(int))
                seconds = tuple((stamps[chosen] - self.scan.start) / 1e9)
                for index, name in enumerate(held.part.names) if self.detail.points else ():
                    label = f'{"action" if actions else "state"} {held.part.name}.{name}'
                    yield Curve(label, held.part.unit, seconds, tuple(values[chosen, index]))

    def _pictures(self) -> dict[str, list[tuple[float, np.ndarray]]]:
        return {name: [((time - self.scan.start) / 1e9, picture) for time, picture in held.thumbnails.chosen()]
                for name, held in self.scan.of_kind(ImageCollector).items() if held.thumbnails.kept}


def choose_contract(path: Path, marks: dict[str, str],
                     given: RobotContract | None) -> tuple[RobotContract | None, list[Finding]]:
    told = str(marks.get('contract', ''))
    if given is not None:
        if told and told != given.label:
            return given, [Finding.of('CONTRACT_DIFFERS', str(path), '', f'recorded for {told}, held against '
                                                                         f'{given.label}')]
        return given, []
    if not told:
        return None, [Finding.of('CONTRACT_UNKNOWN', str(path), '', 'the bag names none; give one with --contract')]
    try:
        found = RobotContract.load(find_contract(told.partition('@')[0]))
    except ContractError as error:
        return None, [Finding.of('CONTRACT_UNKNOWN', str(path), '', f'recorded for {told}: {error}')]
    if found.label != told:
        return None, [Finding.of('CONTRACT_UNKNOWN', str(path), '', f'recorded for {told}, here it is {found.label}')]
    return found, []


def _unexplained(skewed: list[Finding], others: list[Finding]) -> list[Finding]:
    """Leave out single steps that lie too far away because their stamps are wrong."""
    wrong = {finding.topic for finding in others if finding.code.name.startswith('STAMP_')}
    return [finding for finding in skewed if finding.topic not in wrong or finding.severity == Severity.ERROR]


def _thin(runs: list[tuple[int, int]], most: int) -> list[tuple[int, int]]:
    if len(runs) <= most:
        return runs
    return [runs[k] for k in np.linspace(0, len(runs) - 1, most).astype(int)] if most else []
