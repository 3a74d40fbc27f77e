"""Sums a set of bags up: as tables on a terminal, and as plain values for JSON."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from flow_vla_core.data.inspection.bag_report import BagReport, TopicReport
from flow_vla_core.data.inspection.findings import Finding, Severity
from flow_vla_core.data.inspection.spans import Span
from flow_vla_core.data.inspection.survey import Survey

__all__ = ['TopicRow', 'bag_names', 'bags_table', 'findings_table', 'outcome_of', 'summarise_topics', 'to_json',
           'topic_columns', 'topics_table', 'words_of']

SHRINK = {'topic': 16, 'instruction': 8}  # least width of columns that may be cut off
COLOUR = {Severity.ERROR: 'red', Severity.WARNING: 'yellow', Severity.INFO: 'cyan'}


@dataclass(frozen=True)
class TopicRow:
    """Describes a topic over all bags: medians of rate and delay, sums of counts, the worst of the rest; s and Hz."""

    name: str
    type: str
    role: str
    bags: int
    messages: int
    rate: float
    jitter: float
    gaps: int
    longest_gap: float
    drops: int
    lost: int
    delay: float | None
    longest_delay: float | None
    skew: float | None
    worst_skew: float | None


def summarise_topics(bags: Sequence[BagReport]) -> list[TopicRow]:
    """Put the same topics of all bags together, those of the contract first."""
    groups: dict[tuple[str, str], list[tuple[BagReport, TopicReport]]] = defaultdict(list)
    for bag in bags:
        for topic in bag.topics:
            groups[topic.name, topic.type].append((bag, topic))
    return sorted((_row(group) for group in groups.values()), key=lambda row: (not row.role, row.name))


def topic_columns(rows: Sequence[TopicRow]) -> dict[str, list[str]]:
    """Write rows in columns; those with nothing to say are left out."""
    columns = {
        'bags': [str(row.bags) if row.bags > 1 else '' for row in rows],
        'messages': [f'{row.messages:,}' for row in rows],
        'Hz': [f'{row.rate:.1f}' if row.rate else '' for row in rows],
        'jitter ms': [f'{1000 * row.jitter:.1f}' if row.rate else '' for row in rows],
        'gaps': [f'{row.gaps:,} ≤ {row.longest_gap:.2f} s' if row.gaps else '' for row in rows],
        'missing': [f'{row.drops:,}' if row.drops else '' for row in rows],
        'lost': [f'{row.lost:,}' if row.lost else '' for row in rows],
        'delay ms': [_pair(row.delay, row.longest_delay) for row in rows],
        'skew ms': [_pair(row.skew, row.worst_skew) for row in rows],
    }
    return {name: cells for name, cells in columns.items() if any(cells)}


def bag_names(survey: Survey) -> dict[Path, str]:
    """Return what tells the bags apart: their paths below the folder that holds them all."""
    paths = [bag.path for bag in survey.bags]
    common = Path(os.path.commonpath([path.absolute().parent for path in paths])) if paths else Path()
    return {path: str(path.absolute().relative_to(common)) for path in paths}


def outcome_of(bag: BagReport) -> str:
    """Return the outcome of a bag's episodes, or how many of them succeeded."""
    outcomes = Counter(span.outcome or 'unknown' for span in bag.episodes)
    if len(outcomes) < 2:
        return next(iter(outcomes), 'unknown')
    return f'{outcomes["success"]} / {len(bag.episodes)}'


def words_of(bag: BagReport) -> str:
    """Return a bag's instructions, each once."""
    return ' · '.join(dict.fromkeys(span.label for span in bag.instructions))


def bags_table(survey: Survey, most: int = 40) -> Table:
    """Return a line for each bag."""
    names, shown = bag_names(survey), survey.bags[:most]
    found: dict[str, list[Finding]] = defaultdict(list)
    for finding in survey.findings:
        found[finding.bag].append(finding)
    columns = {
        'bag': [names[bag.path] for bag in shown],
        'length': [f'{bag.duration:.1f} s' for bag in shown],
        'MB': [f'{bag.size / 1e6:.1f}' for bag in shown],
        'outcome': [outcome_of(bag) for bag in shown],
        'acts': [_shares(bag.acting, bag.duration) for bag in shown],
        'idle': [_percent(sum(span.length for span in bag.idle), bag.duration) for bag in shown],
        'findings': [_counted(found[str(bag.path)]) for bag in shown],
        'instruction': [words_of(bag) for bag in shown],
    }
    caption = f'and {len(survey.bags) - most} more' if len(survey.bags) > most else None
    return _table({name: cells for name, cells in columns.items() if any(cells)}, caption)


def topics_table(survey: Survey) -> Table:
    """Return a line for each topic."""
    rows = summarise_topics(survey.bags)
    columns = {name: cells for name, cells in topic_columns(rows).items() if name not in ('bags', 'jitter ms')}
    return _table({'topic': [row.name for row in rows], **columns}, None)


