"""What stands where in a LeRobotDataset v3.0, and how a contract's streams are called in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
import json
from pathlib import Path, PurePath
import re
from typing import Any

import numpy as np

from flow_vla_core.contract import Camera, RobotContract
from flow_vla_core.errors import ContractError, DataError

__all__ = ['ACTION', 'CONTRACT_FILE', 'EPISODE_FIELDS', 'IMAGES', 'INDEX_FEATURES', 'Info', 'Place', 'STATE', 'VERSION',
           'action_names', 'camera_key', 'make_features', 'make_info', 'state_names']

VERSION = 'v3.0'
IMAGES, STATE, ACTION = 'observation.images.', 'observation.state', 'action'
INFO_FILE, TASKS_FILE, STATS_FILE = 'meta/info.json', 'meta/tasks.parquet', 'meta/stats.json'
CONTRACT_FILE = 'meta/contract.yaml'  # ours: lerobot does not look at it
EPISODE_FIELDS = ('task', 'outcome', 'source', 'complete')  # of an Episode; as columns flow_vla/... in meta/episodes
CHUNK = 'chunk-{chunk_index:03d}/file-{file_index:03d}'
EPISODES_PATH = f'meta/episodes/{CHUNK}.parquet'
DATA_PATH = f'data/{CHUNK}.parquet'
FIELD = re.compile(r'{(?:video_key|(?:chunk_index|file_index)(?::0?\dd)?)}')  # in templates of paths
VIDEO_PATH = f'videos/{{video_key}}/{CHUNK}.mp4'


def _number(dtype: str) -> dict[str, Any]:
    return {'dtype': dtype, 'shape': (1,), 'names': None}


INDEX_FEATURES = {'timestamp': _number('float32'), 'frame_index': _number('int64'), 'episode_index': _number('int64'),
                  'index': _number('int64'), 'task_index': _number('int64')}
OWN_FEATURES = {'next.done': _number('bool'), 'next.success': _number('bool'), 'stamp': _number('int64'),
                'actor': _number('int64')}


@dataclass(frozen=True)
class Place:
    """Names a file by its chunk and its number therein.

    Example:
        >>> Place(0, 999).next(1000)
        Place(chunk_index=1, file_index=0)
        >>> Place(0, 3).in_path(DATA_PATH)
        'data/chunk-000/file-003.parquet'
    """

    chunk_index: int = 0
    file_index: int = 0

    def next(self, chunk_size: int) -> Place:
        """Return the file that follows, of which a chunk holds ``chunk_size``."""
        number = self.chunk_index * chunk_size + self.file_index + 1
        return Place(number // chunk_size, number % chunk_size)

    def in_path(self, template: str, **names: str) -> str:
        """Fill in a template such as `DATA_PATH`."""
        return template.format(chunk_index=self.chunk_index, file_index=self.file_index, **names)


@dataclass(frozen=True)
class Info:
    """Holds ``meta/info.json``.

    Args:
        fps: frames per second.
        features: name -> dtype, shape and names.
        robot_type: name of the robot.
        total_episodes: number of episodes.
        total_frames: of all of them.
        total_tasks: number of different instructions.
        chunks_size: files in a folder.
        data_files_size_in_mb: size at which a parquet file ends.
        video_files_size_in_mb: size at which a video file ends.
        data_path: template of the parquet files.
        video_path: template of the videos; None without any.
        codebase_version: of the format.
    """

    fps: float
    features: Mapping[str, Mapping[str, Any]]
    robot_type: str | None = None
    total_episodes: int = 0
    total_frames: int = 0
    total_tasks: int = 0
    chunks_size: int = 1000
    data_files_size_in_mb: int = 100
    video_files_size_in_mb: int = 200
    data_path: str = DATA_PATH
    video_path: str | None = VIDEO_PATH
    codebase_version: str = VERSION
    splits: Mapping[str, str] = field(default_factory=dict)

    @property
    def videos(self) -> list[str]:
        """Features that are videos."""
        return [key for key, feature in self.features.items() if feature['dtype'] == 'video']

    @property
    def cameras(self) -> list[str]:
        """Features that are videos or images."""
        return [key for key, feature in self.features.items() if feature['dtype'] in ('video', 'image')]

    @classmethod
    def load(cls, dataset: Path) -> Info:
        """Read it from a dataset's folder.

        Raises:
            DataError: if it is missing, damaged or of another version of the format.
        """
        path = Path(dataset) / INFO_FILE
        try:
            values = json.loads(path.read_text())
            version = str(values['codebase_version'])
        except OSError as error:
            raise DataError(f'{dataset}: not a LeRobotDataset: {INFO_FILE}: {error.strerror}') from error
        except (ValueError, TypeError, KeyError) as error:
            raise DataError(f'{path}: not that of a LeRobotDataset: {error}') from error
        if version.split('.')[0] != 'v3':
            raise DataError(f'{path}: codebase_version {version!r}, this reads v3.x; lerobot converts older ones: '
                            'python -m lerobot.datasets.v30.convert_dataset_v21_to_v30')
        known = {key: value for key, value in values.items() if key in cls.__dataclass_fields__}
        try:
            info = cls(**known)
            features = {key: {'names': None, **value, 'shape': tuple(value['shape']), 'dtype': str(value['dtype'])}
                        for key, value in info.features.items()}
            if not float(info.fps) > 0:
                raise ValueError(f'fps is {info.fps}')
            _check_paths(replace(info, features=features))
        except (TypeError, KeyError, ValueError, AttributeError) as error:
            raise DataError(f'{path}: {error}') from error
        return replace(info, features=features)

    def save(self, dataset: Path) -> None:
        """Write it into a dataset's folder."""
        path = Path(dataset) / INFO_FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({'codebase_version': self.codebase_version, **vars(self)}, indent=4,
                                   ensure_ascii=False))


