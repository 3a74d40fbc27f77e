"""Windows as batches for the policy, with their words."""

from __future__ import annotations

import torch
from torch import Tensor

from flow_vla_core.data.windows import Windows
from flow_vla_core.encoders import Vocabulary
from flow_vla_core.transforms import random_shift
from flow_vla_core.types import Batch

__all__ = ['Feeder']


class Feeder:
    """Gathers windows and numbers their words.

    Args:
        windows: where from.
        vocabulary: numbers the words.
        learned: (F,) bool, whether the action of a frame counts, all episodes' frames in one row; a chunk counts up to
            the first action that does not. None counts all.

    Example:
        >>> import numpy as np
        >>> from pathlib import Path
        >>> from flow_vla_core.data.episode import Episode
        >>> images, row = {'front': np.zeros((9, 8, 8, 3), np.uint8)}, np.zeros((9, 2), np.float32)
        >>> episode = Episode(np.arange(9), images, row, row, 'open it', 'drawer', 'success', Path('bag'))
        >>> feeder = Feeder(Windows([episode], horizon=4), Vocabulary.from_instructions(['open it']))
        >>> batch, actions, mask = feeder.batch(torch.tensor([0, 7]))
        >>> actions.shape, mask.tolist()
        (torch.Size([2, 4, 2]), [[True, True, True, True], [True, True, False, False]])
    """

    def __init__(self, windows: Windows, vocabulary: Vocabulary, learned: Tensor | None = None) -> None:
        self.windows, self._learned = windows, learned
        texts = [episode.instruction for episode in windows.episodes]
        self._words = vocabulary.batch(texts)

    def batch(self, indices: Tensor) -> tuple[Batch, Tensor, Tensor]:
        """Return observations, actions (B, H, A) and mask (B, H)."""
        images, state, actions, mask, episode = self.windows.gather(indices)
        if self._learned is not None:
            mask &= self._learned[torch.from_numpy(self.windows.frames_ahead(indices))].cummin(1).values
        return Batch(images, state, self._words[episode]), actions, mask

    def augmented(self, indices: Tensor, shift: int, state_noise: Tensor,
                  generator: torch.Generator) -> tuple[Batch, Tensor, Tensor]:
        """Return the same with shifted images and noise of standard deviation (S,) on the state."""
        batch, actions, mask = self.batch(indices)
        images = {name: random_shift(image, shift, generator) for name, image in batch.images.items()}
        state = batch.state + state_noise * torch.randn(batch.state.shape, generator=generator)
        return Batch(images, state, batch.words), actions, mask
