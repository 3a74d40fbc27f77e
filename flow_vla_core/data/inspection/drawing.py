"""Draws histograms, time lines and curves as small pieces of SVG, and thumbnails as JPEG."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
import io

import numpy as np

from flow_vla_core.data.inspection.bag_report import BagReport, Curve
from flow_vla_core.data.inspection.motion import BINS, MARGIN, Distribution
from flow_vla_core.data.inspection.spans import Span

__all__ = ['draw_curves', 'draw_histogram', 'draw_lengths', 'draw_picture', 'draw_timeline', 'tidy']

WIDTH = 1000         # of a time line, units
LEFT = 230           # of its labels
ROW = 18
COLOURS = 8          # of lines that are told apart; style.py defines them
ACTORS = {'policy': 'c0', 'person': 'c1', 'nobody': 'quiet'}


def tidy(value: float) -> str:
    """Write a number with four digits at most.

    Example:
        >>> tidy(0.00012345), tidy(12345.6), tidy(2.0)
        ('0.0001234', '1.235e+04', '2')
    """
    return f'{value:.4g}'


def draw_picture(picture: np.ndarray) -> str:
    """Return (Y, X, C) uint8 as an image element."""
    from PIL import Image
    file = io.BytesIO()
    Image.fromarray(picture[..., 0] if picture.shape[2] == 1 else picture).save(file, 'JPEG', quality=72, optimize=True)
    rows, columns = picture.shape[:2]
    return (f'<img width="{columns}" height="{rows}" loading="lazy" alt="" '
            f'src="data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}">')


def draw_histogram(part: Distribution) -> str:
    """Return the bins of a dimension between its limits, which stand as lines."""
    tallest = max(part.bins) or 1
    bars = ''.join(f'M{5 * k} 50v{-max(1.0, 48 * count / tallest):.1f}h4.5V50z' for k, count in enumerate(part.bins)
                   if count)
    share = MARGIN / (1 + 2 * MARGIN)
    lines = ''.join(f'<path class="limit" d="M{5 * BINS * place:.1f} 0V50"/>' for place in (share, 1 - share))
    return (f'<svg class="histogram" viewBox="0 0 {5 * BINS} 51"><path class="axis" d="M0 50.5H{5 * BINS}"/>{lines}'
            f'<path class="bars" d="{bars}"/></svg>')


def draw_lengths(lengths: Sequence[float]) -> str:
    """Return how long bags are, as a histogram with its ends written below."""
    counts, _ = np.histogram(lengths, BINS, (0.0, max(*lengths, 1e-9) * 1.02))
    tallest = max(counts.max(), 1)
    bars = ''.join(f'M{10 * k} 70v{-max(1.5, 66 * count / tallest):.1f}h9V70z' for k, count in enumerate(counts)
                   if count)
    return (f'<svg class="lengths" viewBox="0 0 400 86"><path class="axis" d="M0 70.5H400"/>'
            f'<path class="bars" d="{bars}"/><text x="0" y="83">0 s</text>'
            f'<text x="400" y="83" text-anchor="end">{tidy(max(lengths) * 1.02)} s</text></svg>')


def draw_timeline(report: BagReport) -> str:
    """Return a row for episodes, words, who acts and idle time, and one for each topic, over the seconds of the bag."""
    rows: list[tuple[str, str, str]] = []
    if len(report.episodes) > 1:
        rows.append(('episodes', _spans(report, report.episodes, lambda span: 'c2'), ''))
    if report.instructions:
        rows.append(('instruction', _spans(report, report.instructions, lambda span: 'c4'), ''))
    if report.acting:
        rows.append(('who acts', _spans(report, report.acting, lambda span: ACTORS.get(span.label, 'quiet')), ''))
    if report.idle:
        rows.append(('nothing moves', _spans(report, report.idle, lambda span: 'quiet', False), ''))
    for topic in report.topics:
        count = f'{topic.timing.count} message{"" if topic.timing.count == 1 else "s"}'
        rate = f'{topic.timing.rate:.1f} Hz' if topic.timing.period else count
        runs = ''.join(_bar(report, first, last, 'c0' if topic.role else 'quiet') for first, last in topic.runs)
        rows.append((topic.name, runs, rate))
    height = ROW * len(rows) + 16
    parts = [f'<text x="0" y="{ROW * k + 13}">{escape(_short(label, 34))}</text>'
             f'<g transform="translate(0 {ROW * k + 3})">{content}</g>'
             f'<text x="{WIDTH}" y="{ROW * k + 13}" text-anchor="end" class="quiet">{escape(rate)}</text>'
             for k, (label, content, rate) in enumerate(rows)]
    return (f'<svg class="timeline" viewBox="0 0 {WIDTH} {height}">{"".join(parts)}'
            f'{_axis(report.duration, ROW * len(rows))}</svg>')


def draw_curves(title: str, curves: Sequence[Curve], duration: float) -> str:
    """Return several dimensions of one part over the seconds of the bag."""
    values = np.concatenate([np.asarray(curve.values) for curve in curves])
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 0.0)
    low, high = (low - 0.5, high + 0.5) if high - low < 1e-9 else (low, high)
    lines = ''.join(f'<path class="line c{k % COLOURS}" d="{_path(curve, duration, low, high)}"/>'
                    for k, curve in enumerate(curves))
    names = ' '.join(f'<tspan class="fill c{k % COLOURS}">{escape(curve.name.rpartition(".")[2])}</tspan>'
                     for k, curve in enumerate(curves))
    return (f'<svg class="curves" viewBox="0 0 {WIDTH} 146"><text x="0" y="12">{escape(title)} '
            f'<tspan class="quiet">{escape(curves[0].unit)}</tspan></text>'
            f'<text x="{LEFT}" y="12">{names}</text>'
            f'<text x="{LEFT - 6}" y="28" text-anchor="end" class="quiet">{tidy(high)}</text>'
            f'<text x="{LEFT - 6}" y="112" text-anchor="end" class="quiet">{tidy(low)}</text>'
            f'<path class="axis" d="M{LEFT} 20V114H{WIDTH - 90}"/>{lines}{_axis(duration, 114)}</svg>')


def _path(curve: Curve, duration: float, low: float, high: float) -> str:
    points, pen = [], 'M'
    for second, value in zip(curve.seconds, curve.values):
        if not np.isfinite(value):
            pen = 'M'
            continue
        points.append(f'{pen}{_x(second, duration):.1f} {112 - 90 * (value - low) / (high - low):.1f}')
        pen = 'L'
    return ''.join(points)


def _x(second: float, duration: float) -> float:
    return LEFT + (WIDTH - 90 - LEFT) * min(max(second / duration, 0.0), 1.0) if duration > 0 else float(LEFT)


def _bar(report: BagReport, first: float, last: float, colour: str, label: str = '') -> str:
    start = _x(first, report.duration)
    width = max(_x(last, report.duration) - start, 1.5)
    bar = f'<rect class="fill {colour}" x="{start:.1f}" width="{width:.1f}" height="12" rx="2"/>'
    if not label or width < 40:
        return bar
    return f'{bar}<text x="{start + 5:.1f}" y="10" class="inside">{escape(_short(label, int(width / 6)))}</text>'


def _spans(report: BagReport, spans: Sequence[Span], colour: object, labels: bool = True) -> str:
    parts = []
    for span in spans[:200]:
        label = f'{span.label} {span.outcome if span.outcome != "unknown" else ""}'.strip() if labels else ''
        parts.append(_bar(report, (span.start - report.start) / 1e9, (span.end - report.start) / 1e9, colour(span),
                          label))
    return ''.join(parts)


def _axis(duration: float, y: float) -> str:
    if duration <= 0:
        return ''
    step = 10 ** np.floor(np.log10(duration))
    step = next(s for s in (step / 5, step / 2, step, 2 * step) if duration / s <= 8)
    ticks = np.arange(0, duration + step * 1e-6, step)
    return ''.join(f'<text x="{_x(tick, duration):.1f}" y="{y + 13}" text-anchor="middle" class="quiet">{tidy(tick)} s'
                   f'</text>' for tick in ticks)


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else f'{text[:max(most - 1, 1)]}…'
