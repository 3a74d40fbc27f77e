"""The command `flow-vla`: one entry for each thing that people do; each lives in the module that owns it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
import sys

import typer

from flow_vla_core.errors import FlowVLAError

__all__ = ['COMMANDS', 'Command', 'build', 'main']

ROS_MODULES = ('rclpy', 'flow_vla', 'std_msgs', 'sensor_msgs', 'geometry_msgs', 'trajectory_msgs', 'diagnostic_msgs')


@dataclass(frozen=True)
class Command:
    """Says where a command lives, so that only the one that is asked for is imported.

    Args:
        target: ``module:name`` of a function with typer's annotations, or of a typer app with commands of its own.
        help: one line for the overview.
        isolated: whether it talks to nodes of its own, in a ROS domain of its own.
    """

    target: str
    help: str
    isolated: bool = False

    def load(self) -> Callable:
        """Import the function or the app."""
        module, _, function = self.target.partition(':')
        return getattr(import_module(module), function)


COMMANDS = {
    'demo': Command('flow_vla_ros.demo:demo', 'Give the simulated robot its instructions and film it.', True),
    'evaluate': Command('flow_vla_ros.evaluate:evaluate', 'Measure success and latency over many episodes.', True),
    'train': Command('flow_vla_core.cli.train:train', 'Train a policy from recorded bags.'),
    'data': Command('flow_vla_core.cli.data:app', 'Look at recorded bags; check, cut, show, exchange them.'),
    'compare': Command('flow_vla_core.cli.compare:compare', 'Compare families of generators on equal terms.'),
    'study': Command('flow_vla_core.cli.study:study', 'Measure success and jerk against the delay of plans.'),
    'plot': Command('flow_vla_core.cli.plot:app', 'Draw flows, actions, trainings and toys.'),
    'capture-demos': Command('flow_vla_ros.capture:capture_demos', 'Record demonstrations of the experts.', True),
    'bags': Command('flow_vla_ros.bags:app', 'Play and repair recorded bags.'),
    'up': Command('flow_vla_ros.bringup:up', 'Run a graph of nodes, such as capture, policy or bringup.'),
    'teleop': Command('flow_vla_ros.teleop:teleop', 'Drive a robot by joystick, keyboard or leader arm.'),
    'do': Command('flow_vla_ros.do:do', 'Give a running robot an instruction and wait for the end.'),
    'doctor': Command('flow_vla_ros.doctor:doctor', 'Check this machine, and say what to do about each failure.'),
}


def build(arguments: Sequence[str]) -> typer.Typer:
    """Build the app for a command line; only the command that it names is imported."""
    app = typer.Typer(name='flow-vla', help='Train and run flow-matching vision-language-action policies on ROS 2.',
                      no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
    wanted = next((word for word in arguments if not word.startswith('-')), None)
    for name, command in COMMANDS.items():
        if name == wanted and command.isolated:
            import_module('flow_vla_ros.bringup').prepare_environment()
        loaded = command.load() if name == wanted else _listed
        if isinstance(loaded, typer.Typer):
            app.add_typer(loaded, name=name, short_help=command.help)
        else:
            app.command(name, short_help=command.help)(loaded)
    return app


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; an error of the user's ends it with one line and exit code 2."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        build(words)(words, prog_name='flow-vla')
    except FlowVLAError as error:
        _fail(str(error))
    except ModuleNotFoundError as error:
        if (error.name or '').split('.')[0] not in ROS_MODULES:
            raise
        _fail(f'{error}: this command needs ROS 2; source a distribution, or install flow_vla[ros]')


def _listed() -> None:
    """Stand for a command in the overview."""


def _fail(message: str) -> None:
    print(f'flow-vla: {message}', file=sys.stderr)
    raise SystemExit(2)


if __name__ == '__main__':
    main()
