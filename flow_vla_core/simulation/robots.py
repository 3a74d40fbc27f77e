"""What every simulated robot can do, and which ones there are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from flow_vla_core.contract import RobotContract
from flow_vla_core.errors import ConfigError, closest
from flow_vla_core.simulation import metaworld, so101
from flow_vla_core.simulation.noise import ExecutionNoise
from flow_vla_core.simulation.rendering import Scene

__all__ = ['Expert', 'RobotKind', 'SimulatedRobot', 'kind_of', 'make_expert', 'make_robot', 'max_steps_of', 'tasks_of']


class Expert(Protocol):
    """Declares a scripted expert of one task."""

    def __call__(self, privileged: np.ndarray) -> np.ndarray:
        """Return the action (A,) in the contract's units for a robot's ``privileged_state`` (n,)."""


class SimulatedRobot(Protocol):
    """Declares a robot in simulation.

    Two clocks tick: the robot takes a command each ``control_period``, and observes, plans and counts its ``steps``
    each ``rates.policy_dt``, a whole multiple of it. So ``round(policy_dt / control_period)`` calls of `step` make one
    of ``steps``; limits of episodes are in these.

    Args:
        contract: the robot's.
        task: present one.
        steps: whole policy steps since the reset.
        success: whether the task's criterion is met now.
    """

    contract: RobotContract
    task: str
    steps: int
    success: bool

    @property
    def control_period(self) -> float:
        """Time that one call of `step` takes in simulation, s."""

    @property
    def instruction(self) -> str:
        """The words that people would use for the present task."""

    @property
    def privileged_state(self) -> np.ndarray:
        """All that the scripted expert needs to know, (n,); no policy sees it."""

    @property
    def rest(self) -> np.ndarray:
        """The command (A,) that keeps the robot where it is."""

    def reset(self, task: str, seed: int) -> None:
        """Begin an episode; raise `ConfigError` for an unknown task."""

    def step(self, action: np.ndarray) -> None:
        """Execute a command (A,) in the contract's units for one control period."""

    def state(self) -> dict[str, np.ndarray]:
        """Measure every state stream of the contract: name -> (n,) float32."""

    def images(self) -> dict[str, np.ndarray]:
        """Render every camera of the contract: name -> (Y, X, C) uint8."""

    def snapshot(self) -> Scene:
        """Copy what cameras see now, to be rendered while the robot moves on."""

    def render(self, scene: Scene) -> dict[str, np.ndarray]:
        """Render a snapshot as `images` does; all rendering of a robot belongs into one thread."""

    def field_of_view(self, camera: str) -> float:
        """Vertical field of view of a camera of the contract, degrees."""

    def expert_action(self) -> np.ndarray:
        """Ask the task's scripted expert: (A,) in the contract's units."""

    def close(self) -> None:
        """Free the renderer."""


@dataclass(frozen=True)
class RobotKind:
    """Describes a simulated robot.

    Args:
        make: builds it from its contract and the disturbance of what it executes.
        expert: builds the scripted expert of a task: ``expert(contract, task)``.
        tasks: name -> the words that people would use.
        demo_tasks: those that the demo shows.
        max_steps: policy steps after which an episode is given up.
    """

    make: Callable[[RobotContract, ExecutionNoise | None], SimulatedRobot]
    expert: Callable[[RobotContract, str], Expert]
    tasks: Mapping[str, str]
    demo_tasks: tuple[str, ...]
    max_steps: int


ROBOTS: Mapping[str, RobotKind] = {
    'metaworld': RobotKind(metaworld.MetaWorldRobot, metaworld.MetaWorldExpert, metaworld.TASKS,
                           metaworld.DEMO_TASKS, metaworld.MAX_STEPS),
    'so101': RobotKind(so101.SO101Robot, so101.SO101Expert, so101.TASKS, so101.DEMO_TASKS, so101.MAX_STEPS),
}


def kind_of(contract: RobotContract) -> RobotKind:
    """Return the description of a contract's robot. Raise `ConfigError` if there is no simulation of it."""
    if contract.name not in ROBOTS:
        raise ConfigError(f'no simulation of the robot {contract.name!r}; {closest(contract.name, ROBOTS)}')
    return ROBOTS[contract.name]


def make_robot(contract: RobotContract, noise: ExecutionNoise | None = None) -> SimulatedRobot:
    """Build the simulated robot of a contract; ``noise`` disturbs what it executes."""
    return kind_of(contract).make(contract, noise)


def make_expert(contract: RobotContract, task: str) -> Expert:
    """Build the scripted expert of a task. Raise `ConfigError` for an unknown one."""
    kind = kind_of(contract)
    if task not in kind.tasks:
        raise ConfigError(f'no task {task!r}; {closest(task, kind.tasks)}')
    return kind.expert(contract, task)


def tasks_of(contract: RobotContract) -> Mapping[str, str]:
    """Return the tasks of a contract's robot: name -> the words that people would use."""
    return kind_of(contract).tasks


def max_steps_of(contract: RobotContract) -> int:
    """Return the policy steps after which an episode of a contract's robot is given up."""
    return kind_of(contract).max_steps
