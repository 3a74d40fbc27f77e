"""Writes what was found in a set of bags as one HTML page that needs nothing else."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from html import escape
from itertools import groupby
from pathlib import Path

import numpy as np

from flow_vla_core.data.inspection.bag_report import BagReport
from flow_vla_core.data.inspection.drawing import (
    draw_curves,
    draw_histogram,
    draw_lengths,
    draw_picture,
    draw_timeline,
    tidy,
)
from flow_vla_core.data.inspection.findings import MEANING, Finding, FindingCode, Severity, worst
from flow_vla_core.data.inspection.style import CSS, SCRIPT
from flow_vla_core.data.inspection.summary import (
    TopicRow,
    bag_names,
    outcome_of,
    summarise_topics,
    topic_columns,
    words_of,
)
from flow_vla_core.data.inspection.survey import Survey
from flow_vla_core.errors import DataError
from flow_vla_core.messages import resize_image

__all__ = ['write_page']

LINES = 40      # of one kind of finding
OPEN = 500      # bags with pictures and curves, those with the worst findings first


def write_page(path: Path, survey: Survey) -> None:
    """Write the page. Raise `DataError`, which names the file, if it can't be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(_page(survey), encoding='utf-8', errors='replace')
    except OSError as error:
        raise DataError(f'{path}: {error.strerror}') from error


def _page(survey: Survey) -> str:
    names = bag_names(survey)
    title = next(iter(names.values())) if len(names) == 1 else f'{len(names)} bags'
    sections = [_tiles(survey), _findings(survey, names), _overview(survey), _actions(survey), _topics(survey),
                _bags(survey, names)]
    labels = sorted({bag.contract.label for bag in survey.bags if bag.contract})
    held = f'held against {", ".join(labels)}' if labels else 'no contract: topics only'
    return (f'<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" '
            f'content="width=device-width"><title>{escape(title)}</title><style>{CSS}</style></head><body>'
            f'<h1>{escape(title)}</h1><p>flow-vla data inspect, {escape(held)}</p>{"".join(sections)}'
            f'<script>{SCRIPT}</script></body></html>')


def _tiles(survey: Survey) -> str:
    bags = survey.bags
    outcomes = Counter(outcome_of(bag) for bag in bags)
    seconds = sum(bag.duration for bag in bags)
    length = f'{seconds / 3600:.1f} h' if seconds >= 5400 else f'{seconds / 60:.1f} min' if seconds >= 90 else (
        f'{seconds:.1f} s')
    counted = {severity: sum(finding.severity == severity for finding in survey.findings) for severity in Severity}
    findings = ' '.join(f'<span class="{severity.name.lower()}">{counted[severity]} {severity.name.lower()}'
                        f'{"" if counted[severity] == 1 else "s"}</span>' for severity in sorted(Severity)[::-1]
                        if counted[severity]) or '<span class="good">none</span>'
    tiles = [(str(len(bags)), 'bag' if len(bags) == 1 else 'bags'), (length, 'recorded'),
             (f'{sum(bag.size for bag in bags) / 1e6:,.1f} MB', f'{sum(bag.messages for bag in bags):,} messages'),
             (f'{outcomes["success"]} / {len(bags)}', f'success, {outcomes["failure"]} failure')]
    cards = ''.join(f'<div class="card tile"><b>{a}</b><span>{b}</span></div>' for a, b in tiles)
    acting = _who(survey)
    cards += f'<div class="card tile"><b>{acting[0]}</b><span>{acting[1]}</span></div>' if acting else ''
    return (f'<div class="tiles">{cards}<div class="card tile"><b>{len(survey.findings)}</b>findings: {findings}</div>'
            '</div>')


def _who(survey: Survey) -> tuple[str, str] | None:
    """Return how much of the time a person acted, and how often one took over."""
    spans = [span for bag in survey.bags for span in bag.acting]
    total = sum(span.length for span in spans)
    if total <= 0:
        return None
    person = [span for span in spans if span.label == 'person']
    share = 100 * sum(span.length for span in person) / total
    return f'{share:.0f} %', f'by a person, {len(person)} take-over{"" if len(person) == 1 else "s"}'


