"""Damages small bags in many ways and reads them: nothing may crash, hang or take memory without bound.

    python benchmarks/fuzz_bags.py --mutations 10000 --workers 2
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
import json
import logging
import multiprocessing
from multiprocessing.connection import Connection, wait
from pathlib import Path
import random
import resource
import shutil
import struct
import sys
import tempfile
import time
from typing import Annotated

import numpy as np
import typer

from flow_vla_core.contract import RobotContract, find_contract
from flow_vla_core.data.bag_reader import open_bag
from flow_vla_core.data.bag_writer import EpisodeWriter, Topic
from flow_vla_core.data.mcap_records import CHUNK, FOOTER, MAGIC, PREFIX, records
from flow_vla_core.data.reading import read_episodes
from flow_vla_core.data.typestore import full_name, typestore
from flow_vla_core.errors import DataError

START, STEPS = 1_700_000_000 * 10 ** 9, 12
MEMORY = 2 ** 30  # bytes that a reader may take on top of what it has when it starts
DEADLINE = 20.0   # s for one bag, of which a good one needs a few hundredths, on a machine that does much else
OUTCOMES = ('whole', 'in part', 'refused', 'crashed', 'hung')


@dataclass(frozen=True)
class Result:
    """Says how one damaged bag was read.

    Args:
        number: of the mutation, which gives everything random about it.
        bag: kind of the bag that was damaged.
        mutation: how.
        outcome: one of `OUTCOMES`.
        detail: the problem, or the exception that should not have come.
    """

    number: int
    bag: str
    mutation: str
    outcome: str
    detail: str = ''


def fuzz_contract() -> RobotContract:
    """Return Meta-World's contract with tiny pictures."""
    contract = RobotContract.load(find_contract('metaworld'))
    cameras = tuple(camera.model_copy(update={'resolution': (12, 12), 'size': (6, 6)}) for camera in contract.cameras)
    return contract.model_copy(update={'cameras': cameras})


def make_bags(folder: Path) -> dict[str, Path]:
    """Write one good bag of each kind."""
    contract = fuzz_contract()
    bags = {f'mcap {name}': _write_mcap(folder / f'mcap_{name}', contract, name) for name in ('zstd', 'none', 'lz4')}
    bags['mcap without checksums'] = _write_mcap(folder / 'mcap_unchecked', contract, 'none')
    file = bags['mcap without checksums'] / 'mcap_unchecked_0.mcap'
    file.write_bytes(without_checksums(file.read_bytes()))
    bags['sqlite3'] = _write_rosbags(folder / 'sqlite3', contract, '')
    bags['sqlite3 messages zstd'] = _write_rosbags(folder / 'sqlite3_messages', contract, 'message')
    bags['sqlite3 file zstd'] = _write_rosbags(folder / 'sqlite3_file', contract, 'file')
    return bags


def without_checksums(data: bytes) -> bytes:
    """Take the checksums out of an MCAP file, so that damage reaches what lies behind them."""
    found = bytearray(data)
    for opcode, begin, _ in records(data[:-len(MAGIC)], len(MAGIC)):
        if opcode == CHUNK:
            struct.pack_into('<I', found, begin + 24, 0)
        elif opcode == FOOTER:
            struct.pack_into('<I', found, begin + 16, 0)
    return bytes(found)


def messages(contract: RobotContract) -> Iterator[tuple[str, str, int, bytes]]:
    """Yield topic, type, time and bytes of a short episode."""
    make, random_pixels = _Maker(), np.random.default_rng(0)
    yield '/instruction', 'std_msgs/msg/String', START, make.bytes('std_msgs/String', data='open the tap')
    for step in range(STEPS):
        time = START + step * contract.rates.policy_dt_ns
        for camera in contract.cameras:
            pixels = random_pixels.integers(0, 256, (*camera.resolution, 3), np.uint8)
            yield '/' + camera.topic, 'sensor_msgs/msg/Image', time, make.image(time, pixels)
        for part in (*contract.state, *contract.actions):
            yield '/' + part.topic, full_name(part.message), time, make.numbers(part.message, time, float(step))


