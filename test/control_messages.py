"""A stand-in for control_msgs, which is on no package index: the fields that its action files declare."""

from __future__ import annotations

from dataclasses import dataclass, field
import sys
from types import ModuleType, SimpleNamespace

import pytest
from sensor_msgs.msg import JointState

__all__ = ['install', 'remove']


@dataclass
class GripperCommandMessage:
    """Has the fields of control_msgs/msg/GripperCommand."""

    position: float = 0.0
    max_effort: float = 0.0


@dataclass
class GripperGoal:
    """Has the fields of the goal of control_msgs/action/GripperCommand."""

    command: GripperCommandMessage = field(default_factory=GripperCommandMessage)


@dataclass
class ParallelGripperGoal:
    """Has the fields of the goal of control_msgs/action/ParallelGripperCommand."""

    command: JointState = field(default_factory=JointState)


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let ``import control_msgs.action`` find the stand-in."""
    package, action = ModuleType('control_msgs'), ModuleType('control_msgs.action')
    action.GripperCommand = SimpleNamespace(Goal=GripperGoal)
    action.ParallelGripperCommand = SimpleNamespace(Goal=ParallelGripperGoal)
    monkeypatch.setitem(sys.modules, 'control_msgs', package)
    monkeypatch.setitem(sys.modules, 'control_msgs.action', action)


def remove(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let nobody find control_msgs, also where it is installed."""
    monkeypatch.setitem(sys.modules, 'control_msgs', None)
    monkeypatch.setitem(sys.modules, 'control_msgs.action', None)
