"""The base class of nodes: hooks in order, faults, one teardown, parameters, and processes that start and end well."""

from __future__ import annotations

import math
from pathlib import Path
import subprocess
from typing import Any

import pytest

pytest.importorskip('rclpy', reason='rclpy is not installed')

from lifecycle_msgs.srv import ChangeState
from rclpy.lifecycle import TransitionCallbackReturn
from rclpy.parameter import Parameter as Override
from ros_graph import RosGraph
from std_msgs.msg import String
import yaml

from flow_vla_core.errors import ConfigError
from flow_vla_ros.executor_node import ExecutorNode
from flow_vla_ros.lifecycle import FlowLifecycleNode, Parameter, Parameters
from flow_vla_ros.policy_node import PolicyNode
from flow_vla_ros.recorder_node import RecorderNode
from flow_vla_ros.sim.expert_node import ExpertNode
from flow_vla_ros.sim.sim_node import SimNode

SUCCESS, FAILURE, ERROR = (TransitionCallbackReturn.SUCCESS, TransitionCallbackReturn.FAILURE,
                           TransitionCallbackReturn.ERROR)


class DiaryNode(FlowLifecycleNode):
    """Notes which hooks ran, and fails in the one that it is told to."""

    PARAMETERS = (
        Parameter('rate', 10.0, 'Hz', minimum=1.0, maximum=20.0),
        Parameter('count', 3, 'pieces', minimum=1),
        Parameter('word', 'one', 'a word', choices=('one', 'two')),
    )

    def __init__(self, fail_in: str = '', error: Exception | None = None, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.diary: list[str] = []
        self.seen: Parameters | None = None
        self.fail_in, self.error = fail_in, error

    def note(self, hook: str) -> None:
        self.diary.append(hook)
        if hook == self.fail_in:
            raise self.error

    def on_setup(self, parameters: Parameters) -> None:
        self.seen = parameters
        self.create_publisher(String, 'diary', 1)
        self.create_timer(10.0, lambda: None)
        self.note('setup')

    def on_start(self) -> None:
        self.note('start')

    def on_stop(self) -> None:
        self.note('stop')

    def on_teardown(self) -> None:
        self.note('teardown')


def state_of(node: FlowLifecycleNode) -> str:
    return node._state_machine.current_state[1]


def test_hooks_run_in_order_and_the_node_can_go_round_again(graph: RosGraph) -> None:
    node = graph.add(DiaryNode())
    assert node.get_name() == 'diary'
    for _ in range(2):
        assert node.autostart()
        assert node.active
        assert node.trigger_deactivate() == node.trigger_cleanup() == SUCCESS
        assert not node.active
    assert node.diary == ['setup', 'start', 'stop', 'teardown'] * 2


def test_shutdown_from_active_stops_before_it_tears_down(graph: RosGraph) -> None:
    node = graph.add(DiaryNode())
    node.autostart()
    node.shut_down()
    node.shut_down()
    assert node.diary == ['setup', 'start', 'stop', 'teardown']
    assert state_of(node) == 'finalized'


def test_transitions_come_over_the_services_too(graph: RosGraph) -> None:
    node = graph.add(DiaryNode())
    request = ChangeState.Request()
    request.transition.label = 'configure'
    assert graph.call(ChangeState, 'diary/change_state', request).success
    assert node.diary == ['setup']


@pytest.mark.parametrize(('hook', 'error', 'result', 'state', 'diary'), [
    ('setup', ConfigError('no such thing'), FAILURE, 'unconfigured', ['setup']),
    ('setup', RuntimeError('broken'), ERROR, 'unconfigured', ['setup']),
    ('start', ConfigError('no such thing'), FAILURE, 'inactive', ['setup', 'start']),
    ('start', RuntimeError('broken'), ERROR, 'unconfigured', ['setup', 'start', 'teardown']),
    ('stop', RuntimeError('broken'), ERROR, 'unconfigured', ['setup', 'start', 'stop', 'teardown']),
])
def test_a_hook_that_fails_is_logged_and_leaves_a_defined_state(
        graph: RosGraph, capfd: pytest.CaptureFixture, hook: str, error: Exception, result: TransitionCallbackReturn,
        state: str, diary: list[str]) -> None:
    node = graph.add(DiaryNode(hook, error))
    before = len(list(node.publishers)), len(list(node.timers))
    results = [node.trigger_configure()]
    if hook != 'setup':
        results.append(node.trigger_activate())
    if hook == 'stop':
        results.append(node.trigger_deactivate())
    assert results[-1] == result
    assert (state_of(node), node.diary, node.active) == (state, diary, False)
    said = capfd.readouterr().err
    assert str(error) in said
    assert ('Traceback' in said) == isinstance(error, RuntimeError)
    if state == 'unconfigured':
        assert (len(list(node.publishers)), len(list(node.timers))) == before


def test_parameters_are_read_as_one_frozen_set(graph: RosGraph) -> None:
    node = graph.add(DiaryNode(parameter_overrides=[Override('rate', value=5.0)]))
    node.trigger_configure()
    assert dict(node.seen) == {'autostart': False, 'rate': 5.0, 'count': 3, 'word': 'one'}
    assert node.seen.rate == node.seen['rate']
    with pytest.raises(AttributeError, match='frozen'):
        node.seen.rate = 6.0
    with pytest.raises(AttributeError, match='speed'):
        _ = node.seen.speed


@pytest.mark.parametrize(('name', 'value'), [
    ('rate', 0.5), ('rate', 21.0), ('rate', math.nan), ('rate', 'fast'), ('count', 0), ('count', 2.5),
    ('word', 'three')])
def test_a_bad_parameter_is_refused(graph: RosGraph, name: str, value: Any) -> None:
    node = graph.add(DiaryNode())
    before = node.get_parameter(name).value
    result, = node.set_parameters([Override(name, value=value)])
    assert not result.successful
    assert name in result.reason or 'type' in result.reason.lower()
    assert node.get_parameter(name).value == before
    assert node.set_parameters([Override('rate', value=2.0)])[0].successful


def test_parameters_describe_themselves(graph: RosGraph) -> None:
    node = graph.add(DiaryNode())
    rate, count = node.describe_parameter('rate'), node.describe_parameter('count')
    assert (rate.description, rate.floating_point_range[0].to_value) == ('Hz', 20.0)
    assert count.integer_range[0].from_value == 1
    assert 'one, two' in node.describe_parameter('word').additional_constraints


@pytest.mark.parametrize(('node', 'name'), [(PolicyNode, 'policy'), (ExecutorNode, 'executor'),
                                            (SimNode, 'sim'), (ExpertNode, 'expert'), (RecorderNode, 'recorder')])
def test_the_parameter_files_hold_every_parameter_and_its_default(root: Path, node: type, name: str) -> None:
    written = yaml.safe_load((root / f'config/nodes/{name}.yaml').read_text())['/**'][name]['ros__parameters']
    assert written == {'autostart': False} | {parameter.name: parameter.default for parameter in node.PARAMETERS}


@pytest.mark.parametrize(('arguments', 'said'), [
    (['-p', 'control_hz:=500.0'], 'control_hz'), (['-p', 'interpolation:=quintic'], "'linear'"),
    (['-p', 'contract:=nobody', '-p', 'autostart:=true'], "no contract 'nobody'")])
def test_a_process_that_cannot_start_says_why_and_leaves_with_code_1(
        ros_environment: dict[str, str], python: str, arguments: list[str], said: str) -> None:
    done = subprocess.run([python, '-m', 'flow_vla_ros.executor_node', '--ros-args', *arguments], env=ros_environment,
                          capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert said in done.stderr
    assert 'Traceback' not in done.stderr