def _check_paths(info: Info) -> None:
    """Raise `ValueError` unless templates of paths have our fields only and stay within the dataset."""
    for name, template, keys in (('data_path', info.data_path, ['']),
                                 ('video_path', info.video_path or '', info.videos or [''])):
        if set('{}') & set(FIELD.sub('', template)):
            raise ValueError(f'{name}: {template!r}: fields are {{chunk_index:03d}}, {{file_index:03d}}, {{video_key}}')
        for key in keys:
            path = PurePath(Place().in_path(template, video_key=key))
            if path.is_absolute() or '..' in path.parts:
                raise ValueError(f'{name}: {str(path)!r} leads out of the dataset')


def camera_key(camera: Camera) -> str:
    """Return the feature of a camera."""
    return IMAGES + camera.name


def state_names(contract: RobotContract) -> list[str]:
    """Name the numbers of the state vector, each as stream.name."""
    return [f'{stream.name}.{name}' for stream in contract.state for name in stream.names]


def action_names(contract: RobotContract) -> list[str]:
    """Name the numbers of the action vector, each as part.name."""
    return [f'{part.name}.{name}' for part in contract.actions for name in part.names]


def make_features(contract: RobotContract, as_video: bool) -> dict[str, dict[str, Any]]:
    """Describe the features that episodes of a contract have, images at each camera's ``size``.

    A camera with one channel is written with three equal ones, which is what lerobot's statistics can hold.
    """
    features: dict[str, dict[str, Any]] = {
        camera_key(camera): {'dtype': 'video' if as_video else 'image', 'shape': (*camera.size, 3),
                             'names': ['height', 'width', 'channels']} for camera in contract.cameras}
    if contract.state_dim:
        features[STATE] = _vector(state_names(contract))
    return {**features, ACTION: _vector(action_names(contract)), **OWN_FEATURES, **INDEX_FEATURES}


def make_info(contract: RobotContract, as_video: bool) -> Info:
    """Describe an empty dataset. Raise `ContractError` if the policy's rate is no whole number of frames a second."""
    rate = 1 / contract.rates.policy_dt
    if abs(rate - round(rate)) > 1e-6 * rate:
        raise ContractError(f'{contract.name}: rates.policy_dt: {contract.rates.policy_dt} s are {rate:.6g} frames a '
                            'second; LeRobotDataset wants a whole number of them')
    return Info(round(rate), make_features(contract, as_video), contract.name,
                video_path=VIDEO_PATH if as_video and contract.cameras else None)


def _vector(names: list[str]) -> dict[str, Any]:
    return {'dtype': 'float32', 'shape': (len(names),), 'names': names}


def as_json(value: Any) -> Any:
    """Turn arrays and numpy's numbers, at any depth, into what JSON holds."""
    if isinstance(value, Mapping):
        return {key: as_json(item) for key, item in value.items()}
    return value.tolist() if isinstance(value, (np.ndarray, np.generic)) else value
