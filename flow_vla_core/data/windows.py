"""Cuts episodes into windows: what the policy sees, and the chunk of actions that followed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from flow_vla_core.data.episode import Episode
from flow_vla_core.errors import ConfigError, DataError

__all__ = ['Window', 'Windows']


class Window(NamedTuple):
    """Holds windows of training data; a single one has no axis B.

    Args:
        images: camera name -> (B, T, C, Y, X) uint8, oldest first.
        state: (B, T, S) float32.
        actions: (B, H, A) float32, the first one in force at the newest observation.
        mask: (B, H) bool, False past the end of the episode, where the last action is repeated.
        episode_index: (B,) int64.
    """

    images: dict[str, torch.Tensor]
    state: torch.Tensor
    actions: torch.Tensor
    mask: torch.Tensor
    episode_index: torch.Tensor


class Windows:
    """Offers a window for every grid time that has ``history`` observations.

    Images stay where the episodes hold them and are copied only when they are gathered.

    Args:
        episodes: all with the same cameras, state and actions.
        horizon: number of actions H.
        history: number of observations T.

    Raises:
        ConfigError: if horizon or history is below 1.
        DataError: if the episodes hold no window, or differ in shape.
    """

    def __init__(self, episodes: Sequence[Episode], horizon: int, history: int = 1) -> None:
        if horizon < 1 or history < 1:
            raise ConfigError(f'horizon {horizon}, history {history}: both must be at least 1')
        self.episodes, self.horizon, self.history = list(episodes), horizon, history
        _check_alike(self.episodes)
        lengths = np.array([len(episode) for episode in self.episodes], np.int64)
        counts = np.maximum(lengths - (history - 1), 0)
        if not counts.sum():
            raise DataError(f'{len(lengths)} episodes hold no window of {history} observations')
        self._episode = np.repeat(np.arange(len(counts)), counts)
        self._place = np.concatenate([np.arange(history - 1, history - 1 + count) for count in counts])
        self._lengths, self._starts = lengths, np.cumsum(lengths) - lengths
        self._sources = {name: [np.asarray(episode.images[name]) for episode in self.episodes]  # not memmaps: quicker
                         for name in self.episodes[0].images}
        self._state = torch.from_numpy(np.concatenate([episode.state for episode in self.episodes]))
        self._actions = torch.from_numpy(np.concatenate([episode.actions for episode in self.episodes]))

    def __len__(self) -> int:
        return len(self._episode)

    def __getitem__(self, index: int) -> Window:
        if not -len(self) <= index < len(self):
            raise IndexError(f'window {index} of {len(self)}')
        window = self.gather([index])
        return Window({name: image[0] for name, image in window.images.items()}, *(part[0] for part in window[1:]))

    @property
    def episode_of(self) -> np.ndarray:
        """Number of the episode that each window comes from, (len,)."""
        return self._episode

    @property
    def frame_of(self) -> np.ndarray:
        """Frame of each window's newest observation and first action, all episodes' frames in one row, (len,)."""
        return self._starts[self._episode] + self._place

    def frames_ahead(self, indices: Sequence[int] | np.ndarray | torch.Tensor) -> np.ndarray:
        """Return the frames (B, H) of the windows' actions, the last one of the episode repeated."""
        indices = np.asarray(indices, np.int64)
        episodes = self._episode[indices]
        ahead = self._place[indices][:, None] + np.arange(self.horizon)
        return self._starts[episodes][:, None] + np.minimum(ahead, self._lengths[episodes][:, None] - 1)

    def gather(self, indices: Sequence[int] | np.ndarray | torch.Tensor) -> Window:
        """Return many windows at once, in the order of ``indices``."""
        indices = np.asarray(indices, np.int64)
        episodes, places = self._episode[indices], self._place[indices]
        seen = places[:, None] + np.arange(1 - self.history, 1)
        ahead = places[:, None] + np.arange(self.horizon)
        starts, lengths = self._starts[episodes][:, None], self._lengths[episodes][:, None]
        return Window({name: self._images(name, episodes, seen) for name in self.episodes[0].images},
                      self._state[torch.from_numpy(starts + seen)],
                      self._actions[torch.from_numpy(self.frames_ahead(indices))],
                      torch.from_numpy(ahead < lengths), torch.from_numpy(episodes))

    def _images(self, name: str, episodes: np.ndarray, seen: np.ndarray) -> torch.Tensor:
        """Copy (B, T) frames; the result is (B, T, C, Y, X) with the channels innermost in memory."""
        sources = self._sources[name]
        out = np.empty((*seen.shape, *sources[0].shape[1:]), np.uint8)
        for row, (episode, places) in enumerate(zip(episodes, seen)):
            out[row] = sources[episode][places[0]:places[-1] + 1]
        return torch.from_numpy(out).permute(0, 1, 4, 2, 3)


def _check_alike(episodes: Sequence[Episode]) -> None:
    if not episodes:
        raise DataError('no episodes')
    first = _shapes(episodes[0])
    for episode in episodes:
        if _shapes(episode) != first:
            raise DataError(f'{episode.source}: {_shapes(episode)}, but {episodes[0].source} has {first}')


def _shapes(episode: Episode) -> dict[str, tuple[int, ...]]:
    return {**{name: images.shape[1:] for name, images in episode.images.items()},
            'state': episode.state.shape[1:], 'actions': episode.actions.shape[1:]}
