"""The loop in one process: driven by the scripted expert, and by plans that say when they are used."""

from __future__ import annotations

from dataclasses import dataclass
import json
from pathlib import Path

from dummy_policy import save_dummy_policy
import numpy as np
import pytest
from rich.console import Console

from flow_vla_core.contract import RobotContract, find_contract
from flow_vla_core.errors import Code, ConfigError
from flow_vla_core.evaluation.direct import DirectLoop, DirectSettings, Episode, observe, run_episodes
from flow_vla_core.evaluation.pair import PairReport, pair_episodes
from flow_vla_core.evaluation.report import EpisodeResult
from flow_vla_core.evaluation.sweep import Plan, evaluate_direct, evaluate_pair, make_episodes
from flow_vla_core.messages import resize_image
from flow_vla_core.simulation.judges import FAUCET_PAIR, faucet_motion
from flow_vla_core.simulation.metaworld import TASKS, MetaWorldRobot
from flow_vla_core.types import Continuation, Generated, Observation
from flow_vla_ros.cli import main


@dataclass
class ExpertActor:
    """Plans by asking the scripted expert of the task that the words name; stays at rest for other words."""

    robot: MetaWorldRobot

    def seed(self, seed: int):
        pass

    def act(self, observation: Observation, continuation: Continuation | None = None):
        if observation.instruction not in TASKS.values():
            return Generated(np.zeros((4, 4), np.float32))
        return Generated(np.repeat(self.robot.expert_action()[None], 4, 0))


def expert(contract: RobotContract, robot: MetaWorldRobot):
    return ExpertActor(robot)


class Tape:
    """Stands in for an actor and a robot, and keeps what passes."""

    def __init__(self, contract: RobotContract, ticks: int = 1):
        self.observations, self.continuations, self.commands, self.steps, self.success = [], [], [], 0, False
        self.control_period = contract.rates.policy_dt / ticks
        self._contract, self._ticks = contract, ticks

    def seed(self, seed: int):
        self.seeded = seed

    def reset(self, task: str, seed: int):
        self.task = task

    def act(self, observation: Observation, continuation: Continuation | None = None):
        self.observations.append(observation)
        self.continuations.append(continuation)
        return Generated(np.full((8, 4), 0.01 * len(self.observations), np.float32))

    def images(self):
        return {c.name: np.full((*c.resolution, 3), self.steps, np.uint8) for c in self._contract.cameras}

    def state(self):
        return {'ee_position': np.array([0, 0.6, 0.2], np.float32), 'gripper': np.array([1], np.float32)}

    def step(self, action: np.ndarray):
        self.commands.append(np.array(action))
        self.steps = len(self.commands) // self._ticks


@pytest.fixture(scope='module')
def contract():
    return RobotContract.load(find_contract('metaworld'))


@pytest.fixture(scope='module')
def tiny(contract: RobotContract):
    """The same robot with the smallest pictures, for experts, who don't look."""
    cameras = tuple(camera.model_copy(update={'resolution': (8, 8), 'size': (8, 8)}) for camera in contract.cameras)
    return contract.model_copy(update={'cameras': cameras})


@pytest.fixture(scope='module')
def quiet():
    return Console(quiet=True)


def play(contract: RobotContract, ticks: int = 1, **settings: object):
    tape = Tape(contract, ticks)
    DirectLoop(contract, tape, tape, DirectSettings(**{'max_steps': 8, **settings})).run(Episode('reach', 7, 'go'))
    return tape


def test_a_plan_is_used_as_late_as_over_the_graph(contract: RobotContract):
    tape = play(contract, replan_steps=4, latency_steps=2)
    velocity = [round(float(command[0]), 3) for command in tape.commands]
    assert velocity == [0, 0, 0.01, 0.01, 0.01, 0.01, 0.02, 0.02]
    assert [o.stamp - tape.observations[0].stamp for o in tape.observations] == [0, 200_000_000]
    assert tape.seeded == 7


