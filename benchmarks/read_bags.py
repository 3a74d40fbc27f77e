"""Reads a long bag with two cameras into frames: memory, speed, and how fast windows come out of the cache.

    python benchmarks/read_bags.py --seconds 600
"""

from __future__ import annotations

from dataclasses import asdict
import json
import multiprocessing
from multiprocessing.connection import Connection
from pathlib import Path
import resource
import shutil
import tempfile
import time
from typing import Annotated

import numpy as np
from rich.console import Console
from rich.table import Table
import typer

from flow_vla_core.contract import RobotContract, find_contract
from flow_vla_core.data.bag_reader import open_bag
from flow_vla_core.data.bag_writer import EpisodeWriter, Topic
from flow_vla_core.data.cache import EpisodeCache
from flow_vla_core.data.reading import ReadOptions
from flow_vla_core.data.typestore import full_name, typestore
from flow_vla_core.data.windows import Windows
from flow_vla_core.evaluation.report import Machine, git_state

START = 1_700_000_000 * 10 ** 9
STATE_HZ = 100


def bag_contract(rows: int, columns: int) -> RobotContract:
    """Return Meta-World's contract with larger pictures, which become 84 x 84 pixels."""
    contract = RobotContract.load(find_contract('metaworld'))
    cameras = tuple(camera.model_copy(update={'resolution': (rows, columns)}) for camera in contract.cameras)
    return contract.model_copy(update={'cameras': cameras})


def write_bag(folder: Path, contract: RobotContract, seconds: float, compression: str) -> None:
    """Record two cameras and the commands at the policy's rate, and the state at 100 Hz."""
    parts = {'/' + part.topic: full_name(part.message) for part in (*contract.cameras, *contract.state,
                                                                    *contract.actions)}
    writer = EpisodeWriter(folder, [Topic(name, kind) for name, kind in parts.items()],
                           {'instruction': 'open the tap', 'outcome': 'success'}, compression)
    step = contract.rates.policy_dt_ns
    pictures = [_scene(camera.resolution) for camera in contract.cameras]
    for number in range(round(seconds * 1e9 / step)):
        stamp = START + number * step
        for camera, picture in zip(contract.cameras, pictures):
            pixels = np.roll(picture, 3 * number, 1)
            writer.write('/' + camera.topic, _image(stamp, pixels), stamp, stamp)
        for part in contract.actions:
            writer.write('/' + part.topic, _numbers(part.message, stamp, number), stamp, stamp)
        for k in range(round(STATE_HZ * step / 1e9)):
            time_of = stamp + k * 10 ** 9 // STATE_HZ
            for stream in contract.state:
                writer.write('/' + stream.topic, _numbers(stream.message, time_of, number), time_of, time_of)
    writer.close()


def _scene(resolution: tuple[int, int]) -> np.ndarray:
    """Return a picture with smooth parts and some noise, as a camera's."""
    rows, columns = np.indices(resolution)
    smooth = 128 + 60 * np.sin(rows / 17)[..., None] * np.cos(columns[..., None] / np.array([23, 31, 41]))
    return (smooth + np.random.default_rng(0).normal(0, 2, smooth.shape)).clip(0, 255).astype(np.uint8)


def _new(kind: str, **values: object) -> object:
    return typestore().types[full_name(kind)](**values)


