"""The command `flow-vla compare`: families side by side."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from rich.console import Console
import torch
import typer

from flow_vla_core.config import from_values, load_yaml
from flow_vla_core.contract import RobotContract, find_contract
from flow_vla_core.errors import ConfigError, closest
from flow_vla_core.evaluation.compare import Comparison, choose_entries, default_entries
from flow_vla_core.evaluation.comparison_report import ComparisonReport
from flow_vla_core.evaluation.encoded import encode_bags
from flow_vla_core.evaluation.policy_trial import PolicyTrial, Simulation
from flow_vla_core.evaluation.trials import BimodalTrial, Trial
from flow_vla_core.generators import FAMILIES, GeneratorConfig
from flow_vla_core.networks import NetworkConfig
from flow_vla_core.simulation.metaworld import TASKS
from flow_vla_core.training.checkpoint import load_checkpoint
from flow_vla_core.training.config import LoopConfig

__all__ = ['compare', 'read_entries']

BIMODAL = 'bimodal'


def compare(
    out: Annotated[Path, typer.Option(help='Folder of the results; what is there already is not done again.')],
    generators: Annotated[str, typer.Option(help='all, or names of entries with commas between them.')] = 'all',
    data: Annotated[str, typer.Option(help='bimodal: a task with two right answers; or a folder of bags.')] = BIMODAL,
    settings: Annotated[Path | None, typer.Option(
        help='YAML file: name of an entry -> its family and settings; by default every family as it is.')] = None,
    steps: Annotated[int, typer.Option(min=1, help='Optimiser steps of each family.')] = 8000,
    batch_size: Annotated[int, typer.Option(min=1, help='Chunks in each step.')] = 256,
    learning_rate: Annotated[float, typer.Option(help='Highest; it falls along a cosine.')] = 1e-3,
    seed: Annotated[int, typer.Option(min=0, help='Of weights, order, noise and test.')] = 0,
    network: Annotated[str | None, typer.Option(
        help="unet, transformer or mlp; by default mlp for bimodal, the policy's for bags.")] = None,
    width: Annotated[int | None, typer.Option(min=1, help='Of the network.')] = None,
    depth: Annotated[int | None, typer.Option(min=1, help='Of the network.')] = None,
    efforts: Annotated[str, typer.Option(help="Steps of a sample that are measured beside each family's own.")]
    = '1,2,4,8',
    policy: Annotated[Path | None, typer.Option(
        help='Bags: checkpoint whose encoders all families share; they stay as they are.')] = None,
    contract: Annotated[str, typer.Option(help='Bags: robot contract, a file or a name in config/robots.')]
    = 'metaworld',
    bags: Annotated[int | None, typer.Option(min=1, help='Bags: as many of each instruction at most.')] = None,
    tasks: Annotated[str, typer.Option(help='Bags: tasks to simulate, with commas between them.')] = ','.join(TASKS),
    episodes: Annotated[int, typer.Option(min=0, help='Bags: simulated for each task; 0 simulates none.')] = 5,
    workers: Annotated[int, typer.Option(min=1, help='Processes, each with one family and one thread.')] = 1,
) -> None:
    """Train families on the same examples with the same network and steps, and measure what each is good at."""
    torch.set_num_threads(1)
    console, numbers = Console(), _numbers(efforts)
    entries = choose_entries(generators, read_entries(settings))
    loop = LoopConfig(steps=steps, batch_size=batch_size, learning_rate=learning_rate, seed=seed,
                      log_every=max(1, steps // 200))
    asked = {'kind': network, 'width': width, 'depth': depth}
    if data == BIMODAL:
        trial: Trial = BimodalTrial(network=_changed(NetworkConfig('mlp', 256, 3), asked), seed=seed)
    else:
        simulation = Simulation(tuple(_words(tasks)), episodes)
        trial = _policy_trial(Path(data), policy, contract, simulation, asked, seed, console,
                              cache=out / 'encoded.safetensors', most=bags, workers=workers)
    _report(Comparison(trial, entries, loop, out, numbers).with_teacher(), workers, console)


def read_entries(path: Path | None) -> dict[str, GeneratorConfig]:
    """Read entries from a YAML file; without one, return every family as it is.

    Raises:
        ConfigError: if there is no such file, or something in it is wrong; names the key.
    """
    if path is None:
        return default_entries()
    if not path.is_file():
        raise ConfigError(f'settings: no file {path}')
    return {name: _read_entry(f'{path.name}: {name}', values) for name, values in load_yaml(path).items()}


def _report(comparison: Comparison, workers: int, console: Console) -> None:
    trial, out = comparison.trial, comparison.out
    report = ComparisonReport(comparison.run(workers, console), trial.reference, trial.identity())
    report.write(out)
    trial.draw(out, comparison.examples(), report.results)
    console.print(report.table())
    console.print(f'written: {out}', soft_wrap=True)


def _changed(network: NetworkConfig, asked: Mapping[str, Any]) -> NetworkConfig:
    return replace(network, **{key: value for key, value in asked.items() if value is not None})


def _policy_trial(folder: Path, policy: Path | None, contract: str, simulation: Simulation, asked: Mapping[str, Any],
                  seed: int, console: Console, **reading: Any) -> PolicyTrial:
    if policy is None:
        raise ConfigError('policy: none; bags need the checkpoint of a policy, whose encoders all families share')
    robot = RobotContract.load(find_contract(contract))
    network = _changed(load_checkpoint(policy, robot).config.network, asked)
    encoded = encode_bags(folder, policy, robot, seed=seed, console=console, **reading)
    return PolicyTrial(policy, encoded, simulation, network, seed)


def _read_entry(place: str, values: object) -> GeneratorConfig:
    family = values.get('family') if isinstance(values, dict) else None
    if family not in FAMILIES:
        raise ConfigError(f'{place}.family: {family!r}; {closest(str(family), FAMILIES)}')
    return from_values(FAMILIES[family], values, place)


def _numbers(text: str) -> tuple[int, ...]:
    words = _words(text)
    if not all(word.isdigit() and int(word) > 0 for word in words):
        raise ConfigError(f'efforts: {text!r}; allowed: numbers above 0 with commas between them')
    return tuple(map(int, words))


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(',') if word.strip()]
