"""Measures how punctual the player is over a long bag, whether it drifts, and what memory it takes."""

from __future__ import annotations

import os
from pathlib import Path
import tempfile
import time
from typing import Annotated, Any

import numpy as np
import psutil
from rich.console import Console
from rich.table import Table
from rigs.results import finish
import typer

from flow_vla_core.data.bag_writer import EpisodeWriter, Topic
from flow_vla_core.data.playback import PlayClock, Player, Playlist
from flow_vla_core.data.read_ahead import ReadAhead
from flow_vla_ros.bringup import prepare_environment

TOPICS = {'/camera/image': ('sensor_msgs/msg/Image', 30, 640 * 480 * 3), '/joints': ('std_msgs/msg/String', 200, 200)}


def measure(
    seconds: Annotated[float, typer.Option(min=1, help='length of the bag')] = 60.0,
    rates: Annotated[str, typer.Option(help='comma-separated rates')] = '1,4',
    out: Annotated[Path, typer.Option(help='JSON file of the results')] = Path('out/benchmarks/player.json'),
) -> None:
    """Write a bag with a camera of 640x480 at 30 Hz and 200 Hz of small messages, and play it at several rates."""
    prepare_environment()
    with tempfile.TemporaryDirectory() as folder:
        bag = _write(Path(folder) / 'episode_000001', seconds)
        size = sum(path.stat().st_size for path in bag.iterdir()) / 2 ** 20
        results = [_play(bag, float(rate)) for rate in rates.split(',')]
    table = Table('rate', 'messages', 'late, median', '99 %', 'longest', 'drift', 'memory', title=f'{size:.0f} MB')
    for found in results:
        table.add_row(f'{found["rate"]:g}', str(found['messages']), *(f'{found[key]:.2f} ms' for key in (
            'median_ms', 'p99_ms', 'max_ms', 'drift_ms')), f'{found["memory_mb"]:.0f} MB')
    Console().print(table)
    finish({'seconds': seconds, 'bag_mb': size, 'results': results}, out)


def _write(folder: Path, seconds: float) -> Path:
    random = np.random.default_rng(0)
    topics = [Topic(name, kind) for name, (kind, _, _) in TOPICS.items()]
    writer = EpisodeWriter(folder, topics, {}, 'none')
    data = {name: random.bytes(size) for name, (_, _, size) in TOPICS.items()}
    times = sorted((round(k * 1e9 / rate), name) for name, (_, rate, _) in TOPICS.items()
                   for k in range(round(seconds * rate)))
    for stamp, name in times:
        writer.write(name, b'\0\1\0\0' + data[name], stamp + 10 ** 9, stamp + 10 ** 9)
    writer.close()
    return folder


def _play(bag: Path, rate: float) -> dict[str, Any]:
    """Play with publishers of a node, without anybody who listens."""
    import rclpy

    from flow_vla_ros.playing import Stage
    rclpy.init(args=[])
    node = rclpy.create_node('player')
    stage, clock, late = Stage(node, [bag]), PlayClock(rate), []
    before = psutil.Process(os.getpid()).memory_info().rss
    peak = [before]

    def emit(item: Any) -> None:
        if hasattr(item, 'data'):
            late.append(time.monotonic_ns() - clock.due(item.log_time))
            peak[0] = max(peak[0], psutil.Process(os.getpid()).memory_info().rss) if len(late) % 100 == 0 else peak[0]
        stage.emit(item)

    Player(ReadAhead(Playlist([bag])), clock, emit, gap=1.0).run()
    node.destroy_node()
    rclpy.try_shutdown()
    found, tenth = np.array(late) / 1e6, len(late) // 10
    return {'rate': rate, 'messages': len(late), 'median_ms': float(np.median(found)),
            'p99_ms': float(np.quantile(found, 0.99)), 'max_ms': float(found.max()),
            'drift_ms': float(np.median(found[-tenth:]) - np.median(found[:tenth])),
            'memory_mb': (peak[0] - before) / 2 ** 20}


if __name__ == '__main__':
    typer.run(measure)