def _header(stamp: int) -> object:
    return _new('std_msgs/Header', frame_id='',
                stamp=_new('builtin_interfaces/Time', sec=stamp // 10 ** 9, nanosec=stamp % 10 ** 9))


def _image(stamp: int, pixels: np.ndarray) -> bytes:
    rows, columns, _ = pixels.shape
    message = _new('sensor_msgs/Image', header=_header(stamp), height=rows, width=columns, encoding='rgb8',
                   is_bigendian=0, step=3 * columns, data=pixels.reshape(-1))
    return bytes(typestore().serialize_cdr(message, full_name('sensor_msgs/Image')))


def _numbers(kind: str, stamp: int, value: float) -> bytes:
    header, empty, vector = _header(stamp), np.zeros(0), _new('geometry_msgs/Vector3', x=float(value), y=0.0, z=0.0)
    if kind == 'sensor_msgs/JointState':
        message = _new(kind, header=header, name=['gripper'], position=np.array([value]), velocity=empty, effort=empty)
    elif kind == 'geometry_msgs/PoseStamped':
        point = _new('geometry_msgs/Point', x=float(value), y=0.0, z=0.0)
        turn = _new('geometry_msgs/Quaternion', x=0.0, y=0.0, z=0.0, w=1.0)
        message = _new(kind, header=header, pose=_new('geometry_msgs/Pose', position=point, orientation=turn))
    elif kind == 'geometry_msgs/TwistStamped':
        message = _new(kind, header=header, twist=_new('geometry_msgs/Twist', linear=vector, angular=vector))
    else:
        point = _new('trajectory_msgs/JointTrajectoryPoint', positions=np.array([value]), velocities=empty,
                     accelerations=empty, effort=empty,
                     time_from_start=_new('builtin_interfaces/Duration', sec=0, nanosec=0))
        message = _new(kind, header=header, joint_names=['gripper'], points=[point])
    return bytes(typestore().serialize_cdr(message, full_name(kind)))


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def read_through(bag: Path, contract: RobotContract, cache: Path, threads: int, answer: Connection) -> None:
    """Read a bag into the cache, then once more message by message; answer with times (s) and memory (MiB)."""
    idle, started = _peak(), time.monotonic()
    episodes = EpisodeCache(cache).episodes(bag, contract, ReadOptions(threads=threads))
    decoding, peak = time.monotonic() - started, _peak()
    started = time.monotonic()
    size = sum(len(message.data) for message in open_bag(bag).read())
    scanning = time.monotonic() - started
    started = time.monotonic()
    EpisodeCache(cache).episodes(bag, contract, ReadOptions(threads=threads))
    answer.send({'frames': sum(map(len, episodes)), 'message_bytes': size, 'decode_s': decoding, 'messages_s': scanning,
                 'again_s': time.monotonic() - started, 'idle_mib': idle, 'peak_mib': peak})


def sample(bag: Path, contract: RobotContract, cache: Path, batches: int, answer: Connection) -> None:
    """Gather windows in random order out of the cache; answer with their number in a second."""
    windows = Windows(EpisodeCache(cache).episodes(bag, contract), 12, contract.history)
    order = np.random.default_rng(0).integers(0, len(windows), (batches + 5, 64))
    for indices in order[:5]:
        windows.gather(indices)
    started = time.monotonic()
    for indices in order[5:]:
        windows.gather(indices)
    answer.send({'samples_per_s': batches * 64 / (time.monotonic() - started)})


def _in_child(function: object, *arguments: object) -> dict[str, float]:
    """Run in a process of its own, whose memory is its own too."""
    context = multiprocessing.get_context('spawn')
    ours, theirs = context.Pipe()
    process = context.Process(target=function, args=(*arguments, theirs))
    process.start()
    theirs.close()
    found = ours.recv()
    process.join()
    return found


def main(
    seconds: Annotated[float, typer.Option(help='length of the bag')] = 600.0,
    rows: Annotated[int, typer.Option(help='of the pictures')] = 240,
    columns: Annotated[int, typer.Option(help='of the pictures')] = 320,
    compression: Annotated[str, typer.Option(help='none, lz4 or zstd')] = 'zstd',
    threads: Annotated[int, typer.Option(help='that decode images')] = 2,
    batches: Annotated[int, typer.Option(help='of 64 windows')] = 200,
    folder: Annotated[Path | None, typer.Option(help='where the bag goes for the time being')] = None,
    out: Annotated[Path | None, typer.Option(help='JSON file for the results')] = None,
) -> None:
    """Write a bag, read it, and print how that went."""
    contract = bag_contract(rows, columns)
    place = Path(tempfile.mkdtemp(dir=folder))
    try:
        bag, cache = place / 'bag', place / 'cache'
        started = time.monotonic()
        write_bag(bag, contract, seconds, compression)
        written = time.monotonic() - started
        size = sum(path.stat().st_size for path in bag.iterdir())
        found = _in_child(read_through, bag, contract, cache, threads)
        found |= _in_child(sample, bag, contract, cache, batches)
    finally:
        shutil.rmtree(place)
    values = {'seconds': seconds, 'resolution': [rows, columns], 'compression': compression, 'threads': threads,
              'bag_bytes': size, 'write_s': written, **found, 'times_real_time': seconds / found['decode_s'],
              'mb_per_s': found['message_bytes'] / 1e6 / found['decode_s'], 'git_commit': git_state()[0],
              'machine': asdict(Machine.here())}
    _show(values)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(values, indent=2) + '\n')


def _show(values: dict) -> None:
    table = Table('figure', 'value')
    for name, text in (
            ('bag', f'{values["seconds"]:g} s, {values["bag_bytes"] / 1e9:.2f} GB, {values["compression"]}'),
            ('messages', f'{values["message_bytes"] / 1e9:.2f} GB'),
            ('bag -> frames in the cache', f'{values["decode_s"]:.1f} s, {values["frames"]} frames'),
            ('faster than real time', f'x {values["times_real_time"]:.1f}'),
            ('throughput', f'{values["mb_per_s"]:.0f} MB/s of messages'),
            ('bag -> messages only', f'{values["messages_s"]:.1f} s'),
            ('second start, from the cache', f'{values["again_s"] * 1000:.1f} ms'),
            ('largest memory', f'{values["peak_mib"]:.0f} MiB, of which {values["idle_mib"]:.0f} MiB before reading'),
            ('windows of 64, random', f'{values["samples_per_s"]:.0f} samples/s')):
        table.add_row(name, text)
    Console().print(table)


if __name__ == '__main__':
    typer.run(main)
