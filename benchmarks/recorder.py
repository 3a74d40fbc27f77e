"""Counts what is lost while three cameras and joint states are recorded, and what the recorder takes of the machine."""

from __future__ import annotations

import os
from pathlib import Path
import shutil
import time
from typing import Annotated

from rich.console import Console
from rich.table import Table
from rigs.recorded import recorded_stamps
from rigs.recording_rig import RecordingRig, cpu_seconds, plain_write_rate
from rigs.results import finish
import typer

from flow_vla_ros.bringup import prepare_environment


def measure(
    seconds: Annotated[float, typer.Option(min=1, help='of recording, for each compression')] = 60.0,
    compressions: Annotated[str, typer.Option(help='comma-separated: auto, none, lz4, zstd_fast, zstd')] = 'auto',
    jpeg: Annotated[int, typer.Option(min=0, max=100, help='quality of images as JPEG; 0: raw')] = 0,
    noise: Annotated[float, typer.Option(min=0, help='of the images, grey levels')] = 3.0,
    sync: Annotated[bool, typer.Option(help='hand the file to the disk every second')] = True,
    keep: Annotated[bool, typer.Option('--keep', help='leave the bags')] = False,
    out: Annotated[Path, typer.Option(help='folder of the results')] = Path('out/benchmarks/recorder'),
) -> None:
    """Record 3 cameras of 640x480 rgb8 at 30 Hz, joint states at 200 Hz and commands; look for every message.

    Ends with exit code 1 if a message was lost.
    """
    prepare_environment()
    out.mkdir(parents=True, exist_ok=True)
    plain = plain_write_rate(out)
    rows = []
    for compression in compressions.split(','):
        row = record(out / compression, seconds, noise, compression=compression, jpeg=jpeg, sync=sync)
        rows.append({'compression': compression, 'jpeg': jpeg, 'sync': sync, **row})
        if not keep:
            shutil.rmtree(out / compression / 'bags')
    show(rows, plain)
    finish({'rows': rows, 'plain_write_mb_s': round(plain, 1), 'seconds': seconds, 'noise': noise},
           out / 'recorder.json')
    raise SystemExit(1 if any(row['lost'] for row in rows) else 0)


def record(out: Path, seconds: float, noise: float, **parameters: object) -> dict[str, float | int | str]:
    """Record once; return counts, rates and shares of a core."""
    shutil.rmtree(out, ignore_errors=True)
    with RecordingRig(out, noise, **parameters) as rig:
        recorder = rig.start_recorder()
        folder = rig.begin()
        began, before = time.monotonic(), [cpu_seconds(process) for process in (recorder, rig.robot)]
        first = time.time_ns()
        time.sleep(seconds)
        last = time.time_ns()
        took = time.monotonic() - began
        used = [cpu_seconds(process) - was for process, was in zip((recorder, rig.robot), before)]
        answer = rig.stop()
        expected = {topic: {stamp for stamp in stamps if first <= stamp <= last}
                    for topic, stamps in rig.published().items()}
        found = recorded_stamps(folder)
        lost = {topic: len(stamps - found.get(topic, found.get(f'{topic}/compressed', set())))
                for topic, stamps in expected.items()}
        size = next(folder.glob('*.mcap')).stat().st_size
    return {'published': sum(map(len, expected.values())), 'lost': sum(lost.values()), 'told': answer.message,
            'recorder_cpu': round(used[0] / took, 3), 'robot_cpu': round(used[1] / took, 3),
            'file_mb_s': round(size / 1e6 / took, 1), 'load': round(os.getloadavg()[0], 1),
            **{f'lost {topic}': count for topic, count in lost.items() if count}}


def show(rows: list[dict], plain: float) -> None:
    """Print a table."""
    table = Table(title=f'3 x 640x480 rgb8 at 30 Hz, joints at 200 Hz; plain writes here: {plain:.0f} MB/s')
    columns = ('compression', 'jpeg', 'published', 'lost', 'recorder_cpu', 'robot_cpu', 'file_mb_s', 'load')
    for column in columns:
        table.add_column(column.replace('_', ' '), justify='right')
    for row in rows:
        table.add_row(*(str(row[column]) for column in columns))
    Console().print(table)
    for row in rows:
        if row['told']:
            Console().print(row['told'])


if __name__ == '__main__':
    typer.run(measure)
