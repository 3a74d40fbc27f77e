"""What stands in an exported dataset, read with pyarrow and av, and its statistics against numpy's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lerobot_tools import CONTRACT, VALUES, make_episode, make_episodes
import numpy as np
import pytest

from flow_vla_core.contract import RobotContract
from flow_vla_core.data.lerobot import ExportOptions, export_bags, export_episodes
from flow_vla_core.data.lerobot.statistics import QUANTILES, ImageStatistics, NumberStatistics
from flow_vla_core.errors import ConfigError, ContractError, DataError

pq = pytest.importorskip('pyarrow.parquet')
av = pytest.importorskip('av')

LENGTHS = (7, 12, 5)


@pytest.fixture(scope='module')
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset with videos; to be read only."""
    out = tmp_path_factory.mktemp('exported') / 'video'
    export_episodes(make_episodes(), CONTRACT, out, ExportOptions('fine-video'))
    return out


def read(path: Path) -> dict[str, list[Any]]:
    return pq.ParquetFile(path).read().to_pydict()


def test_info_describes_the_features(video: Path) -> None:
    info = json.loads((video / 'meta/info.json').read_text())
    counted = {'codebase_version': 'v3.0', 'robot_type': 'small', 'total_episodes': 3, 'total_frames': 24, 'fps': 10,
               'total_tasks': 2, 'splits': {'train': '0:3'}, 'chunks_size': 1000, 'data_files_size_in_mb': 100,
               'video_files_size_in_mb': 200}
    assert {key: info[key] for key in counted} == counted
    assert info['data_path'].format(chunk_index=0, file_index=12) == 'data/chunk-000/file-012.parquet'
    features = info['features']
    assert features['observation.images.top']['shape'] == [64, 96, 3]
    assert features['observation.images.top']['info'] == {
        'video.height': 64, 'video.width': 96, 'video.codec': 'h264', 'video.pix_fmt': 'yuv444p', 'video.fps': 10,
        'video.is_depth_map': False, 'video.channels': 3, 'has_audio': False}
    assert features['action'] == {'dtype': 'float32', 'shape': [5],
                                  'names': ['twist.x', 'twist.rz', 'arm.a', 'arm.b', 'grip.g']}


def test_frames_stand_one_after_another(video: Path) -> None:
    columns = read(video / 'data/chunk-000/file-000.parquet')
    assert columns['index'] == list(range(24))
    assert columns['episode_index'] == [0] * 7 + [1] * 12 + [2] * 5
    assert columns['frame_index'] == [step for length in LENGTHS for step in range(length)]
    np.testing.assert_array_equal(np.float32(columns['timestamp']), np.float32(columns['frame_index']) / np.float32(10))
    assert columns['task_index'] == [0] * 7 + [1] * 12 + [0] * 5
    assert np.flatnonzero(columns['next.done']).tolist() == [6, 18, 23]
    assert np.flatnonzero(columns['next.success']).tolist() == [6]
    made = make_episodes()
    for key, name in (('observation.state', 'state'), ('action', 'actions'), ('stamp', 'stamps'), ('actor', 'actors')):
        wanted = np.concatenate([getattr(episode, name) for episode in made])
        np.testing.assert_array_equal(np.array(columns[key], wanted.dtype), wanted)


def test_tasks_are_a_frame_that_pandas_reads(video: Path) -> None:
    table = pq.ParquetFile(video / 'meta/tasks.parquet').read()
    described = json.loads(table.schema.metadata[b'pandas'])
    assert described['index_columns'] == ['__index_level_0__']
    assert table.to_pydict() == {'task_index': [0, 1], '__index_level_0__': ['do thing 0', 'do thing 1']}


def test_every_episode_says_where_it_is(video: Path) -> None:
    rows = pq.ParquetFile(video / 'meta/episodes/chunk-000/file-000.parquet').read().to_pylist()
    assert [row['length'] for row in rows] == list(LENGTHS)
    assert [(row['dataset_from_index'], row['dataset_to_index']) for row in rows] == [(0, 7), (7, 19), (19, 24)]
    assert [row['tasks'] for row in rows] == [['do thing 0'], ['do thing 1'], ['do thing 0']]
    key = 'videos/observation.images.side'
    times = [(row[f'{key}/from_timestamp'], row[f'{key}/to_timestamp']) for row in rows]
    np.testing.assert_allclose(times, [(0, 0.7), (0.7, 1.9), (1.9, 2.4)], atol=1e-12)
    places = {(row[f'{key}/chunk_index'], row[f'{key}/file_index'], row['data/file_index']) for row in rows}
    assert places == {(0, 0, 0)}
    assert [(row['flow_vla/task'], row['flow_vla/outcome'], row['flow_vla/source']) for row in rows] == [
        ('thing#0', 'success', 'bag_0'), ('thing#1', 'failure', 'bag_1'), ('thing#2', 'unknown', 'bag_2')]


def test_videos_have_each_frame_at_its_time_and_keyframes_close_together(video: Path) -> None:
    with av.open(str(video / 'videos/observation.images.top/chunk-000/file-000.mp4')) as container:
        frames = [(frame.time, frame.key_frame) for frame in container.decode(video=0)]
    np.testing.assert_allclose([time for time, _ in frames], np.arange(24) / 10, atol=1e-6)
    assert [key for _, key in frames] == [True, False] * 12