def test_without_latency_the_first_command_is_planned(contract: RobotContract):
    tape = play(contract, replan_steps=1, latency_steps=0)
    np.testing.assert_allclose([command[0] for command in tape.commands], 0.01 * np.arange(1, 9), rtol=1e-5)


def test_a_synchronous_robot_executes_its_actions_and_waits_for_the_next_plan(contract: RobotContract):
    tape = play(contract, schedule='synchronous', replan_steps=3, latency_steps=2, max_steps=10)
    velocity = [round(float(command[0]), 3) for command in tape.commands]
    assert velocity == [0, 0, 0.01, 0.01, 0.01, 0, 0, 0.02, 0.02, 0.02]


def test_one_plan_is_made_at_a_time(contract: RobotContract):
    tape = play(contract, replan_steps=2, latency_steps=4, max_steps=12)
    assert [(o.stamp - tape.observations[0].stamp) // 50_000_000 for o in tape.observations] == [0, 4, 8]


def test_a_plan_in_real_time_continues_the_one_in_force(contract: RobotContract):
    tape = play(contract, realtime='guided', replan_steps=3, latency_steps=2)
    assert tape.continuations[0] is None
    second, third = tape.continuations[1:]
    np.testing.assert_array_equal(second.actions, np.full((5, 4), 0.01, np.float32))
    assert (second.delay, second.execute) == (2, 3)
    assert third.actions[0, 0] == np.float32(0.02)
    assert play(contract, replan_steps=3, latency_steps=2).continuations == [None] * 3


def test_plans_are_continued_as_the_actor_has_chosen(contract: RobotContract, monkeypatch: pytest.MonkeyPatch):
    assert play(contract, replan_steps=3, latency_steps=2).continuations == [None] * 3
    monkeypatch.setattr(Tape, 'realtime', 'prefix', raising=False)
    assert play(contract, replan_steps=3, latency_steps=2).continuations[1].delay == 2
    assert play(contract, realtime='none', replan_steps=3, latency_steps=2).continuations == [None] * 3


def test_commands_go_out_at_the_control_rate(contract: RobotContract):
    tape = play(contract, 5, replan_steps=4, latency_steps=1)
    assert len(tape.commands) == 40
    assert [(o.stamp - tape.observations[0].stamp) // 50_000_000 for o in tape.observations] == [0, 4]
    velocity = [round(float(command[0]), 3) for command in tape.commands]
    assert velocity[:5] == [0] * 5 and velocity[10:25] == [0.01] * 15 and velocity[-10:] == [0.02] * 10


def test_plans_that_are_refused_are_counted(contract: RobotContract):
    tape = Tape(contract)
    loop = DirectLoop(contract, tape, tape, DirectSettings(latency_steps=8, max_steps=10))
    loop.run(Episode('reach', 7, 'go'))
    assert loop.refusals == {Code.CHUNK_TOO_OLD: 1}
    assert not np.any(tape.commands)


@pytest.mark.parametrize('blank', [False, True])
def test_the_policy_sees_the_images_or_black(contract: RobotContract, blank: bool):
    tape = play(contract, replan_steps=3, blank_images=blank)
    image = tape.observations[1].images['front']
    assert image.shape == (1, 84, 84, 3)
    assert (image == (0 if blank else 3)).all()


def test_a_history_is_filled_before_the_first_plan(contract: RobotContract):
    longer = contract.model_copy(update={'history': 3})
    tape = Tape(longer)
    DirectLoop(longer, tape, tape, DirectSettings(replan_steps=1, max_steps=5)).run(Episode('reach', 0, 'go'))
    assert len(tape.observations) == 3
    assert [int(image[0, 0, 0]) for image in tape.observations[0].images['front']] == [0, 1, 2]
    assert tape.observations[0].state.shape == (3, 4)


def test_an_observation_is_resized_and_ordered_by_the_contract(contract: RobotContract):
    image = np.random.default_rng(0).integers(0, 255, (168, 168, 3), np.uint8)
    sample = {'stamp': 5, 'front': image, 'gripper_cam': image[::-1], 'gripper': np.array([0.5]),
              'ee_position': np.array([1.0, 2.0, 3.0])}
    observation = observe(contract, [sample], 'go')
    np.testing.assert_array_equal(observation.state, [[1, 2, 3, 0.5]])
    np.testing.assert_array_equal(observation.images['front'][0], resize_image(image, (84, 84)))
    assert observation.stamps['front'] == (5,) and observation.stamp == 5


@pytest.mark.parametrize('settings', [{'replan_steps': 0}, {'latency_steps': -1}, {'max_steps': 0}])
def test_settings_out_of_range_are_named(settings: dict[str, int]):
    with pytest.raises(ConfigError, match=next(iter(settings))):
        DirectSettings(**settings)


def test_the_expert_succeeds_through_the_loop(tiny: RobotContract, quiet: Console):
    plan = Plan('expert', tiny, ('drawer-close', 'faucet-open'), 2, seed=500_000,
                settings=DirectSettings(replan_steps=1, max_steps=250))
    report = evaluate_direct(plan, source=expert, console=quiet)
    assert {name: task.successes for name, task in report.tasks.items()} == {'drawer-close': 2, 'faucet-open': 2}
    assert all(episode.steps < 250 for episode in report.episodes)
    assert report.timing.chunk_ms.count == sum(episode.steps for episode in report.episodes)
    assert report.timing.late_tick_fraction is None


def test_two_workers_find_what_one_finds(tiny: RobotContract):
    orders = [Episode('drawer-close', seed, TASKS['drawer-close']) for seed in (1, 2)]
    settings = DirectSettings(replan_steps=1, max_steps=150)
    alone, shared = ([result for result, _ in run_episodes(tiny, expert, orders, settings, workers=workers)]
                     for workers in (1, 2))
    assert alone == shared and all(result.success for result in alone)


def test_wrong_plans_are_refused_by_name(contract: RobotContract):
    with pytest.raises(ConfigError, match="'faucet-opne'.*'faucet-open'"):
        Plan('c', contract, ('faucet-opne',), 1)
    with pytest.raises(ConfigError, match='episodes'):
        Plan('c', contract, ('faucet-open',), 0)
    with pytest.raises(ConfigError, match='workers'):
        list(run_episodes(contract, expert, [], DirectSettings(), workers=0))


def test_words_can_be_replaced_and_blanked(contract: RobotContract):
    own = make_episodes(Plan('c', contract, ('faucet-open', 'drawer-open'), 2, seed=9))
    assert [(e.task, e.seed, e.instruction) for e in own][1:3] == [
        ('faucet-open', 10, TASKS['faucet-open']), ('drawer-open', 9, TASKS['drawer-open'])]
    assert {e.instruction for e in make_episodes(Plan('c', contract, ('drawer-open',), 2, instruction=''))} == {''}


def test_the_pair_starts_from_one_scene(contract: RobotContract):
    robot = MetaWorldRobot(contract)
    seen = []
    for task in FAUCET_PAIR:
        robot.reset(task, 11)
        seen.append((robot.images(), robot.state(), robot.env.data.qpos.copy()))
    robot.close()
    for camera in seen[0][0]:
        np.testing.assert_array_equal(seen[0][0][camera], seen[1][0][camera])
    np.testing.assert_array_equal(seen[0][2], seen[1][2])


@pytest.mark.parametrize('task', FAUCET_PAIR)
def test_the_judge_agrees_with_the_benchmark_at_every_step(contract: RobotContract, task: str):
    robot = MetaWorldRobot(contract)
    robot.reset(task, 5)
    outcomes = []
    for _ in range(90):
        robot.step(robot.expert_action())
        motion = faucet_motion(robot.env)
        assert motion in ('', task)
        assert (motion == task) == robot.success
        outcomes.append(robot.success)
    assert any(outcomes) and not all(outcomes)


def test_words_decide_the_motion_of_the_pair(tiny: RobotContract, quiet: Console):
    plan = Plan('expert', tiny, FAUCET_PAIR, 1, seed=3, settings=DirectSettings(replan_steps=1, max_steps=120))
    report = evaluate_pair(plan, source=obedient, console=quiet)
    assert report.rates == {'own_words_own_motion': 1.0, 'other_words_other_motion': 1.0,
                            'other_words_own_motion': 0.0, 'empty_words_own_motion': 0.0,
                            'empty_words_other_motion': 0.0}
    assert [count.neither for count in report.counts if count.words == 'empty'] == [1, 1]


def obedient(contract: RobotContract, robot: MetaWorldRobot):
    """Return an expert for whichever faucet task the words name, in either one's scene."""
    return ObedientActor(contract, robot)


class ObedientActor:
    """Turns the faucet as the words say, whatever the scene's own task is."""

    def __init__(self, contract: RobotContract, robot: MetaWorldRobot):
        self._twin = MetaWorldRobot(contract)

    def seed(self, seed: int):
        self._started = False
        self._seed = seed

    def act(self, observation: Observation, continuation: Continuation | None = None):
        task = next((task for task in FAUCET_PAIR if TASKS[task] == observation.instruction), None)
        if task is None:
            return Generated(np.zeros((4, 4), np.float32))
        if not self._started:
            self._twin.reset(task, self._seed)
            self._started = True
        action = self._twin.expert_action()
        self._twin.step(action)
        return Generated(np.repeat(action[None], 4, 0))


def test_pair_counts_are_told_apart():
    own, other = (TASKS[task] for task in FAUCET_PAIR)

    def made(words: str, motion: str):
        return EpisodeResult('faucet-open', words, 0, False, 50, 500, motion)

    report = PairReport.of([made(own, 'faucet-open'), made(own, ''), made(other, 'faucet-close'),
                            made(other, 'faucet-open'), made('', 'faucet-close')])
    counts = {count.words: (count.own_motion, count.other_motion, count.neither) for count in report.counts}
    assert counts == {'own': (1, 0, 1), 'other': (1, 1, 0), 'empty': (0, 1, 0)}
    assert report.rates['other_words_other_motion'] == 0.5


def test_pair_scenes_of_the_two_tasks_differ():
    orders = pair_episodes(2, 100)
    assert len(orders) == 12
    assert {o.seed for o in orders if o.task == FAUCET_PAIR[0]}.isdisjoint(
        {o.seed for o in orders if o.task == FAUCET_PAIR[1]})


@pytest.fixture(scope='module')
def checkpoint(contract: RobotContract, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_dummy_policy(tmp_path_factory.mktemp('policy') / 'dummy', contract)


def run_direct(checkpoint: Path, out: Path, *arguments: str) -> dict:
    with pytest.raises(SystemExit) as end:
        main(['evaluate', '--direct', '--checkpoint', str(checkpoint), '--out', str(out), '--tasks', 'drawer-close',
              '--episodes', '1', '--max-steps', '6', *arguments])
    assert end.value.code == 0
    return json.loads((out / 'report.json').read_text())


def test_a_checkpoint_is_evaluated_from_the_command_line(checkpoint: Path, tmp_path: Path) -> None:
    report = run_direct(checkpoint, tmp_path, '--replan-steps', '2', '--seed', '5')
    assert report['mode'] == 'direct' and report['checkpoint'] == str(checkpoint)
    assert report['tasks']['drawer-close']['seeds'] == [5]
    assert report['chunk_ms']['count'] == 3 and report['chunk_ms']['p50'] > 0
    assert report['late_tick_fraction'] is None


def test_empty_words_and_black_images_are_what_the_report_says(checkpoint: Path, tmp_path: Path) -> None:
    report = run_direct(checkpoint, tmp_path, '--instruction', '', '--blank-images')
    assert report['instruction'] == '' and report['blank_images'] is True
    assert report['tasks']['drawer-close']['instruction'] == ''


def test_words_that_the_policy_does_not_know_are_an_error(checkpoint: Path, tmp_path: Path,
                                                          capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as end:
        main(['evaluate', '--direct', '--checkpoint', str(checkpoint), '--out', str(tmp_path), '--instruction',
              'paint the fence', '--max-steps', '3', '--episodes', '1'])
    assert end.value.code == 2
    assert 'paint' in capsys.readouterr().err
