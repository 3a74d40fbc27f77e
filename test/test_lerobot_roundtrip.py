"""Bags to a LeRobotDataset and back: no value changes; others' datasets are matched by name."""

from __future__ import annotations

from collections.abc import Mapping
import json
from pathlib import Path
from typing import Any

from lerobot_tools import CONTRACT, START, VALUES, assert_same, make_episode, make_episodes
import numpy as np
import pytest

from flow_vla_core.contract import RobotContract
from flow_vla_core.data import find_bags, read_episode, read_episodes
from flow_vla_core.data.episode import Episode
from flow_vla_core.data.lerobot import (
    Dataset,
    ExportOptions,
    Limits,
    contract_of,
    export_bags,
    export_episodes,
    import_dataset,
)
from flow_vla_core.errors import ConfigError, DataError, FlowVLAError

pq = pytest.importorskip('pyarrow.parquet')
pytest.importorskip('av')

BIG = RobotContract.parse({**VALUES, 'cameras': [{**camera, 'size': camera['resolution']}
                                                 for camera in VALUES['cameras']]})


def back(dataset: Path, contract: RobotContract, bags: Path, **options: Any) -> list[Episode]:
    """Import a dataset and read the bags."""
    folders = list(import_dataset(Dataset(dataset), contract, bags, **options))
    assert folders == find_bags(bags)
    return [read_episode(folder, contract) for folder in folders]


def edit_info(dataset: Path, **changes: Any) -> None:
    """Change what info.json says."""
    path = dataset / 'meta/info.json'
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def rename(dataset: Path, names: Mapping[str, str], **described: Mapping[str, Any]) -> None:
    """Call features otherwise, as another recorder would, and describe them anew."""
    info = json.loads((dataset / 'meta/info.json').read_text())
    features = {names.get(key, key): {**value, **described.get(names.get(key, key).replace('.', '_'), {})}
                for key, value in info['features'].items()}
    edit_info(dataset, features=features)
    for path in dataset.glob('data/*/*.parquet'):
        table = pq.read_table(path, partitioning=None)
        pq.write_table(table.rename_columns([names.get(name, name) for name in table.column_names]), path)


@pytest.fixture(scope='module')
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset with images without loss; to be read only."""
    out = tmp_path_factory.mktemp('exported') / 'png'
    export_episodes(make_episodes(), CONTRACT, out, ExportOptions('png'))
    return out


@pytest.fixture
def copy(exported: Path, tmp_path: Path) -> Path:
    """A copy that may be spoilt."""
    import shutil
    return shutil.copytree(exported, tmp_path / 'copy')


@pytest.mark.parametrize(('images', 'error'), [('png', 0.0), ('fine-video', 1.5), ('video', 6.0)])
def test_bags_to_dataset_to_bags(images: str, error: float, tmp_path: Path) -> None:
    """The first bags are made by an import, then go through the whole circle."""
    export_episodes(make_episodes(), CONTRACT, tmp_path / 'first', ExportOptions('png'))
    before = back(tmp_path / 'first', BIG, tmp_path / 'bags')
    for made, read in zip(make_episodes(), before, strict=True):
        assert_same(made, read)
    info = export_bags(find_bags(tmp_path / 'bags'), CONTRACT, tmp_path / 'second', ExportOptions(images))
    assert (info.total_episodes, info.total_frames, info.total_tasks, info.fps) == (3, 24, 2, 10)
    for one, other in zip(before, back(tmp_path / 'second', BIG, tmp_path / 'again'), strict=True):
        assert_same(one, other, error)


def test_the_policy_sees_the_same_either_way(exported: Path, tmp_path: Path) -> None:
    """Images at the policy's size, written as such or made smaller when they are read."""
    small = back(exported, CONTRACT, tmp_path / 'bags')
    export_bags(find_bags(tmp_path / 'bags'), CONTRACT, tmp_path / 'policy', ExportOptions('png', 'policy'))
    own = contract_of(tmp_path / 'policy')
    assert own.cameras[0].resolution == (32, 48) and own.label == CONTRACT.label
    for one, other in zip(small, back(tmp_path / 'policy', own, tmp_path / 'again'), strict=True):
        assert_same(one, other)
    with pytest.raises(DataError, match=r'observation\.images\.top: shape \(32, 48, 3\), the contract says 64 rows and '
                                        r'96 columns'):
        next(import_dataset(Dataset(tmp_path / 'policy'), CONTRACT, tmp_path / 'wrong'))


def test_the_contract_goes_along(exported: Path) -> None:
    assert contract_of(exported) == CONTRACT
    with pytest.raises(DataError, match='brings no contract'):
        contract_of(exported.parent)


