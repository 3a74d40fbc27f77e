"""Trained generators with conditions to ask them about, for pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flow_vla_core.config import from_values
from flow_vla_core.contract import RobotContract
from flow_vla_core.data.windows import Windows
from flow_vla_core.errors import ConfigError, DataError
from flow_vla_core.evaluation.bimodal import Bimodal
from flow_vla_core.evaluation.encoded import encode_episodes
from flow_vla_core.evaluation.family_result import RESULT, WEIGHTS, FamilyResult
from flow_vla_core.evaluation.trials import BimodalTrial
from flow_vla_core.generators import FAMILIES, Generator
from flow_vla_core.networks import NetworkConfig
from flow_vla_core.training.checkpoint import load_checkpoint, load_weights
from flow_vla_core.training.episodes import choose_bags, load_episodes
from flow_vla_core.types import Condition

__all__ = ['Show', 'show_bimodal', 'show_policy']


@dataclass(frozen=True)
class Show:
    """Holds a trained generator, what it is asked, and what the expert did.

    Args:
        generator: in evaluation mode.
        condition: of N elements.
        expert: (N, H, A), normalised.
        names: of the A dimensions.
        title: says what is shown.

    Example:
        >>> from flow_vla_core.generators import RegressionConfig
        >>> sizes = BimodalTrial(count=1).sizes
        >>> generator = RegressionConfig().build(sizes, NetworkConfig('mlp', 8, 1))
        >>> expert, condition = BimodalTrial(count=1).examples(5)
        >>> len(Show(generator, condition, expert, ('x', 'y'), 'regression').condition)
        5
    """

    generator: Generator
    condition: Condition
    expert: Tensor
    names: Sequence[str]
    title: str


def show_bimodal(folder: Path, samples: int) -> Show:
    """Read a family out of the results of a comparison on the bimodal task.

    Args:
        folder: of the family.
        samples: N, all for the same observation.

    Raises:
        DataError: if it is a result of something else.
    """
    result = FamilyResult.load(folder / RESULT)
    trial: Mapping[str, Any] = result.settings['trial']
    if trial['data'] != 'bimodal':
        raise DataError(f'{folder}: compared on {trial["data"]}; show the policy in its folder checkpoint instead')
    task = Bimodal(trial['horizon'], trial['clearance'], trial['noise'])
    settings = result.settings['generator']
    config = from_values(FAMILIES[settings['family']], settings, str(folder))
    generator = config.build(task.sizes, from_values(NetworkConfig, trial['network'], str(folder)))
    load_weights(folder / WEIGHTS, generator)
    expert, condition = BimodalTrial(task, count=1).examples(samples)
    return Show(generator.eval(), condition, expert, ('x', 'y'), f'{result.name.replace("_", " ")} on the bimodal task')


def show_policy(checkpoint: Path, bags: Path, contract: RobotContract, samples: int, moment: int | None) -> Show:
    """Read a policy and moments of recorded episodes.

    Args:
        checkpoint: of the policy.
        bags: folder of the bags.
        contract: of the robot.
        samples: N.
        moment: of the first bag, which all N ask about, beside what the expert did there; None takes N moments of
            several bags.

    Raises:
        ConfigError: if there is no such moment.
    """
    policy = load_checkpoint(checkpoint, contract)
    found = choose_bags([bags])[0]
    some = found[:1] if moment is not None else found[::max(1, len(found) // 16)]
    episodes = list(load_episodes(some, contract))
    count = len(Windows(episodes, policy.config.horizon, contract.history))
    if moment is not None and moment >= count:
        raise ConfigError(f'moment: {moment}; allowed: 0 to {count - 1}')
    encoded = encode_episodes(policy, episodes, ())
    whole = torch.nonzero(encoded.mask.all(1))[:, 0]
    chosen = torch.full((samples,), moment) if moment is not None \
        else whole[torch.linspace(0, len(whole) - 1, min(samples, len(whole))).long()]
    where = episodes[0].instruction if moment is not None else f'{len(episodes)} episodes'
    return Show(policy.generator, encoded.conditions[chosen], encoded.actions[chosen], _names(contract),
                f'{policy.config.generator.family.replace("_", " ")}: {where}, normalised actions')


def _names(contract: RobotContract) -> list[str]:
    return [part.name if len(part.names) == 1 else f'{part.name} {name}'
            for part in contract.actions for name in part.names]
