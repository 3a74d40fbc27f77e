"""The command `flow-vla train`: bags in, checkpoint out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
import os
from pathlib import Path
import signal
from typing import Annotated, Any

from rich.console import Console
from rich.progress import track
import torch
import typer

from flow_vla_core.cli.train_plan import print_plan
from flow_vla_core.config import from_values, load_yaml
from flow_vla_core.contract import RobotContract, config_folder, find_contract
from flow_vla_core.data.cache import EpisodeCache, default_cache
from flow_vla_core.data.episode import Episode
from flow_vla_core.data.reading import ReadOptions
from flow_vla_core.data.windows import Windows
from flow_vla_core.errors import ConfigError, DataError, closest
from flow_vla_core.generators import Student
from flow_vla_core.policy import FlowVLA
from flow_vla_core.training.build import build_policy, seeded
from flow_vla_core.training.checkpoint import load_checkpoint
from flow_vla_core.training.config import TrainConfig
from flow_vla_core.training.episodes import choose_bags, hold_out, load_episodes
from flow_vla_core.training.mixture import Dataset, choose_dataset
from flow_vla_core.training.policy_objective import PolicyObjective
from flow_vla_core.training.precision import check_device, choose_device
from flow_vla_core.training.run_folder import check_folder
from flow_vla_core.training.trainer import FlowTrainer
from flow_vla_core.training.world import World

__all__ = ['load_config', 'train']

IN_PLACE = 'In place of the settings.'


def train(
    contract: Annotated[str, typer.Option(help='Robot contract: a file, or a name in config/robots.')],
    bags: Annotated[list[str], typer.Option(
        metavar='DIR[=WEIGHT]', help='Folder below which bags lie, and how often it is drawn beside the others; may be '
        'given several times.')],
    out: Annotated[Path, typer.Option(help='Folder of the run.')],
    config: Annotated[str | None, typer.Option(
        help='Settings: a file, or a name in config/train; without it the defaults.')] = None,
    teacher: Annotated[Path | None, typer.Option(
        help='Checkpoint of the policy that a family of students learns from and begins as.')] = None,
    pretrained: Annotated[Path | None, typer.Option(
        help='Checkpoint to go on learning from (fine-tuning): its weights, statistics and words.')] = None,
    resume: Annotated[bool, typer.Option(help='Go on from the last checkpoint in the folder of the run.')] = False,
    dry_run: Annotated[bool, typer.Option('--dry-run', help='Read the bags, show what would be trained, and end.')]
    = False,
    steps: Annotated[int | None, typer.Option(help=IN_PLACE)] = None,
    batch_size: Annotated[int | None, typer.Option(help=IN_PLACE)] = None,
    accumulate: Annotated[int | None, typer.Option(
        help=f'{IN_PLACE} Parts that a batch is cut into; at least one for each process.')] = None,
    patience: Annotated[int | None, typer.Option(help=f'{IN_PLACE} Validations without a better one; 0: no end.')]
    = None,
    half: Annotated[bool | None, typer.Option('--half/--no-half', help=f'{IN_PLACE} bfloat16.')] = None,
    compile: Annotated[bool | None, typer.Option('--compile/--no-compile', help=f'{IN_PLACE} torch.compile.')] = None,
    seed: Annotated[int | None, typer.Option(help=IN_PLACE)] = None,
    outcome: Annotated[list[str] | None, typer.Option(
        help='Train on episodes with this outcome, by default success; may be repeated.')] = None,
    skip_unusable: Annotated[bool, typer.Option(help='Leave out bags that cannot be read, and say why.')] = False,
    threads: Annotated[int, typer.Option(min=0, help='Threads of torch; 0 shares all cores among the processes.')] = 0,
    workers: Annotated[int, typer.Option(min=0, help='Processes that read bags; 0 takes all cores.')] = 0,
    device: Annotated[str, typer.Option(help='auto, cpu or cuda.')] = 'auto',
    cache: Annotated[str | None, typer.Option(
        help="Folder in which decoded bags are kept, by default the user's own cache; '' keeps none.")] = None,
    cut: Annotated[str, typer.Option(
        help='Where episodes begin in a bag: marks, instruction, whole, or a topic that marks it.')] = 'marks',
    instruction: Annotated[str, typer.Option(help='The words for bags in which there are none.')] = '',
    actions: Annotated[str, typer.Option(help='commands, or state: what was done --lead steps later.')] = 'commands',
    lead: Annotated[int, typer.Option(min=1, help='Steps of the policy, with --actions state.')] = 1,
    cache_limit: Annotated[float, typer.Option(min=0, help='Bytes that the cache may take, in GB; 0 for any.')] = 0,
) -> None:
    """Train a policy from recorded bags; stop it at any time and go on with --resume. Under torchrun several processes
    train together."""
    settings = load_config(config, steps=steps, batch_size=batch_size, accumulate=accumulate, patience=patience,
                           half=half, compile=compile, seed=seed)
    kind = choose_device(device)
    check_device(settings, kind)
    if not check_folder(out, resume or dry_run) and resume:
        raise ConfigError(f'{out} holds no run to go on with')
    robot = RobotContract.load(find_contract(contract))
    models = _read_models(teacher, pretrained, settings, robot)
    datasets = _parse_datasets(bags)
    cores = len(os.sched_getaffinity(0))
    torch.set_num_threads(threads or max(1, cores // int(os.environ.get('LOCAL_WORLD_SIZE', 1))))
    with World.joined(kind) as world:
        console = Console(quiet=not world.leads)
        world.check_shards(settings.accumulate)
        with world.first_alone():
            episodes = _read(datasets, robot, outcome or ['success'], workers or cores, skip_unusable, console,
                             _cache(cache, cache_limit), ReadOptions(cut, instruction, actions, lead))
        objective = _objective(settings, robot, models, datasets, episodes)
        world.check_alike(objective.identity())
        if dry_run:
            print_plan(console, objective, settings, world.size)
            return
        trainer = FlowTrainer(objective, settings, out, world.device, console, world)
        if resume:
            trainer.resume()
        with _stop_on_signals(trainer):
            trainer.run()
        console.print(f'step {trainer.step} of {settings.steps}: {out / "checkpoint"}', soft_wrap=True)


def load_config(name: str | None, **changes: Any) -> TrainConfig:
    """Read settings from a file or from ``config/train``; changes that are not None come on top.

    Raises:
        ConfigError: if there are none of that name, or something in them is wrong; names the key.
    """
    config = TrainConfig()
    if name is not None:
        folder = config_folder() / 'train'
        path = Path(name) if Path(name).suffix in ('.yaml', '.yml') else folder / f'{name}.yaml'
        if not path.is_file():
            raise ConfigError(f'no settings {name!r}; {closest(name, [p.stem for p in folder.glob("*.yaml")])}')
        config = from_values(TrainConfig, load_yaml(path), path.name)
    return replace(config, **{key: value for key, value in changes.items() if value is not None})


def _read_models(teacher: Path | None, pretrained: Path | None, config: TrainConfig,
                 contract: RobotContract) -> tuple[FlowVLA | None, FlowVLA | None]:
    """Read the teacher and the policy that the training begins as; there can't be both."""
    if teacher is not None and pretrained is not None:
        raise ConfigError('--teacher and --pretrained: both are given; allowed: one of them')
    return (_read_teacher(teacher, config, contract),
            None if pretrained is None else load_checkpoint(pretrained, contract))


