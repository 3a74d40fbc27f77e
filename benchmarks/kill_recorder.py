"""Kills the recorder at random moments while it records, repairs what it leaves, and says what was lost."""

from __future__ import annotations

import os
from pathlib import Path
import random
import shutil
import time
from typing import Annotated

import numpy as np
from rich.console import Console
from rich.table import Table
from rigs.recorded import recorded_stamps
from rigs.recording_rig import RecordingRig, plain_write_rate
from rigs.results import finish
from rosbags.rosbag2 import Reader
import typer

from flow_vla_core.data import read_episode
from flow_vla_core.data.bag_repair import repair_bag
from flow_vla_core.errors import DataError
from flow_vla_ros.bringup import prepare_environment


def measure(
    kills: Annotated[int, typer.Option(min=1, help='how often')] = 20,
    least: Annotated[float, typer.Option(min=0, help='of recording before a kill, s')] = 1.0,
    most: Annotated[float, typer.Option(min=0, help='of recording before a kill, s')] = 6.0,
    compression: Annotated[str, typer.Option(help='of the bags')] = 'auto',
    sync: Annotated[bool, typer.Option(help='hand the file to the disk every second')] = True,
    seed: Annotated[int, typer.Option(help='of the moments')] = 0,
    out: Annotated[Path, typer.Option(help='folder of the results')] = Path('out/benchmarks/kill_recorder'),
) -> None:
    """Record 3 cameras and joint states, ``kill -9`` the recorder, repair, read; again and again.

    Robot and recorder are new in each round: publishers keep a killed reader until its lease ends, and wait for it.
    Lost is the time from the newest stamp published before the kill to the newest that can be read, over the topic that
    is worst off. Ends with exit code 1 if it was more than 1 s once, or a bag did not open or read into an episode.
    """
    prepare_environment()
    for name in ('bags', 'logs'):
        shutil.rmtree(out / name, ignore_errors=True)
    moments, rows = random.Random(seed), []
    for _ in range(kills):
        began = time.monotonic()
        with RecordingRig(out, 3.0, compression=compression, sync=sync, repair=False) as rig:
            found = kill_once(rig, moments.uniform(least, most))
        rows.append({**found, 'round_seconds': round(time.monotonic() - began, 1)})
        Console().print(rows[-1])
    worst = max(row['lost_seconds'] for row in rows)
    usable = all(row['opens'] and row['trains'] for row in rows)
    show(rows)
    finish({'rows': rows, 'worst_lost_seconds': worst, 'all_open_and_train': usable,
            'plain_write_mb_s': round(plain_write_rate(out), 1)}, out / 'kill_recorder.json')
    good = usable and worst <= 1.0
    raise SystemExit(0 if good else 1)


def kill_once(rig: RecordingRig, seconds: float) -> dict[str, float | int | bool | str]:
    """Record for a while, kill, repair; return what was lost and whether the bag can be used."""
    process = rig.start_recorder()
    folder = rig.begin()
    time.sleep(seconds)
    process.kill()
    killed = time.time_ns()
    process.wait()
    published = {topic: max(stamp for stamp in stamps if stamp <= killed) for topic, stamps in rig.published().items()}
    repaired = repair_bag(folder)
    found, opens = recorded_stamps(folder), opens_with_rosbags(folder)
    behind = {topic: (stamp - max(found.get(topic, {0}))) / 1e9 for topic, stamp in published.items()}
    worst = max(behind, key=behind.get)
    steps = trains(rig, folder)
    shutil.rmtree(folder)
    lost = min(behind[worst], seconds)  # all of it, if nothing can be read
    return {'seconds': round(seconds, 2), 'lost_seconds': round(lost, 3), 'topic': worst, 'opens': opens,
            'trains': steps > 0, 'steps': steps, 'messages': repaired.messages, 'cut_bytes': repaired.cut,
            'load': round(os.getloadavg()[0], 1)}


def opens_with_rosbags(bag: Path) -> bool:
    """Tell whether rosbags reads as many messages as the metadata tell of."""
    with Reader(bag) as reader:
        return sum(1 for _ in reader.messages()) == reader.message_count


def trains(rig: RecordingRig, bag: Path) -> int:
    """Return the steps of the episode that the bag reads into, with every number in it finite; 0 if it does not."""
    try:
        episode = read_episode(bag, rig.contract)
    except DataError as error:
        Console().print(str(error))
        return 0
    assert np.isfinite(episode.actions).all() and np.isfinite(episode.state).all()
    return len(episode)


def show(rows: list[dict]) -> None:
    """Print a table."""
    table = Table(title='kill -9 while recording 3 x 640x480 rgb8 at 30 Hz and joints at 200 Hz')
    columns = ('seconds', 'lost_seconds', 'topic', 'opens', 'trains', 'steps', 'messages', 'cut_bytes', 'load',
               'round_seconds')
    for column in columns:
        table.add_column(column.replace('_', ' '), justify='right')
    for row in rows:
        table.add_row(*(str(row[column]) for column in columns))
    Console().print(table)


if __name__ == '__main__':
    typer.run(measure)
