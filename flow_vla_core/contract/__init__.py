"""The robot contract: how topics become an observation, and how an action chunk becomes commands."""

from __future__ import annotations

from flow_vla_core.contract.actions import ActionKind, ActionPart, Goals, Limits, Trajectory
from flow_vla_core.contract.files import config_folder, find_contract
from flow_vla_core.contract.parts import Camera, Instruction, Rates, StateStream
from flow_vla_core.contract.robot import RobotContract

__all__ = ['ActionKind', 'ActionPart', 'Camera', 'Goals', 'Instruction', 'Limits', 'Rates', 'RobotContract',
           'StateStream', 'Trajectory', 'config_folder', 'find_contract']