def test_episodes_in_files_of_their_own(tmp_path: Path) -> None:
    """Every file is full with one episode, every folder with two files."""
    export_episodes(make_episodes(), CONTRACT, tmp_path / 'out', ExportOptions('fine-video', limits=Limits(0, 0, 2)))
    files = sorted(str(path.relative_to(tmp_path / 'out')) for path in tmp_path.glob('out/*/**/file-*')
                   if 'meta' not in path.parts)
    places = ['chunk-000/file-000', 'chunk-000/file-001', 'chunk-001/file-000']
    videos = [f'videos/observation.images.{camera}/{place}.mp4' for camera in ('side', 'top') for place in places]
    assert files == [*(f'data/{place}.parquet' for place in places), *videos]
    for made, read in zip(make_episodes(), back(tmp_path / 'out', BIG, tmp_path / 'bags'), strict=True):
        assert_same(made, read, 1.5)


def test_grey_and_compressed_images(tmp_path: Path) -> None:
    grey = {**VALUES['cameras'][0], 'encoding': 'mono8', 'size': [64, 96]}
    packed = {**VALUES['cameras'][1], 'message': 'sensor_msgs/CompressedImage'}
    contract = RobotContract.parse({**VALUES, 'cameras': [grey, packed]})
    episode = make_episode(0, 4, contract)
    export_episodes([episode], contract, tmp_path / 'out', ExportOptions('png'))
    assert_same(episode, back(tmp_path / 'out', contract, tmp_path / 'bags')[0])


def test_a_robot_without_cameras_or_state(tmp_path: Path) -> None:
    for changes in ({'cameras': []}, {'state': []}):
        contract = RobotContract.parse({**VALUES, **changes})
        episode = make_episode(1, 4, contract, 'size')
        out = tmp_path / next(iter(changes))
        export_episodes([episode], contract, out, ExportOptions('png', 'policy'))
        assert_same(episode, back(out, contract_of(out), out.with_suffix('.bags'))[0])


def test_others_datasets_have_neither_stamps_nor_contract(copy: Path, tmp_path: Path) -> None:
    """At 30 Hz, with lerobot's names in another order, older descriptions of names, and cameras of other names."""
    rename(copy, {'stamp': 'other', 'actor': 'more', 'next.success': 'less', 'observation.images.top': 'top.rgb'})
    edit_info(copy, fps=30, robot_type=None)
    with pytest.raises(DataError, match=r"no number 'hand\.x' among .*; expected 8: hand\.x, hand\.y"):
        rename(copy, {}, observation_state={'names': [*'12345678']})
        next(import_dataset(Dataset(copy), CONTRACT, tmp_path / 'bags', {'top': 'top.rgb'}))
    names = ['b', 'w', 'turn.x', 'z', 'y', 'hand.x', 'a.pos', 'speed.b']
    rename(copy, {}, observation_state={'names': {'motors': names}})
    with pytest.raises(DataError, match=r"no images 'observation\.images\.top' for the camera 'top'"):
        next(import_dataset(Dataset(copy), CONTRACT, tmp_path / 'bags'))
    contract = RobotContract.parse({**VALUES, 'rates': {'policy_dt': 1 / 30, 'control_hz': 60.0},
                                    'state': [part for part in VALUES['state'] if part['name'] != 'joints']})
    read = back(copy, contract, tmp_path / 'bags', features={'top': 'top.rgb'})
    for made, episode in zip(make_episodes(), read, strict=True):
        np.testing.assert_array_equal(episode.state, made.state[:, [5, 4, 3, 2, 1, 7]])
        np.testing.assert_array_equal(episode.actions, made.actions)
        assert episode.stamps[0] == 10 ** 9 and not episode.actors.any()
        assert (episode.instruction, episode.outcome) == (made.instruction, made.outcome)


def test_numbers_by_position(copy: Path, tmp_path: Path) -> None:
    rename(copy, {}, action={'names': None})
    with pytest.raises(DataError, match='action: 5 numbers without names, expected 5: twist.x, .*by-position'):
        next(import_dataset(Dataset(copy), BIG, tmp_path / 'bags'))
    for made, read in zip(make_episodes(), back(copy, BIG, tmp_path / 'bags', by_position=True), strict=True):
        assert_same(made, read)
    rename(copy, {}, action={'shape': [4]})
    with pytest.raises(DataError, match=r'action: shape \(4,\), expected 5'):
        next(import_dataset(Dataset(copy), BIG, tmp_path / 'more', by_position=True))


def test_words_that_change_on_the_way(copy: Path, tmp_path: Path) -> None:
    """A dataset may give each frame words of its own; the bag is read as an episode for each."""
    path = next(copy.glob('data/*/*.parquet'))
    table = pq.read_table(path, partitioning=None)
    numbers = table['task_index'].to_numpy().copy()
    numbers[3:7] = 1
    place = table.column_names.index('task_index')
    pq.write_table(table.set_column(place, 'task_index', [numbers]), path)
    folder = next(import_dataset(Dataset(copy), BIG, tmp_path / 'bags'))
    parts = read_episodes(folder, BIG)
    assert [(part.instruction, len(part)) for part in parts] == [('do thing 0', 3), ('do thing 1', 4)]
    assert parts[1].stamps[0] == START + 3 * 10 ** 8