def test_statistics_of_all_and_of_each_episode(video: Path) -> None:
    whole = json.loads((video / 'meta/stats.json').read_text())
    rows = pq.ParquetFile(video / 'meta/episodes/chunk-000/file-000.parquet').read().to_pylist()
    parts = [(make_episodes(), whole)]
    parts += [([episode], {'action': {name: row[f'stats/action/{name}'] for name in whole['action']}})
              for episode, row in zip(make_episodes(), rows)]
    for episodes, found in parts:
        values = np.concatenate([episode.actions for episode in episodes]).astype(np.float64)
        wanted = {'min': values.min(0), 'max': values.max(0), 'mean': values.mean(0), 'std': values.std(0),
                  'q10': np.quantile(values, 0.1, axis=0), 'count': [len(values)]}
        for name in wanted:
            np.testing.assert_allclose(found['action'][name], wanted[name], rtol=1e-12)
    pixels = np.concatenate([episode.images['top'] for episode in make_episodes()]) / 255
    image = whole['observation.images.top']
    np.testing.assert_allclose(np.squeeze(image['mean']), pixels.mean((0, 1, 2)), rtol=1e-9)
    np.testing.assert_allclose(np.squeeze(image['std']), pixels.std((0, 1, 2)), rtol=1e-9)
    assert (np.shape(image['q50']), image['count']) == ((3, 1, 1), [24])
    assert whole['stamp']['max'] == [int(make_episodes()[-1].stamps[-1])], 'a stamp does not survive in float64'


def test_quantiles_of_images_are_those_of_their_sorted_levels() -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, 7, 9, 3), np.uint8) // np.uint8(3)
    found = ImageStatistics.merge([ImageStatistics.of(images[:2]), ImageStatistics.of(images[2:])]).summary()
    flat = images.reshape(-1, 3)
    for name, share in QUANTILES.items():
        wanted = np.quantile(flat, share, axis=0, method='inverted_cdf') / 255
        np.testing.assert_allclose(found[name].ravel(), wanted)
    np.testing.assert_allclose(found['min'].ravel() * 255, flat.min(0))
    np.testing.assert_allclose(found['max'].ravel() * 255, flat.max(0))


def test_statistics_of_a_single_value() -> None:
    found = NumberStatistics.merge([NumberStatistics(np.array([[True]]))]).summary()
    assert {name: value.tolist() for name, value in found.items()} == {
        'min': [1], 'max': [1], 'mean': [1], 'std': [0], 'count': [1], **{name: [1] for name in QUANTILES}}


def test_a_failed_export_leaves_nothing(tmp_path: Path) -> None:
    wrong = make_episode(1, 4, state=np.zeros((4, 3), np.float32))
    with pytest.raises(DataError, match=r'bag_1: observation\.state: \(4, 3\), expected \(4, 8\)'):
        export_episodes([make_episode(0, 4), wrong], CONTRACT, tmp_path / 'out', ExportOptions('png'))
    images = make_episode(1, 4, at='size')
    with pytest.raises(DataError, match=r'bag_1: observation\.images\.top: \(4, 32, 48, 3\), expected \(4, 64, 96'):
        export_episodes([images], CONTRACT, tmp_path / 'out', ExportOptions('png'))
    with pytest.raises(DataError, match='no episodes'):
        export_episodes([], CONTRACT, tmp_path / 'out', ExportOptions('png'))
    with pytest.raises(DataError, match='nothing'):
        export_bags([tmp_path / 'nothing'], CONTRACT, tmp_path / 'out')
    assert not list(tmp_path.iterdir())


def test_bags_that_cannot_be_used_may_be_left_out(tmp_path: Path) -> None:
    told: list[DataError] = []
    with pytest.raises(DataError, match='no episodes'):
        export_bags([tmp_path / 'one', tmp_path / 'two'], CONTRACT, tmp_path / 'out', skip=told.append)
    assert [str(error).split(':')[0] for error in told] == [str(tmp_path / 'one'), str(tmp_path / 'two')]


def test_what_can_not_be_exported_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="images: 'vidoe'; did you mean 'video'"):
        ExportOptions('vidoe')
    with pytest.raises(ConfigError, match="size: 'small'"):
        ExportOptions(size='small')
    with pytest.raises(ConfigError, match='already exists'):
        export_episodes([], CONTRACT, tmp_path)
    odd = RobotContract.parse({**VALUES, 'cameras': [{**VALUES['cameras'][0], 'resolution': [65, 96]}]})
    with pytest.raises(ConfigError, match='observation.images.top: 65 rows and 96 columns: .*--images png'):
        export_episodes([make_episode(0, 2, odd)], odd, tmp_path / 'odd')
    slow = RobotContract.parse({**VALUES, 'rates': {'policy_dt': 0.3, 'control_hz': 10.0}})
    with pytest.raises(ContractError, match=r'small: rates.policy_dt: 0.3 s are 3.33333 frames a second'):
        export_episodes([make_episode(0, 2, slow)], slow, tmp_path / 'slow')
