"""Other checkpoints while the policy acts: swapped in between two inferences, or refused while the old one goes on."""

from __future__ import annotations

from pathlib import Path
import threading

import pytest

pytest.importorskip('rclpy', reason='rclpy is not installed')

from rclpy.parameter import Parameter
from ros_graph import RosGraph
from std_msgs.msg import String
from test_policy_node import CONTRACT, DT, START, WORDS, RecordingEngine, Rig, save_policy

from flow_vla_core.contract import RobotContract
from flow_vla_core.errors import CheckpointError
from flow_vla_ros.engines import EngineLoader, load_engine
from flow_vla_ros.parameters import Parameters
from flow_vla_ros.qos import LATCHED

LEVELS = {'first': 0.01, 'second': 0.02, 'third': 0.03}


class Shelf:
    """Makes an engine for each name of a checkpoint; each answers with a level of its own."""

    def __init__(self) -> None:
        self.engines: dict[str, RecordingEngine] = {}
        self.threads: set[int] = set()

    def __call__(self, parameters: Parameters, contract: RobotContract) -> RecordingEngine:
        self.threads.add(threading.get_ident())
        if parameters.checkpoint not in LEVELS:
            raise CheckpointError(f'{parameters.checkpoint}: the file config.json is missing')
        engine = self.engines[parameters.checkpoint] = RecordingEngine()
        engine.level = LEVELS[parameters.checkpoint]
        engine.realtime = 'prefix' if parameters.checkpoint == 'second' else 'none'
        return engine


def start(graph: RosGraph, **parameters: object) -> tuple[Rig, Shelf]:
    """Start a policy with the checkpoint ``first`` in simulated time, and let it make its first chunk."""
    shelf = Shelf()
    rig = Rig(graph, shelf, checkpoint='first', use_sim_time=True, replan_steps=2, **parameters)
    rig.engine = shelf.engines['first']
    rig.set_time(START)
    rig.say(WORDS)
    rig.show(START)
    graph.spin_until(lambda: len(rig.chunks) == 1)
    assert rig.chunks[0].data[0] == pytest.approx(0.01)
    return rig, shelf


def next_chunk(rig: Rig, number: int) -> float:
    """Show the robot once more and return the first number of the chunk that follows."""
    stamp, count = START + 2 * number * DT, len(rig.chunks)
    rig.set_time(stamp)
    rig.show(stamp)
    rig.graph.spin_until(lambda: len(rig.chunks) > count)
    return rig.chunks[-1].data[0]


def test_a_checkpoint_that_is_announced_is_taken_over(graph: RosGraph) -> None:
    rig, shelf = start(graph, follow_checkpoints=True)
    topic = graph.outbox(String, 'checkpoint', LATCHED)
    topic.publish(String(data='second'))
    graph.spin_until(lambda: rig.status.checkpoint == 'second')
    assert next_chunk(rig, 1) == pytest.approx(0.02)
    assert [chunk.id for chunk in rig.chunks] == [1, 2]
    assert rig.node.get_parameter('checkpoint').value == 'second'
    assert len(shelf.threads) == 2, 'loaded in the thread that spins'


def test_nothing_is_taken_over_unless_that_is_asked_for(graph: RosGraph) -> None:
    rig, shelf = start(graph)
    assert graph.probe.count_subscribers('checkpoint') == 0
    rig.node.set_parameters([Parameter('checkpoint', value='third')])
    graph.spin_until(lambda: rig.status.checkpoint == 'third')
    assert next_chunk(rig, 1) == pytest.approx(0.03)
    assert list(shelf.engines) == ['first', 'third']


def test_a_bad_checkpoint_is_refused_and_the_old_one_goes_on(graph: RosGraph) -> None:
    rig, _ = start(graph, follow_checkpoints=True)
    rig.node.set_parameters([Parameter('checkpoint', value='nonsense')])
    graph.spin_until(lambda: 'refused nonsense: nonsense: the file config.json is missing' in rig.status.message)
    assert rig.status.checkpoint == rig.node.get_parameter('checkpoint').value == 'first'
    assert next_chunk(rig, 1) == pytest.approx(0.01)
    graph.outbox(String, 'checkpoint', LATCHED).publish(String(data='second'))
    graph.spin_until(lambda: rig.status.checkpoint == 'second')
    assert 'refused' not in rig.status.message