@pytest.mark.parametrize(('spoil', 'complaint'), [
    (lambda path: edit_info(path, codebase_version='v2.1'), 'codebase_version .v2.1., this reads v3.x'),
    (lambda path: edit_info(path, fps=0), 'fps is 0'),
    (lambda path: edit_info(path, data_path='data/{nothing}.parquet'), 'data_path: .*fields are'),
    (lambda path: edit_info(path, data_path='data/{chunk_index:0999999999d}'), 'data_path: .*fields are'),
    (lambda path: edit_info(path, data_path='../{chunk_index}/x.parquet'), 'leads out of the dataset'),
    (lambda path: edit_info(path, video_path='/{video_key}.mp4'), 'leads out of the dataset'),
    (lambda path: edit_info(path, features={'action': {}}), "'shape'"),
    (lambda path: (path / 'meta/info.json').write_text('{'), 'not that of a LeRobotDataset'),
    (lambda path: (path / 'meta/info.json').unlink(), 'not a LeRobotDataset'),
    (lambda path: (path / 'meta/tasks.parquet').write_bytes(b'PAR1'), 'tasks.parquet'),
    (lambda path: next(path.glob('meta/episodes/*/*')).unlink(), 'meta/episodes holds no parquet file'),
    (lambda path: next(path.glob('data/*/*')).unlink(), 'file-000.parquet: no such file'),
    (lambda path: rename(path, {'action': 'actions'}), "no feature 'action'; did you mean 'actions'"),
    (lambda path: rename(path, {}, action={'shape': [6], 'names': [*'abcdef']}), 'action: no number'),
    (lambda path: rename(path, {}, action={'dtype': 'string'}), 'action: dtype string'),
])
def test_what_is_wrong_is_said(copy: Path, tmp_path: Path, spoil: Any, complaint: str) -> None:
    spoil(copy)
    with pytest.raises(DataError, match=complaint):
        list(import_dataset(Dataset(copy), CONTRACT, tmp_path / 'bags'))


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / 'file').touch()
    with pytest.raises(DataError, match='file/out: Not a directory'):
        export_episodes([make_episode(0, 3)], CONTRACT, tmp_path / 'file' / 'out', ExportOptions('png'))


def test_a_video_that_ends_early(tmp_path: Path) -> None:
    long, short = tmp_path / 'long', tmp_path / 'short'
    export_episodes([make_episode(0, 9)], CONTRACT, long, ExportOptions('fine-video'))
    export_episodes([make_episode(0, 6)], CONTRACT, short, ExportOptions('fine-video'))
    name = 'videos/observation.images.top/chunk-000/file-000.mp4'
    (long / name).write_bytes((short / name).read_bytes())
    with pytest.raises(DataError, match=r'file-000\.mp4: no frame at 0\.600 s'):
        list(import_dataset(Dataset(long), CONTRACT, tmp_path / 'bags'))
    assert not list(tmp_path.glob('bags/*')), 'a bag that was not finished stays'
    (long / name).write_bytes((long / name.replace('top', 'side')).read_bytes())
    with pytest.raises(DataError, match='top: an image of 64 rows and 64 columns, the dataset says 64 and 96'):
        list(import_dataset(Dataset(long), CONTRACT, tmp_path / 'bags'))
    (long / name).write_bytes(b'no video')
    with pytest.raises(DataError, match='file-000.mp4'):
        list(import_dataset(Dataset(long), CONTRACT, tmp_path / 'bags'))


def test_damaged_tables_end_in_an_error_of_ours(copy: Path, tmp_path: Path) -> None:
    """Bytes of every parquet file are changed or cut; what can be read is, nothing else is raised."""
    random = np.random.default_rng(0)
    for path in sorted(copy.rglob('*.parquet')):
        whole = path.read_bytes()
        for trial in range(6):
            spoilt = bytearray(whole[:random.integers(1, len(whole))] if trial % 2 else whole)
            spoilt[random.integers(len(spoilt))] ^= 1 << random.integers(8)
            path.write_bytes(spoilt)
            try:
                list(import_dataset(Dataset(copy), CONTRACT, tmp_path / f'{path.parent.name}{path.stem}{trial}'))
            except FlowVLAError:
                pass
        path.write_bytes(whole)


def test_the_folder_for_bags_must_be_empty(exported: Path, tmp_path: Path) -> None:
    (tmp_path / 'something').touch()
    with pytest.raises(ConfigError, match='not empty'):
        next(import_dataset(Dataset(exported), CONTRACT, tmp_path))
    with pytest.raises(ConfigError, match="no part 'tpo' in the contract small; did you mean 'top'"):
        next(import_dataset(Dataset(exported), CONTRACT, tmp_path / 'bags', {'tpo': 'x'}))
