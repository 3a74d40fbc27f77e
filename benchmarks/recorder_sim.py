"""Counts the frames that a capture recorded against those that were published, in real time at the policy's rate."""

from __future__ import annotations

from pathlib import Path
import shutil
import time
from typing import Annotated, Any

from rigs.recorded import recorded_stamps
from rigs.results import finish
from std_srvs.srv import SetBool
import typer

from flow_vla.msg import Episode, SimulationState
from flow_vla.srv import StartEpisode, StopEpisode
from flow_vla_core.contract import RobotContract, find_contract
from flow_vla_core.errors import FlowVLAError
from flow_vla_core.evaluation.sweep import UNSEEN_SEED
from flow_vla_core.simulation.metaworld import TASKS
from flow_vla_ros import qos
from flow_vla_ros.bringup import ManagedProcesses, node_spec, prepare_environment
from flow_vla_ros.codecs import from_time
from flow_vla_ros.conductor import Conductor

SERVICES = {'recorder/start': StartEpisode, 'recorder/stop': StopEpisode, 'expert/enable': SetBool}
START_SECONDS = 60.0


def measure(
    seconds: Annotated[float, typer.Option(min=1, help='of recording')] = 60.0,
    task: Annotated[str, typer.Option(help='what the scripted expert does')] = 'faucet-open',
    contract: Annotated[str, typer.Option(help='robot contract: a file, or a name in config/robots')] = 'metaworld',
    out: Annotated[Path, typer.Option(help='folder of the results')] = Path('out/benchmarks/recorder_sim'),
) -> None:
    """Record with sim_node, expert_node and recorder_node, and look into the bag for every frame that was published."""
    prepare_environment()
    robot = RobotContract.load(find_contract(contract))
    bags = out / 'bags'
    shutil.rmtree(bags, ignore_errors=True)
    published: list[int] = []
    with ManagedProcesses(logs=out / 'logs') as processes:
        common = {'autostart': True, 'contract': contract}
        processes.start(node_spec('sim', parameters={**common, 'task': task, 'seed': UNSEEN_SEED}))
        processes.start(node_spec('expert', use_sim_time=True, parameters=common))
        processes.start(node_spec('recorder', use_sim_time=True, parameters={**common, 'folder': str(bags.resolve())}))
        with Conductor(robot, processes, out / 'logs', attach=[lambda node: listen(node, published)]) as conductor:
            bag, expected = record(conductor, seconds, TASKS[task], published, robot.rates.policy_dt_ns)
    recorded = recorded_stamps(bag)
    topics = {topic: len(expected & recorded.get('/' + topic, set())) for topic in
              [*(camera.topic for camera in robot.cameras), *(stream.topic for stream in robot.state)]}
    values = {'published': len(expected), 'recorded': topics, 'all': set(topics.values()) == {len(expected)},
              'seconds': seconds}
    finish(values, out / 'recorder_sim.json')
    raise SystemExit(0 if values['all'] else 1)


def listen(node: object, published: list[int]) -> None:
    """Keep the stamp of every step of the simulation, at each of which every stream has one sample."""
    def keep(state: SimulationState) -> None:
        published.append(from_time(state.header.stamp))

    node.create_subscription(SimulationState, 'sim/state', keep, qos.RECORD)


def record(conductor: Conductor, seconds: float, instruction: str, published: list[int],
           step: int) -> tuple[Path, set[int]]:
    """Record for a while; return the bag, and the stamps of the steps that lie wholly inside of the recording."""
    clients = {name: conductor.node.create_client(kind, name) for name, kind in SERVICES.items()}
    start = StartEpisode.Request(instruction=instruction, task='benchmark')
    end = time.monotonic() + START_SECONDS
    while not (answer := call(conductor, clients['recorder/start'], start)).success:  # until every stream has come
        if time.monotonic() > end:
            raise FlowVLAError(f'recorder/start: {answer.message}')
    call(conductor, clients['expert/enable'], SetBool.Request(data=True))
    first, until = len(published), time.monotonic() + seconds
    conductor.wait(lambda: time.monotonic() > until, seconds + 30, 'the end of the recording')
    # The images of the newest step may still be on their way, as the first one may have been before the start.
    stamps = range(published[first + 1], published[-1], step)
    answer = call(conductor, clients['recorder/stop'], StopEpisode.Request(keep=True, outcome=Episode.UNKNOWN))
    if not answer.success:
        raise FlowVLAError(f'recorder/stop: {answer.message}')
    return Path(answer.path), set(stamps)


def call(conductor: Conductor, client: object, request: object) -> Any:
    """Call a service once and return its answer."""
    conductor.wait(client.service_is_ready, START_SECONDS, f'the service {client.srv_name}')
    future = client.call_async(request)
    conductor.wait(future.done, START_SECONDS, f'an answer of {client.srv_name}')
    return future.result()


if __name__ == '__main__':
    typer.run(measure)
