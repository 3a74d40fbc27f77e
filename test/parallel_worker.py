"""Is started by torchrun in test_parallel.py: trains in every way that must agree over processes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
import json
from pathlib import Path
import sys

from core_samples import make_episodes, make_policy, small_contract
import torch
from torch import Tensor, nn

from flow_vla_core.data.windows import Windows
from flow_vla_core.errors import InputError, TrainingError
from flow_vla_core.flows import FLOWS
from flow_vla_core.policy import PolicyConfig
from flow_vla_core.training.config import LoopConfig, TrainConfig
from flow_vla_core.training.objective import Objective
from flow_vla_core.training.policy_objective import PolicyObjective
from flow_vla_core.training.tensor_objectives import DensityObjective
from flow_vla_core.training.trainer import FlowTrainer
from flow_vla_core.training.world import World

POLICY = TrainConfig(policy=PolicyConfig.dummy(), steps=6, batch_size=8, accumulate=2, schedule='constant', warm_up=2,
                     shift=1, state_noise=0.1, validate_every=3, log_every=2, validation_batches=1)
LOOP = LoopConfig(steps=4, batch_size=12, accumulate=4, warm_up=1, log_every=1)


def policy_trainer(out: Path | None, world: World | None = None, config: TrainConfig = POLICY,
                   seed: int = 0) -> FlowTrainer:
    """Return the training of a tiny policy."""
    contract = small_contract(size=(12, 12))
    episodes = make_episodes(contract)
    objective = PolicyObjective(make_policy(contract, config.policy, seed), Windows(episodes[:2], 4),
                                Windows(episodes[2:], 4), config)
    objective.picture = lambda *_: None
    return FlowTrainer(objective, config, out, world=world)


def glow_trainer(out: Path | None, world: World | None = None) -> FlowTrainer:
    """Return the training of a flow that takes its first weights from the first examples that it sees."""
    torch.manual_seed(0 if world is None else world.rank)  # the first process's weights are everybody's
    flow = FLOWS['glow'](4, 0)
    samples = torch.randn(40, 4, generator=torch.Generator().manual_seed(1)) * 3 + 2
    return FlowTrainer(DensityObjective(flow, samples), LOOP, out, world=world)


class Uneven(Objective):
    """Has a parameter without a gradient in all processes but one, and may fail in one."""

    def __init__(self, rank: int, factor: Callable[[], float] = lambda: 1.0) -> None:
        super().__init__(nn.ParameterDict({name: torch.ones(2) for name in ('all', 'one', 'none')}))
        self.rank, self.factor = rank, factor

    def __len__(self) -> int:
        return 8

    def loss(self, module: nn.Module, examples: Tensor, generator: torch.Generator) -> Tensor:
        """Depend on the process."""
        loss = self.factor() * module['all'].sum()
        return loss + module['one'].sum() if self.rank == 1 else loss

    def identity(self) -> dict:
        """Return nothing."""
        return {}


def failure(trainer: FlowTrainer) -> str:
    """Return what stops a training."""
    try:
        trainer.run()
    except TrainingError as error:
        return str(error)
    return f'none up to step {trainer.step}'


def refusal(world: World) -> Callable[[], float]:
    """Return what a model does in the second process that is given what it can't take."""
    def factor() -> float:
        if world.rank == 1:
            raise InputError('no such time')
        return 1.0
    return factor


def difference(world: World, values: dict) -> str:
    """Return what is said about values that differ."""
    try:
        world.check_alike(values)
    except TrainingError as error:
        return str(error)
    return ''


def stopped_by_another(world: World) -> int:
    """Let the last process ask for an end while it computes its third step; return where this one ends."""
    objective = Uneven(world.rank)
    trainer = FlowTrainer(objective, replace(LOOP, steps=1000), world=world)

    def factor() -> float:
        if world.rank == world.size - 1 and trainer.step == 2:
            trainer.stop()
        return 1.0

    objective.factor = factor
    trainer.run()
    return trainer.step


def main(folder: Path) -> None:
    """Leave what is compared in a folder."""
    torch.set_num_threads(1)
    with World.joined() as world:
        policy_trainer(folder / 'two', world, seed=world.rank).run()
        policy_trainer(folder / 'four', world, replace(POLICY, accumulate=4)).run()
        resumed = policy_trainer(folder / 'one_then_two', world, seed=7)
        resumed.resume()
        resumed.run()
        glow_trainer(folder / 'glow', world).run()
        uneven = FlowTrainer(Uneven(world.rank), LOOP, world=world)
        uneven.run()
        patient = policy_trainer(None, world, replace(POLICY, steps=90, learning_rate=1e-30, patience=2))
        patient.run()
        broken = Uneven(world.rank, lambda: torch.nan if world.rank else 1.0)
        found = {
            'weights': {name: weight.tolist() for name, weight in uneven.module.items()},
            'refused': failure(FlowTrainer(Uneven(world.rank, refusal(world)), LOOP, world=world)),
            'alike': difference(world, {'words': ['go', float('nan')], 'windows': 5}),
            'other': difference(world, {'words': ['go'], 'windows': 5 + world.rank}),
            'nan': failure(FlowTrainer(broken, LOOP, world=world)),
            'stopped': stopped_by_another(world), 'patient': patient.step,
            'points': [[point.step, point.values] for point in resumed.points]}
        (folder / f'found_{world.rank}.json').write_text(json.dumps(found))


if __name__ == '__main__':
    main(Path(sys.argv[1]))
