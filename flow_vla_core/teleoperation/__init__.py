"""From a person's hands to actions of a robot contract: joysticks, keys and leader arms."""

from __future__ import annotations

from flow_vla_core.teleoperation.axes import axes_of
from flow_vla_core.teleoperation.jog import Jog
from flow_vla_core.teleoperation.keys import HeldKeys, KeyboardSettings, key_names
from flow_vla_core.teleoperation.leader import Leader, LeaderSettings
from flow_vla_core.teleoperation.pad import JoystickSettings, Pad
from flow_vla_core.teleoperation.settings import Function, JogSettings, load_settings

__all__ = ['Function', 'HeldKeys', 'Jog', 'JogSettings', 'JoystickSettings', 'KeyboardSettings', 'Leader',
           'LeaderSettings', 'Pad', 'axes_of', 'key_names', 'load_settings']
