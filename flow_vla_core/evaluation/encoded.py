"""Recorded episodes after a policy's encoders."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
import json
from pathlib import Path
from typing import Any

from rich.console import Console
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
import torch
from torch import Tensor

from flow_vla_core.contract import RobotContract
from flow_vla_core.data.bags import read_metadata
from flow_vla_core.data.cache import default_cache
from flow_vla_core.data.episode import Episode
from flow_vla_core.data.fingerprint import Fingerprints
from flow_vla_core.data.windows import Windows
from flow_vla_core.policy import FlowVLA
from flow_vla_core.training.checkpoint import load_checkpoint
from flow_vla_core.training.episodes import choose_bags, hold_out, load_episodes
from flow_vla_core.training.feeder import Feeder
from flow_vla_core.training.objective import digest
from flow_vla_core.types import Condition

__all__ = ['Encoded', 'encode_bags', 'encode_episodes']

HOLDOUT = 0.1  # share of each instruction's episodes
BATCH = 64


@dataclass(frozen=True)
class Encoded:
    """Holds windows of episodes after a policy's encoders.

    Args:
        conditions: of N windows.
        actions: (N, H, A), normalised.
        mask: (N, H) bool, false past the end of an episode.
        held: (N,) bool, true for windows of episodes that are kept for testing.

    Example:
        >>> encoded = Encoded(Condition(torch.zeros(3, 2)), torch.zeros(3, 4, 2), torch.ones(3, 4).bool(),
        ...                   torch.tensor([False, False, True]))
        >>> len(encoded[~encoded.held].actions)
        2
    """

    conditions: Condition
    actions: Tensor
    mask: Tensor
    held: Tensor

    def __getitem__(self, index: Tensor) -> Encoded:
        """Choose windows."""
        return Encoded(self.conditions[index], self.actions[index], self.mask[index], self.held[index])

    @property
    def digest(self) -> str:
        """A short text that differs for different windows."""
        return digest(self.conditions.vector, self.conditions.tokens, self.actions, self.mask, self.held)

    def save(self, path: Path, key: Mapping[str, Any]) -> None:
        """Write a safetensors file under a key; a crash leaves the older one whole."""
        path.parent.mkdir(parents=True, exist_ok=True)
        tensors = {'vector': self.conditions.vector, 'actions': self.actions, 'mask': self.mask, 'held': self.held}
        if self.conditions.tokens is not None:
            tensors['tokens'] = self.conditions.tokens
        fresh = path.with_name(f'.{path.name}')
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, fresh, {'key': json.dumps(key)})
        fresh.replace(path)

    @classmethod
    def load(cls, path: Path, key: Mapping[str, Any]) -> Encoded | None:
        """Read what `save` wrote under the same key; None if there is nothing like that, or it is damaged."""
        if not path.is_file():
            return None
        try:
            with safe_open(path, 'pt') as file:
                if json.loads(file.metadata()['key']) != json.loads(json.dumps(key)):
                    return None
                found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no mapping)
        except (SafetensorError, TypeError, KeyError):
            return None
        return cls(Condition(found['vector'], found.get('tokens')), found['actions'], found['mask'], found['held'])


@torch.no_grad()
def encode_episodes(policy: FlowVLA, learn: Sequence[Episode], held: Sequence[Episode],
                    tell: Callable[[int, int], None] | None = None) -> Encoded:
    """Encode every window of some episodes.

    Args:
        policy: has the encoders; is put into evaluation mode.
        learn: episodes to learn from.
        held: episodes to test on.
        tell: hears how many windows are done, of how many.
    """
    policy.eval()
    windows = Windows([*learn, *held], policy.config.horizon, policy.contract.history)
    feeder, parts = Feeder(windows, policy.vocabulary), []
    for indices in torch.arange(len(windows)).split(BATCH):
        batch, actions, mask = feeder.batch(indices)
        parts.append((policy.encode(batch), policy.normalise_actions(actions), mask))
        if tell is not None:
            tell(int(indices[-1]) + 1, len(windows))
    conditions, actions, masks = zip(*parts)
    tokens = None if conditions[0].tokens is None else torch.cat([condition.tokens for condition in conditions])
    return Encoded(Condition(torch.cat([condition.vector for condition in conditions]), tokens), torch.cat(actions),
                   torch.cat(masks), torch.from_numpy(windows.episode_of) >= len(learn))


@dataclass(frozen=True)
class _Progress:
    """Prints every tenth of a long work."""

    console: Console
    said: set[int] = field(default_factory=set)

    def __call__(self, done: int, total: int) -> None:
        tenth = 10 * done // total
        if tenth not in self.said:
            self.said.add(tenth)
            self.console.print(f'encoded {done} of {total} windows')


def encode_bags(folder: Path, checkpoint: Path, contract: RobotContract, cache: Path, *, most: int | None = None,
                seed: int = 0, workers: int = 1, console: Console | None = None) -> Encoded:
    """Read the successful bags below a folder and encode them, or read what an earlier call left in ``cache``.

    What is left there counts only for bags with the same bytes, and for the same contract, policy and choice.

    Args:
        folder: of bags.
        checkpoint: of the policy that encodes.
        contract: of the robot.
        cache: file for what was encoded.
        most: bags of each instruction, at most.
        seed: of the choice of episodes that are held out.
        workers: processes that read bags.
        console: is told how it goes; bags that cannot be read are named there and left out.
    """
    console = console or Console(quiet=True)
    bags = _first_of_each(choose_bags([folder])[0], most)
    policy = load_checkpoint(checkpoint, contract)
    hashes = Fingerprints(default_cache() / 'hashes')
    key = {'bags': [hashes.of(bag) for bag in bags], 'seed': seed, 'contract': contract.label,
           'policy': digest(*policy.state_dict().values())}
    found = Encoded.load(cache, key)
    if found is None:
        console.print(f'reading {len(bags)} bags')
        episodes = list(load_episodes(bags, contract, workers,
                                      lambda error: console.print(f'left out: {error}', markup=False)))
        found = encode_episodes(policy, *hold_out(episodes, HOLDOUT, seed), _Progress(console))
        found.save(cache, key)
    return found


def _first_of_each(bags: Sequence[Path], most: int | None) -> list[Path]:
    chosen: dict[str, list[Path]] = defaultdict(list)
    for bag in bags:
        chosen[str(read_metadata(bag).get('instruction', ''))].append(bag)
    return [bag for group in chosen.values() for bag in group[:most]]
