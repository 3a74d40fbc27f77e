"""Meta-World as a robot: two cameras, end-effector position and gripper in, velocity and gripper commands out."""

from __future__ import annotations

from collections.abc import Mapping
import importlib
import warnings

import numpy as np

from flow_vla_core.contract import RobotContract
from flow_vla_core.errors import ConfigError, closest
from flow_vla_core.simulation.noise import ExecutionNoise
from flow_vla_core.simulation.rendering import OffscreenRenderer, Scene

__all__ = ['DEMO_TASKS', 'MAX_STEPS', 'TASKS', 'MetaWorldExpert', 'MetaWorldRobot']

MAX_STEPS = 500  # of one episode, as in the benchmark
METRES_PER_ACTION = 0.01  # how far an action of 1 moves the end effector's target in one step
TASKS: Mapping[str, str] = {
    'faucet-open': 'open the faucet',
    'faucet-close': 'close the faucet',
    'window-open': 'open the window',
    'window-close': 'close the window',
    'button-press-topdown': 'press the button down',
    'drawer-open': 'open the drawer',
    'drawer-close': 'close the drawer',
    'coffee-button': 'push the coffee machine button',
}
DEMO_TASKS = ('faucet-open', 'faucet-close', 'window-open', 'button-press-topdown', 'drawer-open', 'drawer-close')
# The two faucet tasks draw the faucet's place from boxes of different width; one box makes their scenes equal.
FAUCET_BOX = ((-0.1, 0.8, 0.0), (0.1, 0.85, 0.0))
# Each camera: its name in the model, and where it is put (position, looked-at point in m, field of view in degrees).
CAMERAS = {
    'front': ('corner4', ((-0.70, 0.20, 0.65), (0.0, 0.68, 0.13), 43.0)),
    'gripper_cam': ('gripperPOV', None),
}


class MetaWorldRobot:
    """Simulates one Meta-World task at a time (arXiv 1910.10897; package ``metaworld`` 3.x on MuJoCo).

    Actions are in the contract's units: end-effector velocity in m/s (an action of 1 in Meta-World is 1 cm a step)
    and the gripper in [-1, 1]. One step of Meta-World is one control period and one policy step.

    Args:
        contract: says the cameras' resolution and the policy step.
        noise: disturbs what is executed; None executes the command as it is.

    Raises:
        ConfigError: if a task is not one of `TASKS`.
    """

    def __init__(self, contract: RobotContract, noise: ExecutionNoise | None = None) -> None:
        self.contract = contract
        self.task = ''
        self.steps = 0
        self.success = False
        self._noise = noise
        self._renderer: OffscreenRenderer | None = None
        self._metres_per_second = METRES_PER_ACTION / contract.rates.policy_dt
        self._worlds: dict[str, _World] = {}
        self._experts: dict[str, MetaWorldExpert] = {}

    @property
    def control_period(self) -> float:
        """Time of one step, s."""
        return self.contract.rates.policy_dt

    @property
    def instruction(self) -> str:
        """The words that people would use for the present task."""
        return TASKS[self.task]

    @property
    def env(self) -> object:
        """The Meta-World environment of the present task."""
        return self._world.env

    @property
    def privileged_state(self) -> np.ndarray:
        """Meta-World's own observation (39,), with object poses; for the scripted expert only."""
        return self._observation

    @property
    def rest(self) -> np.ndarray:
        """No motion, (4,)."""
        return np.zeros(4, np.float32)

    def reset(self, task: str, seed: int) -> None:
        """Put the objects where ``seed`` says and the hand to its start."""
        if task not in TASKS:
            raise ConfigError(f'no task {task!r}; {closest(task, TASKS)}')
        if task not in self._worlds:
            self._worlds[task] = _World(task)
        self.task, self._world = task, self._worlds[task]
        self._observation = self._world.reset(seed)
        self.steps, self.success = 0, False
        if self._noise is not None:
            self._noise.reset(seed)

    def step(self, action: np.ndarray) -> None:
        """Execute one action (4,): velocity x, y, z in m/s and gripper."""
        action = np.array([*np.asarray(action[:3]) / self._metres_per_second, action[3]])
        if self._noise is not None:
            action = self._noise(action)
        self._observation, self.success = self._world.step(np.clip(action, -1, 1).astype(np.float32))
        self.steps += 1

    def state(self) -> dict[str, np.ndarray]:
        """Measure: ``ee_position`` (3,) in m and ``gripper`` (1,), 0 closed to 1 open."""
        return {'ee_position': self._observation[:3].astype(np.float32),
                'gripper': self._observation[3:4].astype(np.float32)}

    def images(self) -> dict[str, np.ndarray]:
        """Render every camera of the contract: name -> (Y, X, C) uint8."""
        return self.render(self._scene)

    def snapshot(self) -> Scene:
        """Copy what the cameras see now."""
        return self._scene.copy()

    def render(self, scene: Scene) -> dict[str, np.ndarray]:
        """Render a snapshot: name -> (Y, X, C) uint8."""
        if self._renderer is None:
            self._renderer = OffscreenRenderer(*self.contract.cameras[0].resolution)
        return {camera.name: self._renderer.render(scene.model, scene.data, CAMERAS[camera.name][0])
                for camera in self.contract.cameras}

    def field_of_view(self, camera: str) -> float:
        """Vertical field of view of a camera of the contract, degrees."""
        return float(self._world.env.model.camera(CAMERAS[camera][0]).fovy[0])

    def expert_action(self) -> np.ndarray:
        """Ask the task's scripted expert: (4,) in the contract's units."""
        if self.task not in self._experts:
            self._experts[self.task] = MetaWorldExpert(self.contract, self.task)
        return self._experts[self.task](self._observation)

    def close(self) -> None:
        """Free the renderer."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None

    @property
    def _scene(self) -> Scene:
        return Scene(self._world.env.model, self._world.env.data)


class MetaWorldExpert:
    """Asks Meta-World's scripted expert of a task for actions in the contract's units.

    Args:
        contract: says the policy step.
        task: one of `TASKS`.
    """

    def __init__(self, contract: RobotContract, task: str) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            policies = importlib.import_module('metaworld.policies')
        name = 'Sawyer' + ''.join(word.capitalize() for word in task.split('-')) + 'V3Policy'
        self._policy = getattr(policies, name)()
        self._metres_per_second = METRES_PER_ACTION / contract.rates.policy_dt

    def __call__(self, privileged: np.ndarray) -> np.ndarray:
        """Return velocity in m/s and gripper, (4,), for Meta-World's observation (39,)."""
        with warnings.catch_warnings():  # it warns each time that an action exceeds [-1, 1]
            warnings.simplefilter('ignore')
            action = self._policy.get_action(privileged)[:4]
        action = np.clip(np.asarray(action, np.float32), -1, 1)
        return np.array([*action[:3] * self._metres_per_second, action[3]], np.float32)


