"""A policy that only watches: it sends nothing, and its errors are those that are computed offline."""

from __future__ import annotations

import csv
import json
from pathlib import Path

from bag_tools import MARKS, record, steps
from dummy_policy import save_dummy_policy
import numpy as np
import pytest

pytest.importorskip('rclpy', reason='rclpy is not installed')

from rclpy.parameter import Parameter
from ros_graph import RosGraph
from test_policy_node import CONTRACT, DT, START, WORDS, RecordingEngine, Rig

from flow_vla.msg import OpenLoopError, PolicyStatus
from flow_vla_core.data.reading import read_episode
from flow_vla_core.engine import Engine
from flow_vla_core.evaluation.open_loop import compare_episode
from flow_vla_core.training.checkpoint import load_checkpoint
from flow_vla_ros.codecs import encode_action, from_time, message_type
from flow_vla_ros.player import PlayerNode
from flow_vla_ros.policy_node import PolicyNode
from flow_vla_ros.qos import COMMAND, RECORD

NAMES = ['ee.x', 'ee.y', 'ee.z', 'gripper.gripper']


def test_a_shadow_continues_no_plan_of_its_own_since_none_is_executed(graph: RosGraph,
                                                                      monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RecordingEngine, 'realtime', 'prefix', raising=False)
    rig = Rig(graph, shadow=True, replan_steps=2, use_sim_time=True)
    rig.set_time(START)
    rig.say(WORDS)
    for stamp in (START, START + 2 * DT):
        count = len(rig.engine.seen)
        rig.set_time(stamp)
        rig.show(stamp)
        graph.spin_until(lambda count=count: len(rig.engine.seen) > count and not rig.node._worker.busy)
    assert rig.engine.continuations == [None, None]


def test_errors_are_those_of_the_recorded_commands_and_nothing_is_sent(graph: RosGraph, tmp_path: Path) -> None:
    report = tmp_path / 'reports' / 'shadow.json'
    rig = Rig(graph, shadow=True, report_file=str(report), use_sim_time=True)
    errors = graph.inbox(OpenLoopError, 'policy/open_loop_error')
    assert graph.probe.count_publishers('action_chunk') == 0
    rig.set_time(START)
    rig.say(WORDS)
    rig.show(START)
    graph.spin_until(lambda: rig.engine.seen and not rig.node._worker.busy)
    outlets = {part.name: graph.outbox(message_type(part.message), '/played/' + part.topic, COMMAND)
               for part in CONTRACT.actions}
    for step in range(8):
        for part in CONTRACT.actions:
            values = np.full(part.dim, 0.05 + 0.01 * step)
            outlets[part.name].publish(encode_action(part, values, START + step * DT))
    graph.spin_until(lambda: errors)
    error, = errors
    assert (from_time(error.header.stamp), error.chunk_id, error.steps, list(error.names)) == (START, 1, 8, NAMES)
    assert list(error.errors) == pytest.approx([0.035] * 4, rel=1e-5)
    assert error.mean == pytest.approx(0.035, rel=1e-5)
    graph.spin_until(lambda: 'SHADOW: 1 chunks compared, open-loop error 0.035' in rig.status.message)
    assert rig.chunks == [] and rig.status.state == PolicyStatus.RUNNING
    rig.node.trigger_deactivate()
    assert json.loads(report.read_text())['errors'] == pytest.approx(dict.fromkeys(NAMES, 0.035), rel=1e-5)
    row, = csv.DictReader(report.with_suffix('.csv').open())
    assert (row['chunk_id'], row['steps'], row['instruction']) == ('1', '8', WORDS)


def test_a_played_bag_gives_the_errors_that_are_computed_offline(graph: RosGraph, tmp_path: Path) -> None:
    bag = record(tmp_path / 'episode_000001', steps(40), {**MARKS, 'instruction': 'close the faucet'})
    folder = save_dummy_policy(tmp_path / 'policy', CONTRACT)
    values = {'checkpoint': str(folder), 'device': 'cpu', 'threads': 1, 'shadow': True, 'use_sim_time': True, 'seed': 3,
              'report_file': str(tmp_path / 'shadow.json')}
    policy = graph.add(PolicyNode(parameter_overrides=[Parameter(key, value=value) for key, value in values.items()]))
    errors = graph.inbox(OpenLoopError, 'policy/open_loop_error', RECORD)
    assert policy.autostart()
    values = {'bags': [str(bag)], 'gap': 0.3, 'wait_for_subscribers': True}
    player = graph.add(PlayerNode(parameter_overrides=[Parameter(key, value=value) for key, value in values.items()]))
    assert player.autostart()
    graph.spin_until(lambda: player._state == 'done')
    episode = read_episode(bag, CONTRACT)
    graph.spin_until(lambda: policy._shadow._open_loop.log.known_until >= episode.stamps[-1])
    policy.trigger_deactivate()
    graph.spin_until(lambda: len(errors) == policy._shadow.summary.chunks)
    assert len(errors) >= 3
    loaded = load_checkpoint(folder, CONTRACT)
    engine = Engine(loaded, device='cpu', seed=3)
    stamps = [from_time(error.header.stamp) for error in errors]
    assert [error.chunk_id for error in errors] == list(range(1, len(errors) + 1)), 'each chunk draws its own noise'
    offline = list(compare_episode(engine, episode, CONTRACT, stamps,
                                   np.array(loaded.statistics['actions'].std)))
    for live, expected in zip(errors, offline, strict=True):
        assert live.steps == len(expected.errors)
        assert list(live.errors) == pytest.approx(expected.errors.mean(0).tolist(), rel=1e-4, abs=1e-5)
        assert live.mean == pytest.approx(expected.mean, rel=1e-4)
    report = json.loads((tmp_path / 'shadow.json').read_text())
    assert report['mean'] == pytest.approx(np.mean([found.mean for found in offline]), rel=1e-4)
    assert list(report['by_checkpoint']) == [str(folder)]
