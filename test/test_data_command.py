"""`flow-vla data`: tables, the page, the exit codes of a check, cutting, and what Rerun gets to see."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
import json
from pathlib import Path
import pickle
import re
import subprocess
import sys
from typing import Any

from bag_tools import CONTRACT, DT, MARKS, SMALL, START, TYPES, make, message, moving, record, serialize
import numpy as np
import pytest
from rosbags.rosbag2 import Reader

from flow_vla_core.data.bag_writer import EpisodeWriter, Topic
from flow_vla_core.data.inspection import Detail, Finding, Survey, inspect_bag, inspect_bags, page, survey
from flow_vla_core.data.inspection.drawing import draw_histogram
from flow_vla_core.data.inspection.motion import BINS, distribute
from flow_vla_core.data.inspection.page import write_page
from flow_vla_core.data.rerun_log import TIME, numbers
from flow_vla_core.data.typestore import typestore
from flow_vla_ros import cli

COUNT = 24
TWIST = '/servo/twist_cmd'
VOID = {'meta', 'img', 'br', 'input', 'path', 'rect'}


@pytest.fixture
def small(tmp_path: Path) -> str:
    """Write the contract whose bags are quick to record."""
    SMALL.dump(tmp_path / 'small.yaml')
    return str(tmp_path / 'small.yaml')


def run(*words: object) -> int:
    """Return the exit code of a command line."""
    with pytest.raises(SystemExit) as end:
        cli.main(['data', *map(str, words)])
    return end.value.code or 0


class Page(HTMLParser):
    """Checks that every element is closed, and gathers text and addresses."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: Counter[str] = Counter()
        self.text, self.addresses = '', []
        self.feed(text)
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attributes: list) -> None:
        self.seen[tag] += 1
        self.addresses += [value for name, value in attributes if name in ('src', 'href')]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_is_whole_and_asks_nobody_for_anything(tmp_path: Path, small: str, capsys: Any) -> None:
    marks = {**MARKS, 'instruction': 'a <b>"tap"</b> &'}
    for k in range(3):
        record(tmp_path / 'bags' / f'bag_{k}', moving(COUNT, phase=k), marks)
    record(tmp_path / 'bags' / 'same', moving(COUNT, phase=0))
    assert run('inspect', tmp_path / 'bags', '--contract', small, '--out', tmp_path / 'page.html',
               '--json', tmp_path / 'all.json') == 0
    text = (tmp_path / 'page.html').read_text()
    shown = Page(text)
    assert shown.seen['details'] >= 4 and shown.seen['img'] >= 4 * 2 * 8
    assert all(address.startswith(('data:image/jpeg;base64,', '#')) for address in shown.addresses)
    assert not re.search(r'https?:|@import|url\(', text)
    for words in ('DUPLICATE', 'holds the same messages as', 'a <b>"tap"</b> &', 'bag_2', '/camera/front/image_raw',
                  'ee.x', '20.0' if DT == 50_000_000 else 'Hz'):
        assert words in shown.text, words
    told = json.loads((tmp_path / 'all.json').read_text())
    assert [Path(bag['path']).name for bag in told['bags']] == ['bag_0', 'bag_1', 'bag_2', 'same']
    topic = next(topic for topic in told['bags'][0]['topics'] if topic['name'] == TWIST)
    assert (topic['count'], topic['period']) == (COUNT, pytest.approx(DT / 1e9))
    assert [finding['code'] for finding in told['findings'] if finding['bag']] == ['DUPLICATE']
    printed = capsys.readouterr().out
    assert all(words in printed for words in ('DUPLICATE', 'bag_1', '/servo/twist_cmd', 'page.html'))


def test_a_page_of_many_bags_stays_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = inspect_bag(record(tmp_path / 'bag', moving(60)), SMALL, Detail.share(500))
    sizes = {}
    monkeypatch.setattr(page, 'OPEN', 60)
    for count in (30, 60, 90):
        many = tuple(replace(one, path=tmp_path / f'bag_{k}') for k in range(count))
        found = tuple(Finding.of('GAP', str(bag.path), '/ee_pose', '1 gap') for bag in many)
        write_page(tmp_path / 'page.html', Survey(many, found))
        sizes[count] = (tmp_path / 'page.html').stat().st_size
        shown = Page((tmp_path / 'page.html').read_text())
        assert f'bag_{count - 1}' in shown.text and (count < 41 or f'and {count - 40} more' in shown.text)
    assert 500 * (sizes[60] - sizes[30]) / 30 < 10_000_000
    assert (sizes[90] - sizes[60]) < 0.1 * (sizes[60] - sizes[30])  # beyond the bound only their lines are added