def test_who_names_the_one_in_force_again_calls_off_what_is_being_loaded(graph: RosGraph) -> None:
    rig, shelf = start(graph, follow_checkpoints=True)
    loader, go, taken = rig.node._switch._loader, threading.Event(), []
    load, take = loader._load, loader.take
    loader._load = lambda folder: load(folder) if go.wait(20) else None
    loader.take = lambda: (found := take(), taken.extend(found))[0]
    for name in ('second', 'first'):
        rig.node.set_parameters([Parameter('checkpoint', value=name)])
    go.set()
    graph.spin_until(lambda: taken)
    assert taken[0].engine is shelf.engines['second']
    assert next_chunk(rig, 1) == pytest.approx(0.01)
    assert rig.status.checkpoint == rig.node.get_parameter('checkpoint').value == 'first'
    rig.node.set_parameters([Parameter('checkpoint', value='second')])
    graph.spin_until(lambda: rig.status.checkpoint == 'second')


def test_an_inference_that_runs_is_finished_by_the_engine_that_began_it(graph: RosGraph) -> None:
    rig, shelf = start(graph, follow_checkpoints=True)
    first = shelf.engines['first']
    first.gate.clear()
    rig.set_time(START + 2 * DT)
    rig.show(START + 2 * DT)
    graph.spin_until(lambda: len(first.seen) == 2)
    graph.outbox(String, 'checkpoint', LATCHED).publish(String(data='second'))
    graph.spin_until(lambda: rig.node._switch._next is not None)
    assert rig.status.checkpoint == 'first'
    first.gate.set()
    graph.spin_until(lambda: len(rig.chunks) == 2)
    assert rig.chunks[1].data[0] == pytest.approx(0.01)
    graph.spin_until(lambda: rig.status.checkpoint == 'second')
    assert next_chunk(rig, 2) == pytest.approx(0.02)


def test_the_plan_in_force_is_continued_by_the_next_checkpoint(graph: RosGraph) -> None:
    rig, shelf = start(graph, realtime='prefix')
    rig.node.set_parameters([Parameter('checkpoint', value='second')])
    graph.spin_until(lambda: rig.status.checkpoint == 'second')
    next_chunk(rig, 1)
    rest, = shelf.engines['second'].continuations
    assert rest.actions == pytest.approx(0.01)


def test_how_plans_are_continued_is_decided_anew_for_each_checkpoint(graph: RosGraph) -> None:
    rig, shelf = start(graph)
    for number, (name, chosen) in enumerate([('second', 'prefix'), ('third', 'none')], start=1):
        rig.node.set_parameters([Parameter('checkpoint', value=name)])
        graph.spin_until(lambda name=name: rig.status.checkpoint == name)
        assert shelf.engines[name].realtime == chosen
        next_chunk(rig, number)
        assert (shelf.engines[name].continuations[0] is not None) == (chosen == 'prefix')


def test_the_contract_of_a_checkpoint_is_checked(graph: RosGraph, tmp_path: Path) -> None:
    values = CONTRACT.model_dump(mode='json', exclude_none=True)
    values['state'][0]['unit'] = 'mm'
    save_policy(tmp_path / 'good', CONTRACT)
    save_policy(tmp_path / 'other', RobotContract.parse(values))
    rig = Rig(graph, load_engine, checkpoint=str(tmp_path / 'good'), device='cpu', threads=1, steps=1)
    rig.node.set_parameters([Parameter('checkpoint', value=str(tmp_path / 'other'))])
    graph.spin_until(lambda: "state.ee_position.unit: 'mm' != 'm'" in rig.status.message)
    assert rig.status.checkpoint == str(tmp_path / 'good')


def test_of_checkpoints_that_wait_only_the_newest_is_loaded() -> None:
    begun, go, done, loaded = threading.Event(), threading.Event(), threading.Event(), []

    def load(folder: str) -> RecordingEngine:
        loaded.append(folder)
        begun.set()
        assert go.wait(20)
        return RecordingEngine()

    loader = EngineLoader(load, lambda: done.set() if loaded[-1] == 'c' else None)
    loader.ask('a')
    assert begun.wait(20)
    loader.ask('b')
    loader.ask('c')
    go.set()
    assert done.wait(20)
    loader.close()
    assert loaded == ['a', 'c']
    assert [item.checkpoint for item in loader.take()] == ['a', 'c']
