"""The command `flow-vla bags play`: recorded bags on the graph, as if they happened now."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flow_vla_core.errors import ConfigError

__all__ = ['play']


def play(
    bags: Annotated[list[Path], typer.Argument(help='rosbag2 folders, or folders of them; played one after another.')],
    rate: Annotated[float, typer.Option(min=0.001, max=1000, help='Recorded seconds per second.')] = 1.0,
    loop: Annotated[bool, typer.Option(help='Begin again after the last bag.')] = False,
    start_offset: Annotated[float, typer.Option(min=0, help='Leave out so much of the beginning, s.')] = 0.0,
    clock: Annotated[float, typer.Option(min=0, max=1000, help='Rate of /clock, Hz; 0: no clock.')] = 100.0,
    topics: Annotated[str, typer.Option(help='Comma-separated names; all if empty.')] = '',
    remap: Annotated[list[str] | None, typer.Option(help='OLD:=NEW name of a topic; may be repeated.')] = None,
    start_paused: Annotated[bool, typer.Option(help='Wait for the space key, or for ~/pause.')] = False,
    commands: Annotated[bool | None, typer.Option(help='Play commands to whoever obeys them, or not at all. Without '
                                                  'this they are played below /played, where no robot listens.',
                                                  show_default=False)] = None,
    wait_for_subscribers: Annotated[bool, typer.Option(help='Begin when every stream has a subscriber.')] = False,
    among_others: Annotated[bool, typer.Option(help='Play although others publish the same streams.')] = False,
    contract: Annotated[str, typer.Option(help='Robot contract; empty: what the bags say.')] = '',
) -> None:
    """Play recorded bags with their timing; the space key pauses and goes on.

    Discovery stays on this machine unless ROS_AUTOMATIC_DISCOVERY_RANGE is set.
    """
    from flow_vla_core.data.bag_reader import open_bag
    from flow_vla_core.data.bags import need_bags
    for bag in need_bags(bags):
        open_bag(bag)  # what is no bag ends it before a node is made
    from flow_vla_ros.bringup import node_spec, prepare_environment
    prepare_environment(isolated=False)
    from flow_vla_ros.lifecycle import run
    from flow_vla_ros.player import PlayerNode
    for rule in remap or []:
        if ':=' not in rule:
            raise ConfigError(f'--remap {rule!r}: write OLD:=NEW')
    spec = node_spec('player', contract=contract, parameters={
        'bags': [str(bag) for bag in bags], 'rate': rate, 'loop': loop, 'start_offset': start_offset,
        'clock_hz': clock, 'topics': [name for name in topics.split(',') if name] or [''],
        'commands': {None: 'aside', True: 'as_recorded', False: 'leave_out'}[commands], 'paused': start_paused,
        'wait_for_subscribers': wait_for_subscribers, 'alone': not among_others, 'exit_at_end': True, 'keys': True,
        'autostart': True})
    words = spec.command()
    remaps = [word for rule in remap or [] for word in ('-r', rule)]
    run(PlayerNode, [*words[words.index('--ros-args'):], *remaps])