class _Maker:
    """Serializes messages."""

    def new(self, kind: str, **values: object) -> object:
        return typestore().types[full_name(kind)](**values)

    def bytes(self, kind: str, **values: object) -> bytes:
        return bytes(typestore().serialize_cdr(self.new(kind, **values), full_name(kind)))

    def header(self, time: int) -> object:
        stamp = self.new('builtin_interfaces/Time', sec=time // 10 ** 9, nanosec=time % 10 ** 9)
        return self.new('std_msgs/Header', frame_id='', stamp=stamp)

    def image(self, time: int, pixels: np.ndarray) -> bytes:
        rows, columns, _ = pixels.shape
        return self.bytes('sensor_msgs/Image', header=self.header(time), height=rows, width=columns, encoding='rgb8',
                          is_bigendian=0, step=3 * columns, data=pixels.reshape(-1))

    def numbers(self, kind: str, time: int, value: float) -> bytes:
        header, empty = self.header(time), np.zeros(0)
        vector = self.new('geometry_msgs/Vector3', x=value, y=0.0, z=0.0)
        if kind == 'sensor_msgs/JointState':
            return self.bytes(kind, header=header, name=['gripper'], position=np.array([value]), velocity=empty,
                              effort=empty)
        if kind == 'geometry_msgs/PoseStamped':
            pose = self.new('geometry_msgs/Pose', position=self.new('geometry_msgs/Point', x=value, y=0.0, z=0.0),
                            orientation=self.new('geometry_msgs/Quaternion', x=0.0, y=0.0, z=0.0, w=1.0))
            return self.bytes(kind, header=header, pose=pose)
        if kind == 'geometry_msgs/TwistStamped':
            return self.bytes(kind, header=header, twist=self.new('geometry_msgs/Twist', linear=vector, angular=vector))
        point = self.new('trajectory_msgs/JointTrajectoryPoint', positions=np.array([value]), velocities=empty,
                         accelerations=empty, effort=empty,
                         time_from_start=self.new('builtin_interfaces/Duration', sec=0, nanosec=0))
        return self.bytes(kind, header=header, joint_names=['gripper'], points=[point])


def _write_mcap(folder: Path, contract: RobotContract, compression: str) -> Path:
    samples = list(messages(contract))
    topics = [Topic(topic, kind) for topic, kind in dict.fromkeys((topic, kind) for topic, kind, _, _ in samples)]
    writer = EpisodeWriter(folder, topics, {'task': 'tap'}, compression)
    for number, (topic, _, stamp, data) in enumerate(samples):
        writer.write(topic, data, stamp, stamp)
        if number % 24 == 23:
            writer.flush()  # a chunk ends here
    writer.close()
    return folder


def _write_rosbags(folder: Path, contract: RobotContract, mode: str) -> Path:
    from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer
    writer = Writer(folder, version=9, storage_plugin=StoragePlugin.SQLITE3)
    if mode:
        writer.set_compression(CompressionMode[mode.upper()], CompressionFormat.ZSTD)
    with writer:
        opened = {}
        for topic, kind, time, data in messages(contract):
            if topic not in opened:
                opened[topic] = writer.add_connection(topic, kind, typestore=typestore())
            writer.write(opened[topic], time, data)
    return folder


def flip_bits(data: bytearray, source: random.Random) -> None:
    for _ in range(source.choice((1, 1, 3, 10, 100))):
        data[source.randrange(len(data))] ^= 1 << source.randrange(8)


def truncate(data: bytearray, source: random.Random) -> None:
    del data[source.randrange(len(data)):]


def insert(data: bytearray, source: random.Random) -> None:
    at, count = source.randrange(len(data)), source.choice((1, 2, 8, 64, 1000))
    data[at:at] = source.randbytes(count) if source.random() < 0.5 else data[at:at + count]


def remove(data: bytearray, source: random.Random) -> None:
    at = source.randrange(len(data))
    del data[at:at + source.choice((1, 2, 8, 64, 1000))]


def swap(data: bytearray, source: random.Random) -> None:
    """Exchange two records of an MCAP file, or two blocks."""
    parts = _places(bytes(data))
    (a, b), (c, d) = sorted(source.sample(parts, 2))
    if b <= c:
        data[a:d] = data[c:d] + data[b:c] + data[a:b]


def overstate(data: bytearray, source: random.Random) -> None:
    """Write a hostile length over one of an MCAP file, or anywhere."""
    at = source.choice(_places(bytes(data)))[0] + 1 if source.random() < 0.5 else source.randrange(len(data))
    value = source.choice((0, 1, 0xFF, 0x7FFFFFFF, 0xFFFFFFFF, 2 ** 31, 2 ** 40, 2 ** 63 - 1, 2 ** 64 - 1, len(data)))
    size = source.choice((4, 8))
    data[at:at + size] = (value % 2 ** (8 * size)).to_bytes(size, 'little')


def blank(data: bytearray, source: random.Random) -> None:
    at, count = source.randrange(len(data)), source.choice((8, 512, 4096))
    data[at:at + count] = bytes(min(count, len(data) - at))


MUTATIONS: Mapping[str, Callable[[bytearray, random.Random], None]] = {
    'flip bits': flip_bits, 'truncate': truncate, 'insert': insert, 'remove': remove, 'swap': swap,
    'overstate a length': overstate, 'blank': blank}


def mangle_metadata(path: Path, source: random.Random) -> None:
    """Damage ``metadata.yaml`` as text, by a value of another type, or delete it."""
    text = path.read_text()
    way = source.randrange(4)
    if way == 0:
        path.unlink()
    elif way == 1:
        damaged = bytearray(text.encode())
        source.choice(list(MUTATIONS.values()))(damaged, source)
        path.write_bytes(bytes(damaged))
    else:
        lines = text.split('\n')
        line = source.randrange(len(lines))
        value = source.choice(('[]', '{}', 'null', '-1', '1e400', '"\\0"', '&a [*a]', '!!python/object:os.system x',
                               'zstd', 'message', 'file', 'x' * 1000, '.nan', '../../etc/passwd'))
        lines[line] = f'{lines[line].split(":")[0]}: {value}' if way == 2 else value
        path.write_text('\n'.join(lines))


def damage(bags: Mapping[str, Path], number: int, folder: Path) -> tuple[str, str, Path]:
    """Make the damaged bag of a number; return kind of bag, mutation and place."""
    source = random.Random(number)
    kind = source.choice(sorted(bags))
    bag = shutil.copytree(bags[kind], folder / 'bag')
    if source.random() < 0.15:
        mangle_metadata(bag / 'metadata.yaml', source)
        return kind, 'metadata', bag
    name = source.choice(sorted(MUTATIONS))
    file = next(path for path in bag.iterdir() if path.suffix != '.yaml')
    data = bytearray(file.read_bytes())
    for _ in range(source.choice((1, 1, 2))):
        if len(data) > 16:
            MUTATIONS[name](data, source)
    file.write_bytes(bytes(data))
    return kind, name, bag


def read(bags: Mapping[str, Path], number: int, contract: RobotContract) -> Result:
    """Damage a bag and read it."""
    with tempfile.TemporaryDirectory() as folder:
        kind, name, path = damage(bags, number, Path(folder))
        try:
            bag = open_bag(path)
            read_episodes(bag, contract)
            outcome, detail = ('in part', bag.problems[0]) if bag.problems else ('whole', '')
        except DataError as error:
            outcome, detail = 'refused', str(error)
            if '\n' in detail.strip():
                outcome, detail = 'crashed', f'not one line: {detail}'
        except BaseException as error:  # this is what is looked for
            outcome, detail = 'crashed', f'{type(error).__name__}: {error}'
        return Result(number, kind, name, outcome, detail.replace(folder, ''))


def work(bags: Mapping[str, Path], orders: Connection) -> None:
    """Read damaged bags by their numbers, in little memory, until None comes."""
    logging.disable(logging.CRITICAL)
    contract = fuzz_contract()
    read(bags, 0, contract)
    used = int(Path('/proc/self/statm').read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    orders.send(None)
    while (number := orders.recv()) is not None:
        orders.send((read(bags, number, contract), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss))


class _Worker:
    """Is a process that reads damaged bags."""

    def __init__(self, bags: Mapping[str, Path]) -> None:
        context = multiprocessing.get_context('spawn')
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=work, args=(bags, theirs), daemon=True)
        self.process.start()
        theirs.close()
        self.pipe.recv()
        self.number: int | None = None
        self.since = 0.0

    def order(self, number: int) -> None:
        self.number, self.since = number, time.monotonic()
        self.pipe.send(number)

    def end(self) -> None:
        self.process.kill()
        self.process.join()


def fuzz(bags: Mapping[str, Path], numbers: Iterator[int], workers: int,
         tell: Callable[[int], None] = lambda _: None) -> tuple[list[Result], int]:
    """Read damaged bags in processes of their own; return what came out, and the largest memory in KiB."""
    crew = [_Worker(bags) for _ in range(workers)]
    results, peak = [], 0
    for worker in crew:
        _next(worker, numbers)
    while busy := [worker for worker in crew if worker.number is not None]:
        wait([worker.pipe for worker in busy], timeout=1.0)
        for place, worker in enumerate(crew):
            if worker.number is None:
                continue
            found = _hear(worker)
            if found is None:
                continue
            results.append(found[0])
            peak = max(peak, found[1])
            tell(len(results))
            if not worker.process.is_alive() or found[0].outcome == 'hung':
                worker.end()
                worker = crew[place] = _Worker(bags)
            _next(worker, numbers)
    for worker in crew:
        worker.end()
    return sorted(results, key=lambda result: result.number), peak


def _next(worker: _Worker, numbers: Iterator[int]) -> None:
    number = next(numbers, None)
    worker.number = None
    if number is not None:
        worker.order(number)


def _hear(worker: _Worker) -> tuple[Result, int] | None:
    """Return a worker's result, one that says how it ended, or None while it works."""
    try:
        if worker.pipe.poll():
            return worker.pipe.recv()
        if time.monotonic() - worker.since < DEADLINE:
            return None
        worker.process.kill()
        return Result(worker.number, '', '', 'hung', f'nothing for {DEADLINE:g} s'), 0
    except (EOFError, OSError):
        worker.process.join()
        return Result(worker.number, '', '', 'crashed', f'the process ended with {worker.process.exitcode}'), 0


def main(
    mutations: Annotated[int, typer.Option(help='how many')] = 10000,
    first: Annotated[int, typer.Option(help='number of the first; a number always gives the same mutation')] = 0,
    workers: Annotated[int, typer.Option(help='processes')] = 2,
    out: Annotated[Path | None, typer.Option(help='JSON file for the results')] = None,
) -> None:
    """Damage bags, read them, and count how that went."""
    with tempfile.TemporaryDirectory() as folder:
        bags = make_bags(Path(folder))
        started = time.monotonic()
        results, peak = fuzz(bags, iter(range(first, first + mutations)), workers,
                             lambda done: done % 1000 == 0 and print(f'{done} read', file=sys.stderr))
        seconds = time.monotonic() - started
    table = Counter((result.mutation, result.outcome) for result in results)
    print(f'{"mutation":<20}' + ''.join(f'{outcome:>10}' for outcome in OUTCOMES))
    for mutation in sorted({result.mutation for result in results}):
        print(f'{mutation or "?":<20}' + ''.join(f'{table[mutation, outcome]:>10}' for outcome in OUTCOMES))
    totals = Counter(result.outcome for result in results)
    print(f'{"all":<20}' + ''.join(f'{totals[outcome]:>10}' for outcome in OUTCOMES))
    print(f'{len(results)} bags in {seconds:.0f} s; largest memory of a process {peak / 1024:.0f} MiB')
    bad = [result for result in results if result.outcome in ('crashed', 'hung')]
    for result in bad[:20]:
        print(f'{result.number}: {result.bag}, {result.mutation}: {result.outcome}: {result.detail[:300]}')
    if out is not None:
        out.write_text(json.dumps({'totals': totals, 'peak_kib': peak, 'seconds': seconds,
                                   'bad': [result.__dict__ for result in bad]}, indent=1))
    raise typer.Exit(bool(bad))


def _places(data: bytes) -> list[tuple[int, int]]:
    """Return begin and end of the records of an MCAP file, or of blocks of 512 bytes of another one."""
    found = []
    if data.startswith(MAGIC):
        try:
            found = [(begin - PREFIX.size, end) for _, begin, end in records(data, len(MAGIC))]
        except DataError:
            pass
    return found if len(found) > 1 else [(at, min(at + 512, len(data))) for at in range(0, len(data), 512)] * 2


if __name__ == '__main__':
    typer.run(main)
