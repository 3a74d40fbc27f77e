"""Compares families as heads of a policy: recorded episodes to learn from, simulated ones to act in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
import torch
from torch import Tensor

from flow_vla_core.errors import ConfigError, DataError, closest
from flow_vla_core.evaluation.cost import make_chunks
from flow_vla_core.evaluation.distances import wasserstein2
from flow_vla_core.evaluation.encoded import Encoded
from flow_vla_core.evaluation.family_result import FamilyResult
from flow_vla_core.evaluation.flow_plots import plot_actions
from flow_vla_core.evaluation.report import wilson_interval
from flow_vla_core.evaluation.sweep import UNSEEN_SEED, Plan, evaluate_direct
from flow_vla_core.evaluation.trials import Trial
from flow_vla_core.generators import Generator, GeneratorConfig
from flow_vla_core.networks import NetworkConfig
from flow_vla_core.policy import FlowVLA
from flow_vla_core.simulation.metaworld import TASKS
from flow_vla_core.training.checkpoint import load_checkpoint, save_checkpoint
from flow_vla_core.types import Condition

__all__ = ['PolicyTrial', 'Simulation']

CHECKPOINT = 'checkpoint'


@dataclass(frozen=True)
class Simulation:
    """Orders episodes in which a trained policy has to act.

    Args:
        tasks: of Meta-World.
        episodes: of each; 0 for none.
        seed: of the first.

    Raises:
        ConfigError: for an unknown task, or episodes below 0.

    Example:
        >>> Simulation(('drawer-open',), 3).episodes
        3
    """

    tasks: tuple[str, ...] = tuple(TASKS)
    episodes: int = 5
    seed: int = UNSEEN_SEED

    def __post_init__(self) -> None:
        for task in self.tasks:
            if task not in TASKS:
                raise ConfigError(f'tasks: no task {task!r}; {closest(task, TASKS)}')
        if self.episodes < 0:
            raise ConfigError(f'episodes: {self.episodes}; allowed: 0 or more')


class PolicyTrial(Trial):
    """Compares heads of one policy whose encoders stay as they are.

    Args:
        checkpoint: folder of the policy whose encoders are used.
        encoded: windows that they have encoded.
        simulation: what each trained head has to act in.
        network: the network that each head uses; None takes the policy's.
        seed: of the test.
        tested: number of held-out windows that are tested, at most.

    Raises:
        ConfigError: for a network that wants other conditions than the policy's encoders make.
        DataError: if no whole window is held out.

    Example:
        >>> from flow_vla_core.contract import config_folder
        >>> held = torch.tensor([False, False, True])
        >>> encoded = Encoded(Condition(torch.zeros(3, 256)), torch.zeros(3, 12, 4), torch.ones(3, 12).bool(), held)
        >>> PolicyTrial(config_folder().parent / 'checkpoints' / 'metaworld', encoded).sizes.condition_dim
        256
    """

    def __init__(self, checkpoint: Path, encoded: Encoded, simulation: Simulation | None = None,
                 network: NetworkConfig | None = None, seed: int = 0, tested: int = 512) -> None:
        config = load_checkpoint(checkpoint).config
        network = network or config.network
        if (network.kind == 'transformer') != (encoded.conditions.tokens is not None):
            raise ConfigError(f'network: {network.kind!r}; the encoders of {checkpoint} serve {config.network.kind!r}, '
                              'and tokens are made for a transformer only')
        learn = encoded[~encoded.held]
        super().__init__(network, learn.actions, learn.conditions, learn.mask)
        self.checkpoint, self.simulation, self.seed = Path(checkpoint), simulation or Simulation(), seed
        self._digest = encoded.digest
        whole = torch.nonzero(encoded.held & encoded.mask.all(1))[:, 0]
        if not len(whole):
            raise DataError('no whole window is held out; record more episodes')
        self._test = encoded[whole[torch.randperm(len(whole), generator=self._random())[:tested]]]

    @property
    def reference(self) -> Mapping[str, float]:
        """The distance between chunks of the episodes that are learned from and of those held out."""
        whole = torch.nonzero(self.mask.all(1))[:, 0]
        chosen = whole[torch.randperm(len(whole), generator=self._random())[:len(self._test.actions)]]
        theirs = self._test.actions[:len(chosen)]
        return {'w2': float(wasserstein2(self.actions[chosen].flatten(1), theirs.flatten(1)))}

    def score(self, generator: Generator, steps: int | None = None) -> Mapping[str, float]:
        """Return the mean absolute error of a chunk, and the distance of all chunks to all of the expert's."""
        made = make_chunks(generator, self._test.conditions, steps, self._random())
        return {'chunk_error': (made - self._test.actions).abs().mean().item(),
                'w2': float(wasserstein2(made.flatten(1), self._test.actions.flatten(1)))}

    def act(self, folder: Path, config: GeneratorConfig, generator: Generator) -> Mapping[str, float]:
        """Make a policy with this head, let it act in simulation, and return its success with a 95 % interval."""
        base = load_checkpoint(self.checkpoint)
        settings = replace(base.config, generator=config, network=self.network, refiner=False)
        policy = FlowVLA.create(settings, base.contract, base.statistics, base.vocabulary)
        for name, part in base.named_children():
            if name != 'generator':
                getattr(policy, name).load_state_dict(part.state_dict())
        policy.generator.load_state_dict(generator.state_dict())
        save_checkpoint(folder / CHECKPOINT, policy)
        order = self.simulation
        if not order.episodes:
            return {}
        report = evaluate_direct(Plan(str(folder / CHECKPOINT), base.contract, order.tasks, order.episodes, order.seed),
                                 device='cpu', console=Console(quiet=True))
        report.write(folder / 'simulation')
        count, successes = len(report.episodes), sum(episode.success for episode in report.episodes)
        low, high = wilson_interval(successes, count)
        return {'success': successes / count, 'low': low, 'high': high}

    def identity(self) -> Mapping[str, Any]:
        """Name the examples, the network and the simulated episodes."""
        return {'data': 'bags', 'digest': self._digest, 'examples': len(self.actions),
                'tested': len(self._test.actions), 'network': asdict(self.network),
                'simulation': {**asdict(self.simulation), 'tasks': list(self.simulation.tasks)}, 'seed': self.seed}

    def examples(self, count: int) -> tuple[Tensor, Condition]:
        """Take held-out windows, each of them once."""
        return self._test.actions[:count], self._test.conditions[:count]

    def draw(self, folder: Path, made: Mapping[str, Tensor], results: Sequence[FamilyResult]) -> None:
        """Draw for each family how its actions are distributed beside the expert's, in a folder of its own."""
        for name, chunks in made.items():
            plot_actions(folder / name / 'actions.png', self._test.actions[:len(chunks)].numpy(), chunks.numpy(),
                         title=f'{name}, normalised actions')

    def _random(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed)
