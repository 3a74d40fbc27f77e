"""The command `flow-vla teleop`: drive a robot by joystick, keyboard or leader arm, in this terminal."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from flow_vla_core.errors import ConfigError, closest
from flow_vla_ros.bringup import ARGUMENTS, NODES, TELEOPERATION, node_spec, parse_arguments, prepare_environment

__all__ = ['teleop', 'teleop_command']

COMMON = ('params_file', 'namespace', 'use_sim_time')


def teleop(
    kind: Annotated[str, typer.Argument(help=', '.join(TELEOPERATION))],
    arguments: Annotated[list[str] | None, typer.Argument(
        help='name:=value: contract, bindings, instruction, ' + ', '.join(COMMON), show_default=False)] = None,
) -> None:
    """Drive a running robot, and say when episodes begin and end, until Ctrl-C.

    Recorder and executor run elsewhere: ros2 launch flow_vla capture.launch.py teleop:=keyboard, or flow-vla up.
    """
    import rclpy  # noqa: F401  says at once where there is no ROS
    command = teleop_command(kind, arguments or [])
    prepare_environment(isolated=False)
    os.execv(command[0], command)  # so that the terminal is the node's own


def teleop_command(kind: str, arguments: list[str]) -> list[str]:
    """Return the command line of a node of teleoperation. Raise `ConfigError` for a bad argument."""
    if kind not in TELEOPERATION:
        raise ConfigError(f'no teleoperation {kind!r}; {closest(kind, TELEOPERATION)}')
    values = parse_arguments(arguments)
    for key in values:
        if key not in (*NODES[kind].takes, *COMMON):
            raise ConfigError(f'no argument {key!r}; {closest(key, (*NODES[kind].takes, *COMMON))}')
    if (text := values.get('use_sim_time', 'false').lower()) not in ARGUMENTS['use_sim_time'].choices:
        raise ConfigError(f'use_sim_time: {text!r} is not possible; {closest(text, ("true", "false"))}')
    parameters = {key: value for key, value in values.items() if key in NODES[kind].takes}
    return node_spec(kind, params_file=values.get('params_file'), namespace=values.get('namespace', ''),
                     use_sim_time=text == 'true', parameters={**parameters, 'autostart': True}).command()
