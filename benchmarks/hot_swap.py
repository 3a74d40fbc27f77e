"""Measures the time between chunks while checkpoints are swapped into a running policy, and while none is."""

from __future__ import annotations

from pathlib import Path
import shutil
import tempfile
import time
from typing import Annotated

from rigs.listener import Listener
from rigs.results import finish
from rigs.swaps import Swap, describe_swaps, read_chunks
from std_msgs.msg import String
import typer

from flow_vla.msg import PolicyStatus
from flow_vla_core.contract import RobotContract, find_contract
from flow_vla_core.simulation.robots import tasks_of
from flow_vla_ros.bringup import ManagedProcesses, default_checkpoint, graph_specs, prepare_environment
from flow_vla_ros.qos import LATCHED, STATUS

START_SECONDS = 120.0  # until the policy acts
SWAP_SECONDS = 60.0    # until a checkpoint is in force
WARM_CHUNKS = 20       # before the first swap


def measure(
    swaps: Annotated[int, typer.Option(min=1, help='checkpoints that are swapped in')] = 20,
    rest: Annotated[float, typer.Option(min=0, help='s from a checkpoint in force until the next is named')] = 2.0,
    contract: Annotated[str, typer.Option(help='robot contract')] = 'so101',
    replan_steps: Annotated[int, typer.Option(help='policy steps from chunk to chunk')] = 5,
    out: Annotated[Path, typer.Option(help='JSON file of the results; logs go beside it')] = Path(
        'out/benchmarks/hot_swap.json'),
) -> None:
    """Let a policy answer what a simulated robot sees, name another checkpoint again and again, and report the gaps.

    A gap counts as one while swapping if a checkpoint was named, and not in force yet, at any time of it. Ends with an
    error if a checkpoint is not in force within a minute.
    """
    prepare_environment()
    with tempfile.TemporaryDirectory() as folder:
        copies = [shutil.copytree(default_checkpoint(contract), Path(folder) / name) for name in ('one', 'two')]
        trace = Path(folder) / 'policy.csv'
        specs = {spec.name: spec for spec in graph_specs('bringup', {'contract': contract,
                                                                     'checkpoint': str(copies[0])})}
        task, words = next(iter(tasks_of(RobotContract.load(find_contract(contract))).items()))
        with ManagedProcesses(logs=out.with_suffix('') / 'logs') as processes:
            processes.start(specs['sim'], task=task)
            processes.start(specs['policy'], follow_checkpoints=True, trace_file=str(trace), replan_steps=replan_steps)
            with Swapper(processes) as swapper:
                swapper.begin(words)
                made = [swapper.swap(str(copies[number % 2]), rest) for number in range(1, swaps + 1)]
        chunks = read_chunks(trace)
    finish({**describe_swaps(chunks[chunks[:, 0] >= made[0].asked], made), 'rest': rest, 'replan_steps': replan_steps},
           out)


class Swapper(Listener):
    """Says words and names checkpoints, and hears which one is in force.

    Args:
        processes: of the nodes.
    """

    def __init__(self, processes: ManagedProcesses) -> None:
        super().__init__('swapper', processes)
        self._status = PolicyStatus()
        self._in_force = 0
        self.node.create_subscription(PolicyStatus, 'policy/status', self._on_status, STATUS)
        self._topic = self.node.create_publisher(String, 'checkpoint', LATCHED)
        self._speech = self.node.create_publisher(String, 'instruction', LATCHED)

    def begin(self, words: str) -> None:
        """Wait until the policy acts."""
        self._speech.publish(String(data=words))
        self.wait(lambda: self._status.chunks > WARM_CHUNKS, START_SECONDS, self._tell(f'{WARM_CHUNKS} chunks'))

    def swap(self, checkpoint: str, rest: float) -> Swap:
        """Name a checkpoint, wait until it is in force, and then for ``rest`` s."""
        asked = time.time_ns()
        self._topic.publish(String(data=checkpoint))
        self.wait(lambda: self._status.checkpoint == checkpoint, SWAP_SECONDS, self._tell(f'{checkpoint} in force'))
        swap = Swap(checkpoint, asked, self._in_force)
        self.listen(rest)
        return swap

    def _on_status(self, status: PolicyStatus) -> None:
        if status.checkpoint != self._status.checkpoint:
            self._in_force = time.time_ns()
        self._status = status

    def _tell(self, what: str) -> object:
        return lambda: f'{what}; the policy says: {self._status.message}'


if __name__ == '__main__':
    typer.run(measure)
