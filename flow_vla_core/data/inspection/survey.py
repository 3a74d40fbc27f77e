"""Inspects many bags, and finds what only shows beside the others: duplicates, outliers, values that never change."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
import multiprocessing
from pathlib import Path

import numpy as np

from flow_vla_core.contract import RobotContract
from flow_vla_core.data.inspection.bag_report import BagReport, Detail, inspect_bag
from flow_vla_core.data.inspection.findings import Finding, FindingCode
from flow_vla_core.data.inspection.motion import Distribution

__all__ = ['Survey', 'inspect_bags', 'robust_scores']

FEW = 5            # bags without which nothing is an outlier
OUTLYING = 5.0     # robust standard deviations
SPREAD = 0.05      # least of those, as a share of the median: scripted episodes are all alike


@dataclass(frozen=True)
class Survey:
    """Describes a set of bags.

    Args:
        bags: in the order in which they were given.
        findings: of all bags, and of the set as a whole.
    """

    bags: tuple[BagReport, ...]
    findings: tuple[Finding, ...]

    @property
    def actions(self) -> list[Distribution]:
        """How commands are distributed over all bags that were held against the same contract as the first."""
        return _together([bag.actions for bag in self.bags])

    def without(self, codes: set[FindingCode]) -> Survey:
        """Leave findings of some kinds out."""
        kept = tuple(finding for finding in self.findings if finding.code not in codes)
        return replace(self, findings=kept)


def inspect_bags(paths: Sequence[Path], contract: RobotContract | None = None, detail: Detail | None = None,
                 workers: int = 1, on_bag: Callable[[BagReport], None] | None = None) -> Survey:
    """Inspect bags one by one, then as a set.

    Args:
        paths: of the bags.
        contract: to hold them against; by default the one that each bag's marks name.
        detail: kept of each bag besides numbers.
        workers: processes.
        on_bag: is told of each bag when it was inspected.
    """
    reports = []
    for report in _inspect_all(paths, partial(inspect_bag, contract=contract, detail=detail), workers):
        reports.append(report)
        if on_bag is not None:
            on_bag(report)
    findings = [finding for report in reports for finding in report.findings]
    findings += [*_duplicates(reports), *_outliers(reports), *_constants(reports)]
    return Survey(tuple(reports), tuple(findings))


def robust_scores(values: Sequence[float]) -> np.ndarray:
    """Return how many robust standard deviations (1.4826 times the median distance) each value lies from the median.

    Example:
        >>> robust_scores([9.0, 10.0, 10.0, 11.0, 30.0]).round(2).tolist()
        [-0.67, 0.0, 0.0, 0.67, 13.49]
    """
    array = np.asarray(values, np.float64)
    middle = np.median(array)
    deviation = max(1.4826 * float(np.median(np.abs(array - middle))), SPREAD * abs(float(middle)), 1e-9)
    return (array - middle) / deviation


def _inspect_all(paths: Sequence[Path], inspect: Callable[[Path], BagReport], workers: int) -> Iterator[BagReport]:
    if workers == 1 or len(paths) < 2:
        yield from map(inspect, paths)
        return
    with ProcessPoolExecutor(min(workers, len(paths)), multiprocessing.get_context('spawn')) as pool:
        yield from pool.map(inspect, paths)


def _duplicates(reports: Sequence[BagReport]) -> Iterator[Finding]:
    first: dict[str, Path] = {}
    for report in reports:
        if report.digest:
            other = first.setdefault(report.digest, report.path)
            if other != report.path:
                yield Finding.of('DUPLICATE', str(report.path), '', f'holds the same messages as {other}')


def _outliers(reports: Sequence[BagReport]) -> Iterator[Finding]:
    """Compare bags with those of the same instructions."""
    groups: dict[str, list[BagReport]] = defaultdict(list)
    for report in reports:
        if report.duration > 0:
            groups['\n'.join(span.label for span in report.instructions)].append(report)
    for group in groups.values():
        if len(group) >= FEW:
            yield from _outlying_lengths(group)
            yield from _outlying_actions(group)


def _outlying_lengths(group: list[BagReport]) -> Iterator[Finding]:
    lengths = [report.duration for report in group]
    for report, score in zip(group, robust_scores(lengths)):
        if abs(score) > OUTLYING:
            yield Finding.of('OUTLIER_LENGTH', str(report.path), '', f'{report.duration:.2f} s, the median of its '
                             f'instruction is {np.median(lengths):.2f} s ({score:+.1f} robust standard deviations)')


def _outlying_actions(group: list[BagReport]) -> Iterator[Finding]:
    columns: dict[str, list[tuple[BagReport, Distribution]]] = defaultdict(list)
    for report in group:
        for distribution in report.actions:
            if distribution.count:
                columns[distribution.name].append((report, distribution))
    for name, column in columns.items():
        if len(column) >= FEW:
            yield from _outlying(name, column)


def _outlying(name: str, column: list[tuple[BagReport, Distribution]]) -> Iterator[Finding]:
    sizes = [max(abs(part.smallest), abs(part.largest)) for _, part in column]
    for what, values in (('largest value', sizes), ('largest step', [part.largest_step for _, part in column])):
        for (report, part), value, score in zip(column, values, robust_scores(values)):
            if score > OUTLYING and value - np.median(values) > SPREAD * (part.high - part.low):
                yield Finding.of('OUTLIER_ACTION', str(report.path), name, f'{what} {value:.4g} {part.unit}, the '
                                 f'median of its instruction is {np.median(values):.4g} ({score:+.1f} robust standard '
                                 'deviations)')


def _constants(reports: Sequence[BagReport]) -> Iterator[Finding]:
    columns: dict[str, list[Distribution]] = defaultdict(list)
    for report in reports:
        for distribution in (*report.actions, *report.state):
            if distribution.count > 1:
                columns[distribution.name].append(distribution)
    for name, column in columns.items():
        low, high = min(part.smallest for part in column), max(part.largest for part in column)
        if high - low <= 1e-6 * max(abs(low), abs(high)):
            where = f'all {len(column)} bags' if len(column) > 1 else 'the whole bag'
            yield Finding.of('CONSTANT', '', name, f'is {low:.6g} {column[0].unit} throughout {where}')


def _together(parts: Sequence[Sequence[Distribution]]) -> list[Distribution]:
    """Add up distributions with the same names and bounds."""
    merged: dict[str, Distribution] = {}
    for part in (part for group in parts for part in group if part.count):
        old = merged.get(part.name)
        if old is None:
            merged[part.name] = part
        elif (old.low, old.high) == (part.low, part.high):
            count = old.count + part.count
            mean = (old.mean * old.count + part.mean * part.count) / count
            square = (sum(p.count * (p.deviation ** 2 + p.mean ** 2) for p in (old, part)) / count) - mean ** 2
            merged[part.name] = Distribution(
                part.name, part.unit, part.low, part.high, count, min(old.smallest, part.smallest),
                max(old.largest, part.largest), mean, max(square, 0.0) ** 0.5,
                max(old.largest_step, part.largest_step), tuple(map(sum, zip(old.bins, part.bins))))
    return list(merged.values())