def _read_teacher(folder: Path | None, config: TrainConfig, contract: RobotContract) -> FlowVLA | None:
    """Read the teacher where the family wants one; a family and a teacher that do not go together are an error."""
    with seeded(config.seed):
        generator = config.policy.build_generator(contract.action_dim)
    family = config.policy.generator.family
    is_student = any(isinstance(part, Student) for part in generator.modules())
    if is_student and folder is None:
        raise ConfigError(f'generator.family: {family!r} learns from a trained policy; name its checkpoint with '
                          '--teacher')
    if not is_student and folder is not None:
        raise ConfigError(f'--teacher {folder}: generator.family {family!r} learns from no teacher')
    return None if folder is None else load_checkpoint(folder, contract)


def _parse_datasets(texts: Sequence[str | Path]) -> list[Dataset]:
    """Read ``DIR[=WEIGHT]``; a bag that lies in two datasets would count twice."""
    datasets = [Dataset.parse(str(text)) for text in texts]
    places = [dataset.folder.resolve() for dataset in datasets]
    for number, place in enumerate(places):
        if within := [other for other in places[:number] + places[number + 1:] if place.is_relative_to(other)]:
            raise ConfigError(f'--bags {datasets[number].folder}: lies in {within[0]}, which is given too; its bags '
                              'would count twice')
    return datasets


def _read(datasets: Sequence[Dataset], contract: RobotContract, outcomes: Sequence[str], workers: int, skip: bool,
          console: Console, cache: EpisodeCache | None, options: ReadOptions) -> list[Episode]:
    chosen, others = choose_bags([dataset.folder for dataset in datasets], outcomes)
    console.print(f'{len(chosen)} bags with the outcome {" or ".join(outcomes)}, {len(others)} others left out')

    def tell(error: DataError) -> None:
        console.print(f'left out: {error}', soft_wrap=True, markup=False)

    read = load_episodes(chosen, contract, workers, tell if skip else None, options, cache)
    shown = track(read, 'reading', len(chosen), console=console, disable=not console.is_terminal)
    episodes = [episode for episode in shown if episode.outcome in outcomes]
    if not episodes:
        raise DataError(f'{len(chosen)} bags hold no episode with the outcome {" or ".join(outcomes)}')
    console.print(f'{len(episodes)} episodes, {sum(map(len, episodes))} frames')
    return episodes


def _objective(config: TrainConfig, contract: RobotContract, models: tuple[FlowVLA | None, FlowVLA | None],
               datasets: Sequence[Dataset], episodes: Sequence[Episode]) -> PolicyObjective:
    """Hold out episodes of each dataset, and build the policy on the others; models: teacher, pretrained policy."""
    learn, held = [], []
    for number in range(len(datasets)):
        some = [episode for episode in episodes if choose_dataset(episode.source, datasets) == number]
        for found, part in zip((learn, held), hold_out(some, config.holdout, config.seed)):
            found += part
    shape = (config.policy.horizon, contract.history)
    return PolicyObjective(build_policy(config, contract, learn, *models), Windows(learn, *shape),
                           Windows(held, *shape) if held else None, config, datasets)


def _cache(folder: str | None, limit: float) -> EpisodeCache | None:
    if folder == '':
        return None
    return EpisodeCache(default_cache() if folder is None else Path(folder), round(limit * 1e9) or None)


@contextmanager
def _stop_on_signals(trainer: FlowTrainer) -> Iterator[None]:
    """Let SIGINT and SIGTERM end the training after the step that it is at, with everything saved."""
    names = (signal.SIGINT, signal.SIGTERM)
    before = {name: signal.signal(name, lambda *_: trainer.stop()) for name in names}
    try:
        yield
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)