def _findings(survey: Survey, names: dict[Path, str]) -> str:
    if not survey.findings:
        return '<h2>Findings</h2><div class="card good">Nothing is wrong.</div>'
    order = sorted(survey.findings, key=lambda finding: (-finding.severity, finding.code))
    parts = [_kind(severity, code, list(found), names)
             for (severity, code), found in groupby(order, key=lambda finding: (finding.severity, finding.code))]
    return f'<h2>Findings</h2><div class="card">{"".join(parts)}</div>'


def _kind(severity: Severity, code: FindingCode, found: list[Finding], names: dict[Path, str]) -> str:
    numbers = {str(path): index for index, path in enumerate(names)}
    lines = []
    for finding in found[:LINES]:
        link = f'<a href="#b{numbers[finding.bag]}">{escape(names[Path(finding.bag)])}</a> ' \
            if finding.bag in numbers and len(numbers) > 1 else ''
        topic = f'<code>{escape(finding.topic)}</code> ' if finding.topic else ''
        lines.append(f'<li>{link}{topic}{escape(finding.message)}</li>')
    if len(found) > LINES:
        lines.append(f'<li class="quiet">and {len(found) - LINES} more</li>')
    level = severity.name.lower()
    opened = ' open' if severity == Severity.ERROR or len(found) < 6 else ''
    return (f'<details{opened}><summary class="finding"><span class="{level}">{level}</span><b>{code.name}</b>'
            f'<span class="quiet">{escape(MEANING[code][1])}</span><span class="badge {level}">{len(found)}</span>'
            f'</summary><ul>{"".join(lines)}</ul></details>')


def _overview(survey: Survey) -> str:
    """Return lengths beside instructions, for more than one bag."""
    whole = [bag for bag in survey.bags if bag.duration > 0]
    if len(survey.bags) < 2 or not whole:
        return ''
    groups: dict[str, list[BagReport]] = defaultdict(list)
    for bag in whole:
        groups[words_of(bag)].append(bag)
    order = sorted(groups.items(), key=lambda pair: -len(pair[1]))
    rows = ''.join(
        f'<tr><td>{escape(words) or "<i>none</i>"}</td><td class="n">{len(bags)}</td>'
        f'<td class="n">{sum(outcome_of(bag) == "success" for bag in bags)}</td>'
        f'<td class="n">{sum(bag.duration for bag in bags) / len(bags):.1f} s</td></tr>' for words, bags in order[:30])
    return ('<div class="two"><div><h2>Lengths</h2><div class="card">' + draw_lengths([bag.duration for bag in whole])
            + '</div></div><div><h2>Instructions</h2><div class="card"><table><tr><th>words</th><th class="n">bags</th>'
            f'<th class="n">success</th><th class="n">mean length</th></tr>{rows}</table></div></div></div>')


def _actions(survey: Survey) -> str:
    figures = ''.join(
        f'<figure><figcaption><b>{escape(part.name.removeprefix("action "))}</b><span>{tidy(part.smallest)} … '
        f'{tidy(part.largest)} {escape(part.unit)}</span></figcaption>{draw_histogram(part)}</figure>'
        for part in survey.actions)
    return f'<h2>Actions</h2><div class="card"><div class="grid">{figures}</div><p>Dashed: the limits of the ' \
           f'contract.</p></div>' if figures else ''


def _topics(survey: Survey) -> str:
    return f'<h2>Topics</h2><div class="card">{_topic_table(survey.bags)}<p>Delay: from stamp to receipt. Skew: from ' \
           'the sample to the reference time of the policy. Usual ≤ worst.</p></div>'