def findings_table(findings: Sequence[Finding], names: dict[Path, str], most: int = 40) -> Table:
    """Return a line for each finding, the worst first."""
    table = Table(box=None, header_style='dim')
    for name in ('severity', 'code', 'bag', 'finding'):
        table.add_column(name, no_wrap=name in ('severity', 'code'))
    for finding in sorted(findings, key=lambda finding: (-finding.severity, finding.code))[:most]:
        table.add_row(f'[{COLOUR[finding.severity]}]{finding.severity.name.lower()}[/]', finding.code.name,
                      escape(names.get(Path(finding.bag), 'all')) if finding.bag else 'all',
                      escape(f'{finding.topic} {finding.message}'.strip()))
    if len(findings) > most:
        table.caption = f'and {len(findings) - most} more; data check lists all'
    return table


def to_json(survey: Survey) -> dict[str, Any]:
    """Return everything but pictures and curves as plain values."""
    return _finite({'findings': [finding.to_json() for finding in survey.findings],
                    'actions': [asdict(part) for part in survey.actions],
                    'topics': [asdict(row) for row in summarise_topics(survey.bags)],
                    'bags': [_bag_json(bag) for bag in survey.bags]})


def _finite(value: Any) -> Any:
    """Put None in the place of numbers that JSON does not know."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _bag_json(bag: BagReport) -> dict[str, Any]:
    spans = {key: [asdict(span) for span in getattr(bag, key)]
             for key in ('episodes', 'instructions', 'acting', 'idle')}
    return {'path': str(bag.path), 'contract': bag.contract.label if bag.contract else None, 'start': bag.start,
            'duration': bag.duration, 'messages': bag.messages, 'bytes': bag.size, 'task': bag.task,
            'outcome': outcome_of(bag), 'digest': bag.digest, **spans,
            'topics': [{'name': topic.name, 'type': topic.type, 'role': topic.role, 'bytes': topic.size,
                        'lost': topic.lost, **asdict(topic.timing)} for topic in bag.topics],
            'skews': [asdict(skew) for skew in bag.skews],
            'actions': [asdict(part) for part in bag.actions], 'state': [asdict(part) for part in bag.state]}


def _row(group: list[tuple[BagReport, TopicReport]]) -> TopicRow:
    topics, first = [topic for _, topic in group], group[0][1]
    timings = [topic.timing for topic in topics]
    regular = [timing for timing in timings if timing.period]
    gaps = [gap.length for timing in timings for gap in timing.gaps]
    delays = [timing.delay for timing in timings if timing.delay]
    skews = [skew for bag, topic in group for skew in bag.skews if skew.stream == topic.role]
    return TopicRow(
        first.name, first.type, first.role, len(topics), sum(timing.count for timing in timings),
        float(np.median([timing.rate for timing in regular])) if regular else 0.0,
        max((timing.jitter for timing in regular), default=0.0), len(gaps), max(gaps, default=0.0),
        sum(timing.drops for timing in timings), sum(topic.lost for topic in topics),
        float(np.median([delay[1] for delay in delays])) if delays else None,
        max((delay[3] for delay in delays), default=None),
        float(np.median([skew.median for skew in skews])) if skews else None,
        max((skew.worst for skew in skews), default=None))


def _shares(spans: Sequence[Span], duration: float) -> str:
    """Write who acted, or for which share of the time a person did."""
    shares = Counter()
    for span in spans:
        shares[span.label] += span.length
    if len(shares) < 2 or not duration:
        return next(iter(shares), '')
    return ', '.join(f'{label} {100 * length / duration:.0f} %' for label, length in shares.items()
                     if label == 'person' or 'person' not in shares)


def _counted(findings: Sequence[Finding]) -> str:
    counts = Counter(finding.severity for finding in findings)
    return ', '.join(f'[{COLOUR[severity]}]{counts[severity]} {severity.name.lower()}[/]'
                     for severity in sorted(Severity)[::-1] if counts[severity])


def _table(columns: dict[str, list[str]], caption: str | None) -> Table:
    table = Table(box=None, header_style='dim', caption=caption)
    for name in columns:
        words = name in ('bag', 'topic', 'outcome', 'acts', 'findings', 'instruction')
        widest = max(Text.from_markup(cell).cell_len for cell in [name, *columns[name]])
        table.add_column(name, justify='left' if words else 'right', overflow='ellipsis', no_wrap=True,
                         min_width=min(widest, SHRINK.get(name, 24)))
    written = [cells if name == 'findings' else map(escape, cells) for name, cells in columns.items()]
    for row in zip(*written):
        table.add_row(*row)
    return table


def _pair(usual: float | None, most: float | None) -> str:
    """Write a usual value and the largest one."""
    return '' if usual is None or most is None else f'{1000 * usual:,.1f} ≤ {1000 * most:,.1f}'


def _percent(part: float, whole: float) -> str:
    return f'{100 * part / whole:.0f} %' if part and whole else ''