def test_a_page_of_nothing_can_be_written(tmp_path: Path) -> None:
    write_page(tmp_path / 'deep' / 'page.html', inspect_bags([tmp_path / 'nowhere']))
    assert 'UNREADABLE' in Page((tmp_path / 'deep' / 'page.html').read_text()).text


def test_a_histogram_is_as_high_as_its_bins() -> None:
    values = np.repeat([-0.9, 0.0, 0.9], [10, 40, 20])
    svg = draw_histogram(distribute('x', 'm', values, -1.0, 1.0))
    bars = {int(x) // 5: float(height) for x, height in re.findall(r'M(\d+) 50v-([\d.]+)h', svg)}
    edges = np.linspace(-1.1, 1.1, BINS + 1)
    places = np.searchsorted(edges, [-0.9, 0.0, 0.9], 'right') - 1
    assert bars == {place: pytest.approx(48 * share, abs=0.05) for place, share in zip(places, (0.25, 1.0, 0.5))}
    lines = [float(x) / (5 * BINS) for x in re.findall(r'class="limit" d="M([\d.]+)', svg)]
    assert lines == pytest.approx([(edge + 1.1) / 2.2 for edge in (-1, 1)], abs=1e-3)


def test_check_tells_by_its_exit_code(tmp_path: Path, small: str, capsys: Any) -> None:
    good, bad = record(tmp_path / 'good', moving(COUNT)), tmp_path / 'bad'
    record(bad, [sample for sample in moving(COUNT, phase=1) if sample[0] != '/ee_pose'])
    assert run('check', good, '--contract', small) == 0
    assert capsys.readouterr().out.splitlines()[-1] == 'bags: 1, errors: 0, other findings: 4'  # that never change
    assert run('check', good, bad, '--contract', small) == 1
    first, *_, last = capsys.readouterr().out.splitlines()
    assert first == f'error   513 TOPIC_SILENT     {bad} /ee_pose: ee_position: 0 messages'
    assert last.startswith('bags: 2, errors: 1, ')
    assert run('check', bad, '--contract', small, '--allow', 'topic-silent') == 0
    (tmp_path / 'noise_0.mcap').write_bytes(b'noise')
    assert run('check', tmp_path / 'noise_0.mcap') == 1
    assert 'UNREADABLE' in capsys.readouterr().out


@pytest.mark.parametrize('words', [('check',), ('check', 'nowhere'), ('inspect', '.'),
                                   ('check', 'x', '--allow', 'nonsense'),
                                   ('check', 'x', '--contract', 'no'),
                                   ('split', 'nowhere', 'out'), ('trim', 'nowhere', 'out'), ('view', 'nowhere'),
                                   ('split', 'nowhere', 'out', '--by', 'x%')])
def test_wrong_usage_ends_with_two(words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(*words) == 2


def test_new_bags_are_not_put_among_those_that_they_come_from(tmp_path: Path, capsys: Any) -> None:
    record(tmp_path / 'bags' / 'one', moving(4))
    record(tmp_path / 'bags' / 'two', moving(4))
    for words in (('trim', '--end', '0.1'), ('split',), ('split', '--by', '50%')):
        command, *options = words
        assert run(command, tmp_path / 'bags', tmp_path / 'bags' / 'new', *options) == 2
        assert 'new: lies in' in capsys.readouterr().err
    assert len(list((tmp_path / 'bags').iterdir())) == 2


class Pool:
    """Stands in for a pool of processes: what goes in and comes out is sent as it would be."""

    def __init__(self, workers: int, context: object) -> None:
        self.workers = workers

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def map(self, function: Any, items: Any) -> Any:
        for item in items:
            sent, place = pickle.loads(pickle.dumps((function, item)))
            yield pickle.loads(pickle.dumps(sent(place)))


def test_several_processes_find_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(survey, 'ProcessPoolExecutor', Pool)
    bags = [record(tmp_path / f'bag_{k}', moving(4, phase=k)) for k in range(2)]
    seen: list[Path] = []
    one = inspect_bags(bags, SMALL, Detail(), 1)
    two = inspect_bags(bags, SMALL, Detail(), 2, lambda report: seen.append(report.path))
    assert one.findings == two.findings and [bag.digest for bag in one.bags] == [bag.digest for bag in two.bags]
    assert seen == bags


def test_folders_are_cut_and_dealt_out(tmp_path: Path, small: str, capsys: Any) -> None:
    for k in range(4):
        record(tmp_path / 'bags' / f'bag_{k}', moving(COUNT, phase=k))
    assert run('trim', tmp_path / 'bags', tmp_path / 'new', '--start', 0.2, '--end', 0.5) == 0
    assert run('trim', tmp_path / 'bags' / 'bag_0', tmp_path / 'one', '--idle', '--contract', small) == 0
    assert run('split', tmp_path / 'bags', tmp_path / 'parts', '--by', '0.5s') == 0
    assert run('split', tmp_path / 'bags', tmp_path / 'sides', '--by', '25%', '--seed', 3) == 0
    assert run('split', tmp_path / 'bags', tmp_path / 'sides', '--by', '25%') == 2
    assert '3 bags in' in (shown := capsys.readouterr().out) and '1 bags in' in shown
    step = DT / 1e9
    with Reader(tmp_path / 'new' / 'bag_3') as reader:
        assert reader.duration / 1e9 <= 0.3 + 1e-6 and reader.message_count > 0
    parts = len(list((tmp_path / 'parts').iterdir()))
    assert parts == 4 * int(np.ceil(((COUNT - 1) * step + 1e-9) / 0.5))


def record_all(folder: Path) -> Path:
    """Record a bag with marks, who acts and a topic that no contract names."""
    kinds = {'/episode': 'flow_vla/msg/Episode', '/extra': 'geometry_msgs/msg/PointStamped'}
    writer = EpisodeWriter(folder, [Topic(name, kind) for name, kind in {**TYPES, **kinds}.items()], MARKS)
    for topic, time, built in moving(COUNT):
        writer.write(topic, serialize(topic, built), time, time)
    header = message('/ee_pose', START).header
    point = make('geometry_msgs/Point', x=1.0, y=2.0, z=3.0)
    built = {'/episode': make('flow_vla/Episode', header=header, id='bag', event=0, instruction='go', task='',
                              outcome=0, contract=CONTRACT.label),
             '/extra': make('geometry_msgs/PointStamped', header=header, point=point)}
    for topic, kind in kinds.items():
        writer.write(topic, bytes(typestore().serialize_cdr(built[topic], kind)), START, START)
    writer.close()
    return folder


def read_rrd(path: Path) -> dict[str, list[Any]]:
    """Read a recording with Rerun's own reader: entity -> record batches."""
    chunk = pytest.importorskip('rerun.chunk', reason='rerun-sdk is not installed, or too old to read files')
    reader, found = chunk.RrdReader(str(path)), {}
    for part in reader.stream(store=reader.recordings()[0]):
        found.setdefault(part.entity_path, []).append(part.to_record_batch())
    return found


@pytest.mark.parametrize('quality', [0, 80])
def test_rerun_reads_back_what_was_recorded(tmp_path: Path, small: str, quality: int, capsys: Any) -> None:
    pytest.importorskip('rerun')
    bag = record_all(tmp_path / 'bag')
    assert run('view', bag, '--save', tmp_path / 'x.rrd', '--contract', small, '--quality', quality) == 0
    done = subprocess.run([sys.executable, '-m', 'rerun', 'rrd', 'verify', tmp_path / 'x.rrd'], capture_output=True)
    assert done.returncode == 0, done.stderr
    found = read_rrd(tmp_path / 'x.rrd')
    counts = {entity: sum(batch.num_rows for batch in batches) for entity, batches in found.items()}
    expected = {'/instruction': 1, '/episode': 1}
    expected |= {f'/camera/{camera.name}': COUNT for camera in SMALL.cameras}
    expected |= {f'/state/{stream.name}/{name}': COUNT for stream in SMALL.state for name in stream.names}
    expected |= {f'/action/{part.name}/{name}': COUNT for part in SMALL.actions for name in part.names}
    expected |= {f'/topic/extra/point.{axis}': 1 for axis in 'xyz'}
    assert {entity: counts.get(entity) for entity in expected} == expected
    batch, = found['/action/ee/x']
    commanded = [built.twist.linear.x for topic, _, built in moving(COUNT) if topic == TWIST]
    np.testing.assert_allclose(np.concatenate(batch.column('Scalars:scalars').to_pylist()), commanded, rtol=1e-6)
    assert batch.column(TIME).cast('int64').to_pylist() == [START + k * DT for k in range(COUNT)]
    assert run('view', bag, '--save', tmp_path / 'x.rrd', '--contract', small) == 2
    assert f'{COUNT}  action/ee/x' in capsys.readouterr().out


def test_numbers_of_any_message_have_names() -> None:
    joints = make('sensor_msgs/JointState', header=message('/ee_pose', START).header, name=['a', 'b'],
                  position=np.array([1.0, 2.0]), velocity=np.array([3.0]), effort=np.zeros(0))
    assert dict(numbers(joints)) == {'position.a': 1.0, 'position.b': 2.0, 'velocity.0': 3.0}
