"""Rendering of MuJoCo scenes without a display, quick enough for cameras in software."""

from __future__ import annotations

import copy
from dataclasses import dataclass
import importlib
import os

import numpy as np

from flow_vla_core.errors import ConfigError

__all__ = ['OffscreenRenderer', 'Scene']

BACKENDS = ('egl', 'osmesa')


@dataclass(frozen=True)
class Scene:
    """Holds a model of MuJoCo and a state of it."""

    model: object
    data: object

    def copy(self) -> Scene:
        """Return the same with a state of its own."""
        return Scene(self.model, copy.copy(self.data))


class OffscreenRenderer:
    """Renders cameras of any number of models of MuJoCo in one OpenGL context.

    ``mujoco.Renderer`` opens a context for each model, and with software rendering a second one that is open at the
    same time, or opened after the first was closed, returns wrong pixels or ends the process. Shadows, reflections and
    multisampling are off: they cost ten times the rest together. Sites, which no camera would see, are left out.

    Args:
        rows: height of the images.
        columns: width of the images.

    Raises:
        ConfigError: if neither EGL nor OSMesa works here, or ``MUJOCO_GL`` names something else.
    """

    def __init__(self, rows: int, columns: int) -> None:
        import mujoco
        self._mujoco = mujoco
        self._rows, self._columns = rows, columns
        self._gl = _open_context(columns, rows)
        self._gl.make_current()
        self._view = mujoco.MjrRect(0, 0, columns, rows)
        self._options = mujoco.MjvOption()
        self._options.sitegroup[:] = 0
        self._scenes: dict[int, tuple] = {}

    def render(self, model: object, data: object, camera: str) -> np.ndarray:
        """Draw what a named camera sees: (Y, X, C) uint8."""
        mujoco = self._mujoco
        scene, context = self._scene(model)
        view = mujoco.MjvCamera()
        view.type, view.fixedcamid = mujoco.mjtCamera.mjCAMERA_FIXED, model.camera(camera).id
        mujoco.mjv_updateScene(model, data, self._options, None, view, mujoco.mjtCatBit.mjCAT_ALL.value, scene)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN.value, context)
        mujoco.mjr_render(self._view, scene, context)
        image = np.empty((self._rows, self._columns, 3), np.uint8)
        mujoco.mjr_readPixels(image, None, self._view, context)
        return image[::-1]

    def close(self) -> None:
        """Free what the graphics library holds."""
        for _, context in self._scenes.values():
            context.free()
        self._scenes.clear()
        self._gl.free()

    def _scene(self, model: object) -> tuple:
        if id(model) not in self._scenes:
            mujoco = self._mujoco
            visual = model.vis
            visual.quality.shadowsize = visual.quality.offsamples = 0
            visual.global_.offheight, visual.global_.offwidth = self._rows, self._columns
            scene = mujoco.MjvScene(model, 10000)
            for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
                scene.flags[flag] = 0
            self._scenes[id(model)] = scene, mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100.value)
        return self._scenes[id(model)]


def _open_context(columns: int, rows: int) -> object:
    wanted = os.environ.get('MUJOCO_GL', '')
    if wanted and wanted not in BACKENDS:
        raise ConfigError(f'MUJOCO_GL={wanted!r}: cameras are rendered with one of {", ".join(BACKENDS)}')
    reasons = []
    for name in (wanted,) if wanted else BACKENDS:
        try:
            return importlib.import_module(f'mujoco.{name}').GLContext(columns, rows)
        except (ImportError, AttributeError, RuntimeError, OSError) as error:
            reasons.append(f'{name}: {error}')
    raise ConfigError('no off-screen rendering: ' + '; '.join(reasons)
                      + ' (Debian and Ubuntu: apt-get install libegl1 libegl-mesa0 libgl1-mesa-dri)')