class _World:
    """Wraps one environment of Meta-World: seeded resets, well-placed cameras."""

    def __init__(self, task: str) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            environments = importlib.import_module('metaworld.env_dict').ALL_V3_ENVIRONMENTS
            self.env = environments[f'{task}-v3']()
        env = self.env
        env._partially_observable = False
        env._freeze_rand_vec = False
        env.seeded_rand_vec = True
        env._set_task_called = True
        env.max_path_length = 10 ** 9
        if task.startswith('faucet'):
            env._random_reset_space.low[:], env._random_reset_space.high[:] = FAUCET_BOX
        for name, view in CAMERAS.values():
            if view is not None:
                _place_camera(env.model, name, *view)

    def reset(self, seed: int) -> np.ndarray:
        import mujoco
        self.env.seed(seed)
        self.env.reset()
        mujoco.mj_forward(self.env.model, self.env.data)  # some tasks move bodies after their last forward pass
        self.env._get_obs()
        return self.env._get_obs()  # asked twice: each answer holds the one before as well

    def step(self, action: np.ndarray) -> tuple[np.ndarray, bool]:
        observation, _, _, _, info = self.env.step(action)
        return observation, bool(info['success'])


def _place_camera(model: object, name: str, position: tuple, target: tuple, field_of_view: float) -> None:
    """Put a fixed camera upright at ``position`` and point it at ``target`` (m)."""
    import mujoco
    back = np.subtract(position, target)
    back /= np.linalg.norm(back)
    right = np.cross([0.0, 0.0, 1.0], back)
    right /= np.linalg.norm(right)
    quaternion = np.zeros(4)
    mujoco.mju_mat2Quat(quaternion, np.stack([right, np.cross(back, right), back], 1).flatten())
    camera = model.camera(name).id
    model.cam_pos[camera], model.cam_quat[camera], model.cam_fovy[camera] = position, quaternion, field_of_view
