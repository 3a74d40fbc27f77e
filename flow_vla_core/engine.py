"""The inference path: one observation in, one chunk out."""

from __future__ import annotations

import numpy as np
import torch

from flow_vla_core.errors import ActionNotFinite
from flow_vla_core.policy import FlowVLA
from flow_vla_core.types import Batch, Observation

__all__ = ['Engine']


class Engine:
    """Runs a policy on single observations, with its own source of noise.

    Args:
        policy: trained, in evaluation mode.
        device: ``auto`` takes CUDA where there is one.
        steps: solver steps; None takes the policy's own.
        seed: of the noise.
        allow_empty: answer an empty instruction instead of refusing it.
    """

    def __init__(self, policy: FlowVLA, *, device: str = 'auto', steps: int | None = None, seed: int = 0,
                 allow_empty: bool = False) -> None:
        if device == 'auto':
            device = 'cuda' if torch.cuda.is_available() else 'cpu'
        self.device = torch.device(device)
        self.policy = policy.to(self.device).eval()
        self.steps, self.allow_empty = steps, allow_empty
        self._generator = torch.Generator()
        self.seed(seed)

    def seed(self, seed: int) -> None:
        """Make the noise that follows repeatable."""
        self._generator.manual_seed(seed)

    @torch.inference_mode()
    def act(self, observation: Observation) -> np.ndarray:
        """Make a chunk (H, A) float32 in the contract's units.

        Raises:
            InstructionMissing: if the instruction is empty and that is not allowed.
            InstructionUnknown: for words that the policy was not trained on.
            ActionNotFinite: if the policy produced NaN or infinity.
        """
        batch = self._batch(observation).to(self.device)
        actions = self.policy.sample(batch, steps=self.steps, generator=self._generator)[0].float().cpu().numpy()
        if not np.isfinite(actions).all():
            raise ActionNotFinite('the policy produced an action that is not finite')
        return actions

    def warm_up(self, rounds: int = 3) -> None:
        """Run on random input, so that the first observation does not pay for what happens only once."""
        generator = torch.Generator().manual_seed(0)
        with torch.inference_mode():
            for _ in range(rounds):
                batch, noise = self.policy.fake_batch(1, generator)
                self.policy.sample(batch.to(self.device), noise=noise.to(self.device), steps=self.steps)

    def _batch(self, observation: Observation) -> Batch:
        words = self.policy.vocabulary.batch([observation.instruction], allow_empty=self.allow_empty)
        images = {name: torch.from_numpy(np.ascontiguousarray(image.transpose(0, 3, 1, 2)))[None]
                  for name, image in observation.images.items()}
        return Batch(images, torch.from_numpy(observation.state)[None], words)
