"""Evaluation over ROS: real simulation and executor, plans from the scripted expert in the policy's place."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
import json
import os
from pathlib import Path
import subprocess
import sys

from dummy_policy import save_dummy_policy
from expert_demo import ExpertGraph
import psutil
import pytest
from rich.console import Console

from flow_vla_core.contract import RobotContract, find_contract
from flow_vla_core.errors import CheckpointError, FlowVLAError
from flow_vla_core.evaluation.direct import DirectSettings
from flow_vla_core.evaluation.sweep import Plan
from flow_vla_ros.bringup import ManagedProcesses, default_checkpoint
from flow_vla_ros.evaluate import checkpoint_folder, evaluate_over_ros

pytestmark = pytest.mark.ros


@pytest.fixture
def make_graph(ros_environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    tests = str(Path(__file__).parent)
    monkeypatch.setenv('PYTHONPATH', os.pathsep.join(filter(None, [tests, os.environ.get('PYTHONPATH')])))
    contract = RobotContract.load(find_contract('metaworld'))

    def make(*tasks: str, **settings: object):
        values = {'instruction': None, 'episodes': 1, 'max_steps': 200, 'blank_images': False, **settings}
        loop = DirectSettings(max_steps=values.pop('max_steps'), blank_images=values.pop('blank_images'))
        return ExpertGraph(Plan('expert', contract, tasks, seed=500_000, settings=loop, **values), tmp_path)

    return make


@pytest.fixture
def quiet():
    return Console(quiet=True)


def descendants():
    return [process for process in psutil.Process().children(recursive=True) if process.status() != 'zombie']


def test_the_expert_succeeds_over_ros(make_graph: Callable[..., ExpertGraph], quiet: Console):
    graph = make_graph('drawer-close', 'faucet-open', episodes=2)
    before = len(descendants())
    report = evaluate_over_ros(graph, quiet)
    assert {name: task.successes for name, task in report.tasks.items()} == {'drawer-close': 2, 'faucet-open': 2}
    assert [(e.task, e.seed) for e in report.episodes] == [
        ('drawer-close', 500_000), ('drawer-close', 500_001), ('faucet-open', 500_000), ('faucet-open', 500_001)]
    timing = report.timing
    assert timing.ticks > 100 and timing.control_hz > 1 and 0 <= timing.late_tick_fraction <= 1
    assert timing.chunk_ms.p50 == 1.5 and timing.camera_to_command_ms.p50 > 0
    assert len(descendants()) == before
    values = json.loads(report.write(graph.out).read_text())
    assert values['mode'] == 'ros' and values['control_hz'] == timing.control_hz


def test_an_empty_instruction_leaves_the_robot_where_it_is(make_graph: Callable[..., ExpertGraph], quiet: Console):
    report = evaluate_over_ros(make_graph('drawer-close', instruction='', max_steps=20), quiet)
    assert report.tasks['drawer-close'].successes == 0
    assert report.episodes[0].steps >= 20


def test_unknown_words_end_the_evaluation_with_the_reason(make_graph: Callable[..., ExpertGraph], quiet: Console):
    with pytest.raises(FlowVLAError, match="unknown words in 'fly away'"):
        evaluate_over_ros(make_graph('drawer-close', instruction='fly away'), quiet)


def test_a_node_that_ends_is_named_with_its_last_words(make_graph: Callable[..., ExpertGraph], quiet: Console):
    graph = make_graph('drawer-close')

    class Broken(ExpertGraph):
        def specs(self):
            return [replace(spec, module='no_such_module') if spec.name == 'policy' else spec
                    for spec in super().specs()]

    before = len(descendants())
    with pytest.raises(FlowVLAError, match='(?s)policy ended.*No module named no_such_module'):
        evaluate_over_ros(Broken(graph.plan, graph.out), quiet)
    assert len(descendants()) == before


def test_the_nodes_are_told_what_the_plan_says(make_graph: Callable[..., ExpertGraph]):
    graph = make_graph('drawer-close', instruction='', blank_images=True, steps=3)
    specs = {spec.name: spec.parameters for spec in graph.specs()}
    policy = specs['policy']
    assert policy['blank_images'] and policy['allow_empty_instruction'] and policy['steps'] == 3
    assert policy['replan_steps'] == graph.plan.settings.replan_steps
    assert RobotContract.load(policy['contract']) == graph.plan.contract
    assert specs['executor']['use_sim_time'] and 'use_sim_time' not in specs['sim']


def test_a_policy_is_evaluated_from_the_command_line(ros_environment: dict[str, str], tmp_path: Path) -> None:
    contract = RobotContract.load(find_contract('metaworld'))
    command = [sys.executable, '-m', 'flow_vla_ros.cli', 'evaluate', '--checkpoint',
               str(save_dummy_policy(tmp_path / 'policy', contract)), '--out', str(tmp_path / 'out'), '--tasks',
               'faucet-open', '--episodes', '1', '--max-steps', '40', '--blank-images']
    done = subprocess.run(command, env=ros_environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / 'out' / 'report.json').read_text())
    assert report['mode'] == 'ros' and report['blank_images'] is True
    assert report['episodes'][0]['steps'] >= 40 and report['chunk_ms']['count'] > 1
    assert 'blank_images is set' in (tmp_path / 'out' / 'logs' / 'policy.log').read_text()
    assert 'faucet-open' in done.stdout


def test_a_missing_checkpoint_is_named(tmp_path: Path):
    with pytest.raises(CheckpointError, match='nowhere'):
        checkpoint_folder(tmp_path / 'nowhere')
    if default_checkpoint().is_dir():
        assert checkpoint_folder(None).resolve() == default_checkpoint().resolve()


def test_processes_end_with_the_block(make_graph: Callable[..., ExpertGraph]):
    before = len(descendants())
    with ManagedProcesses(logs=make_graph('drawer-close').logs) as processes:
        for spec in make_graph('drawer-close').specs():
            processes.start(spec)
        assert len(descendants()) > before
    assert len(descendants()) == before