def _topic_table(bags: Sequence[BagReport]) -> str:
    rows = summarise_topics(bags)
    columns = topic_columns(rows)
    head = ''.join(f'<th class="n">{name}</th>' for name in columns)
    body = ''.join(_topic_line(row, [cells[k] for cells in columns.values()]) for k, row in enumerate(rows))
    return f'<table><tr><th>topic</th>{head}</tr>{body}</table>'


def _topic_line(row: TopicRow, cells: Sequence[str]) -> str:
    numbers = ''.join(f'<td class="n">{cell}</td>' for cell in cells)
    return (f'<tr><td><code>{escape(row.name)}</code><br><span class="quiet">'
            f'{escape(row.type.replace("/msg/", "/"))}</span></td>{numbers}</tr>')


def _bags(survey: Survey, names: dict[Path, str]) -> str:
    found: dict[str, list[Finding]] = defaultdict(list)
    for finding in survey.findings:
        found[finding.bag].append(finding)
    ranks = sorted(range(len(survey.bags)), key=lambda k: (-(worst(found[str(survey.bags[k].path)]) or -1), k))
    whole = set(ranks[:OPEN])
    parts = [_bag(k, bag, names[bag.path], found[str(bag.path)], k in whole, len(survey.bags) == 1)
             for k, bag in enumerate(survey.bags)]
    search = '<input id="search" placeholder="search">' if len(survey.bags) > 1 else ''
    return f'<div class="head"><h2>Bags</h2>{search}</div>{"".join(parts)}'


def _bag(number: int, bag: BagReport, name: str, found: list[Finding], whole: bool, alone: bool) -> str:
    counts = Counter(finding.severity for finding in found)
    badges = ' '.join(f'<span class="badge {severity.name.lower()}">{counts[severity]}</span>'
                      for severity in sorted(Severity)[::-1] if counts[severity])
    first = _film(bag) if whole else ''
    outcome = outcome_of(bag)
    shade = {'success': 'good', 'failure': 'error'}.get(outcome, 'quiet')
    head = (f'<span><b>{escape(name)}</b></span><span class="quiet">{bag.duration:.1f} s</span>'
            f'<span>{escape(words_of(bag))}</span><span class="{shade}">{outcome}</span><span>{badges}</span>'
            f'<span>{first}</span>')
    content = ''.join(_content(bag, found, alone)) if whole else '<p>Not shown: too many bags for one page.</p>'
    return f'<details class="bag" id="b{number}"{" open" if alone else ""}><summary>{head}</summary>{content}</details>'


def _film(bag: BagReport) -> str:
    """Return the first, middle and last picture of the first camera."""
    pictures = next(iter(bag.pictures.values()), [])
    chosen = sorted({0, len(pictures) // 2, len(pictures) - 1}) if pictures else []
    return ' '.join(draw_picture(resize_image(pictures[k][1], _height(pictures[k][1], 48))) for k in chosen)


def _height(picture: np.ndarray, rows: int) -> tuple[int, int]:
    return (min(rows, picture.shape[0]), max(1, round(picture.shape[1] * min(1, rows / picture.shape[0]))))


def _content(bag: BagReport, found: list[Finding], alone: bool) -> Iterator[str]:
    if found and not alone:
        yield '<h3>Findings</h3>' + ''.join(
            f'<div><span class="{finding.severity.name.lower()}">{finding.code.name}</span> '
            f'<code>{escape(finding.topic)}</code> {escape(finding.message)}</div>' for finding in found[:LINES])
    for topic, pictures in bag.pictures.items():
        strip = ''.join(f'<figure>{draw_picture(picture)}{second:.1f} s</figure>' for second, picture in pictures)
        yield f'<h3>{escape(topic)}</h3><div class="strip">{strip}</div>'
    if bag.topics:
        yield f'<h3>Time line</h3>{draw_timeline(bag)}'
    for title, curves in groupby(bag.curves, key=lambda curve: curve.name.rpartition('.')[0]):
        yield draw_curves(title, list(curves), bag.duration)
    if bag.topics and not alone:
        yield f'<h3>Topics</h3>{_topic_table([bag])}'
