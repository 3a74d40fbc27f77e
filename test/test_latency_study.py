"""The latency study: jerk against closed forms, cells that are run once, sums, pictures and the command."""

from __future__ import annotations

from collections.abc import Callable
import csv
from dataclasses import replace
from io import StringIO
import json
from pathlib import Path

from dummy_policy import save_dummy_policy
from hypothesis import given
from hypothesis import strategies as st
import numpy as np
import pytest
from rich.console import Console

from flow_vla_core.contract import RobotContract, config_folder, find_contract
from flow_vla_core.errors import ConfigError, DataError
from flow_vla_core.evaluation.command_trace import Commands, CommandTrace, JerkFigures, without_limits
from flow_vla_core.evaluation.latency_plots import plot_jerk, plot_success, plot_traces
from flow_vla_core.evaluation.latency_results import JERKS, CellResult, Example, results_rows, rows_table, write_csv
from flow_vla_core.evaluation.latency_study import METHODS, Cell, LatencyStudy, Method
from flow_vla_core.evaluation.report import EpisodeResult
from flow_vla_core.execution import ChunkFollower
from flow_vla_core.types import ActionChunk, Continuation, Generated, Observation
from flow_vla_ros.cli import main

PERIOD = 0.01
NAMES = ('lift', 'turn', 'grip')


def make_commands(values: np.ndarray, chunks: np.ndarray, orders: tuple[int, ...] = (3, 2, 0),
                  settle: int = 0) -> Commands:
    """Make commands of a position, a velocity and a gripper out of (K, 3)."""
    return Commands(PERIOD, NAMES, ('m', 'rad/s', '1'), np.array(orders), np.ones(3), settle, values, values, chunks)


def test_jerk_of_a_cubic_position_and_of_a_quadratic_velocity_is_their_constant() -> None:
    times = np.arange(50) * PERIOD
    values = np.stack([5.0 * times ** 3 / 6, 3.0 * times ** 2 / 2, times % 2 > 1], 1)
    inside, meeting = make_commands(values, np.ones(50, int)).jerk(values)
    assert not len(meeting)
    np.testing.assert_allclose(inside[:47], 5.0, rtol=1e-6)
    np.testing.assert_allclose(inside[47:], 3.0, rtol=1e-6)


@pytest.mark.parametrize(('order', 'binomials'), [(2, [1, 1]), (3, [1, 2, 1])])
def test_a_step_where_plans_meet_is_none_inside_of_them(order: int, binomials: list[int]) -> None:
    values = np.zeros((30, 3))
    values[12:] = 1.0
    chunks = np.where(np.arange(30) < 12, 4, 5)
    inside, meeting = make_commands(values, chunks, (order, 0, 0)).jerk(values)
    np.testing.assert_allclose(meeting, np.array(binomials) / PERIOD ** order)
    assert len(inside) == 30 - order - len(binomials) and not inside.any()


def test_what_settles_after_a_change_belongs_to_it_and_what_precedes_the_first_plan_to_nothing() -> None:
    chunks = np.repeat([0, 1, 2], [10, 10, 10])
    values = np.zeros((30, 3))
    values[:10] = np.random.default_rng(0).normal(size=(10, 3))
    inside, meeting = make_commands(values, chunks, (2, 0, 0), settle=4).jerk(values)
    assert (len(inside), len(meeting)) == (18 - 6, 2 + 4)
    assert not inside.any() and not meeting.any()
    nothing = make_commands(values, np.zeros(30, int)).jerk(values)
    assert [len(part) for part in nothing] == [0, 0]


@given(values=st.lists(st.floats(0, 1e6), min_size=1, max_size=50))
def test_figures_of_jerk_are_ordered(values: list[float]) -> None:
    figures = JerkFigures.of(values)
    assert figures.maximum == max(values) and figures.count == len(values)
    assert figures.p99 <= figures.maximum * (1 + 1e-9) and figures.mean <= figures.maximum * (1 + 1e-9)
    assert JerkFigures.of([]) is None


@pytest.mark.parametrize('path', sorted((config_folder() / 'robots').glob('*.yaml')), ids=lambda path: path.stem)
def test_a_trace_keeps_what_plans_said_before_limits(path: Path) -> None:
    contract = RobotContract.load(path)
    dt = contract.rates.policy_dt_ns
    trace = CommandTrace(contract, contract.rates.policy_dt)
    trace.begin(lambda contract: ChunkFollower(contract, control_hz=1 / contract.rates.policy_dt))
    limited = ChunkFollower(contract, control_hz=1 / contract.rates.policy_dt)
    low = np.concatenate([part.limits.min or np.zeros(part.dim) for part in contract.actions])
    actions = np.tile(low.astype(np.float32), (6, 1))
    actions[::2] += 0.004
    measured = {stream.name: np.full(len(stream.names), 0.3, np.float32) for stream in contract.state}
    chunk = ActionChunk(dt, dt, actions, id=3)
    trace.accept(chunk, dt)
    for tick in range(6):
        now = (tick + 1) * dt
        trace.add(now, limited.command(now, measured), measured)
    commands = trace.commands
    np.testing.assert_allclose(commands.planned, actions, atol=1e-6)
    assert not commands.published[:, commands.orders == 2].any()  # the follower with limits heard of no plan
    grippers = [part.kind == 'gripper' for part in contract.actions for _ in part.names]
    assert not commands.orders[grippers].any() and commands.orders.any()


def test_only_grippers_keep_their_bounds(contract: RobotContract) -> None:
    arm, gripper = without_limits(contract).actions
    assert arm.limits.workspace_min is None and min(arm.limits.velocity) > 1e6
    assert gripper == contract.actions[1]


class Ramp:
    """Plans to speed up from a number that is drawn from the seed."""

    asked = 0

    def seed(self, seed: int) -> None:
        self._random = np.random.default_rng(seed)

    def act(self, observation: Observation, continuation: Continuation | None = None) -> Generated:
        Ramp.asked += 1
        actions = np.zeros((8, 4), np.float32)
        actions[:, 0] = self._random.uniform(-0.1, 0.1) + 0.002 * np.arange(8)
        return Generated(actions)


def ramp_source(study: LatencyStudy, method: Method) -> Callable:
    return lambda contract, robot: Ramp()


@pytest.fixture(scope='module')
def contract() -> RobotContract:
    """Meta-World's contract with the smallest pictures."""
    contract = RobotContract.load(find_contract('metaworld'))
    small = {'resolution': (16, 16), 'size': (16, 16)}
    cameras = tuple(camera.model_copy(update=small) for camera in contract.cameras)
    return contract.model_copy(update={'cameras': cameras})


@pytest.fixture
def study(contract: RobotContract, tmp_path: Path) -> LatencyStudy:
    return LatencyStudy(contract, 'policy', tmp_path / 'study', tasks=('drawer-close',), delays=(0, 2), episodes=2,
                        methods=('synchronous', 'guided'), replan_steps=3, max_steps=9)


def test_cells_are_run_once_and_found_again(study: LatencyStudy) -> None:
    Ramp.asked = 0
    first = study.run(source=ramp_source)
    assert [(cell.method, cell.delay) for cell in first] == [
        ('synchronous', 0), ('synchronous', 2), ('guided', 0), ('guided', 2)]
    asked = Ramp.asked
    again = study.run(source=ramp_source)
    assert Ramp.asked == asked > 0
    for left, right in zip(first, again):
        assert left.episodes == right.episodes
        np.testing.assert_array_equal(left.jerks['planned_meeting'].astype(np.float32), right.jerks['planned_meeting'])
        np.testing.assert_array_equal(left.example.published, right.example.published)
    other = replace(study, out=study.out.with_name('other')).run(source=ramp_source)
    np.testing.assert_array_equal(first[2].example.published, other[2].example.published)


def test_waiting_for_a_plan_shows_as_jerk_where_plans_meet(study: LatencyStudy) -> None:
    longer = replace(study, methods=('synchronous',), delays=(2,), replan_steps=5, max_steps=16, episodes=1)
    waited, = longer.run(source=ramp_source)
    assert (waited.example.chunks == np.repeat([0, 1, 0, 2, 0], [2, 5, 2, 5, 2])).all()
    row, = results_rows([waited])
    assert row.jerks['planned_meeting'].maximum > 1000 * row.jerks['planned_inside'].maximum


@pytest.mark.parametrize(('changes', 'said'), [
    ({'episodes': 3}, 'episodes was 2, now it is 3'), ({'beta': 1.0}, 'beta was 5.0'),
    ({'checkpoint': 'other'}, "policy was 'policy'")])
def test_cells_that_were_found_with_other_settings_are_an_error(study: LatencyStudy, changes: dict, said: str) -> None:
    study = replace(study, delays=(0,), methods=('guided',))
    study.run(source=ramp_source)
    with pytest.raises(ConfigError, match=said):
        replace(study, **changes).run(source=ramp_source)


def test_a_damaged_cell_is_named(study: LatencyStudy) -> None:
    path = study.path(Cell('guided', 0, 'drawer-close'))
    path.parent.mkdir(parents=True)
    path.write_text('{"method": "guided"')
    with pytest.raises(DataError, match='guided-0-drawer-close.json'):
        study.run(source=ramp_source)


@pytest.mark.parametrize(('changes', 'said'), [
    ({'methods': ('guide',)}, "methods: 'guide'.*'guided'"), ({'tasks': ('drawer-shut',)}, "tasks: 'drawer-shut'"),
    ({'delays': (-1,)}, 'delays'), ({'episodes': 0}, 'episodes: 0')])
def test_wrong_orders_are_refused_by_name(study: LatencyStudy, changes: dict, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        replace(study, **changes)


def test_methods_have_their_own_schedule_mode_and_policy(study: LatencyStudy) -> None:
    study = replace(study, methods=tuple(METHODS), prefix_checkpoint='trained')
    chosen = {cell.method: study.settings(cell) for cell in study.cells()}
    assert [(item.schedule, item.realtime) for item in chosen.values()] == [
        ('synchronous', 'none'), ('asynchronous', 'none'), ('ensembling', 'none'), ('asynchronous', 'guided'),
        ('asynchronous', 'prefix')]
    assert [study.policy_of(METHODS[name]) for name in ('guided', 'prefix')] == ['policy', 'trained']


def make_cell(method: str, delay: int, successes: int, task: str = 'lift') -> CellResult:
    episodes = [EpisodeResult(task, 'go', seed, seed < successes, 40 + seed, 100) for seed in range(10)]
    values = np.random.default_rng(delay).normal(size=(20, 3))
    example = Example(PERIOD, NAMES, ('m', 'rad/s', '1'), values, values, np.repeat([1, 2], 10))
    jerks = dict(zip(JERKS, (np.array([1.0, 3.0]), np.array([4.0, 6.0]), np.ones(3), np.empty(0))))
    return CellResult(method, delay, task, episodes, 0.05, 12.0, 30.0, {'CHUNK_TOO_OLD': 2}, {}, jerks, example)


def test_cells_are_summed_up_over_tasks() -> None:
    cells = [make_cell('guided', 4, 8), make_cell('guided', 0, 10), make_cell('guided', 0, 10, 'push'),
             make_cell('guided', 4, 6, 'push')]
    best, late = results_rows(cells)
    assert (best.delay, best.successes, best.episodes, best.kept) == (0, 20, 20, 1.0)
    assert (late.successes, late.rate, late.kept, late.refused, late.seconds) == (14, 0.7, 0.7, 4, 3.0)
    assert late.length == pytest.approx(0.05 * (sum(range(40, 48)) + sum(range(40, 46))) / 14)
    assert late.ratio('published', 'mean') == pytest.approx(2.5) and late.ratio('planned') is None
    assert late.interval[0] < 0.7 < late.interval[1]


def test_results_are_written_and_drawn(tmp_path: Path) -> None:
    cells = [make_cell(method, delay, 9 - delay) for method in ('guided', 'prefix') for delay in (0, 4)]
    cells[0].save(tmp_path / 'cell.json')
    read = CellResult.load(tmp_path / 'cell.json')
    assert (read.episodes, read.refusals, read.example.names) == (cells[0].episodes, {'CHUNK_TOO_OLD': 2}, list(NAMES))
    rows = results_rows(cells)
    write_csv(tmp_path / 'rows.csv', rows)
    written = list(csv.DictReader((tmp_path / 'rows.csv').open()))
    assert [float(line['success']) for line in written] == [row.rate for row in rows]
    assert float(written[0]['published_ratio_mean']) == pytest.approx(2.5)
    plot_success(tmp_path / 'success.png', rows)
    plot_jerk(tmp_path / 'jerk.png', rows)
    plot_traces(tmp_path / 'traces.png', [cells[1], cells[3]])
    assert all((tmp_path / f'{name}.png').stat().st_size > 5000 for name in ('success', 'jerk', 'traces'))
    console = Console(width=120, file=StringIO())
    console.print(rows_table(rows))
    text = console.file.getvalue()
    assert 'guided' in text and '5/10' in text


def test_the_command_runs_a_study(contract: RobotContract, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    contract.dump(tmp_path / 'robot.yaml')
    policy = save_dummy_policy(tmp_path / 'policy', contract)
    words = ['study', '--checkpoint', str(policy), '--out', str(tmp_path / 'out'), '--contract',
             str(tmp_path / 'robot.yaml'), '--tasks', 'drawer-close', '--delays', '0,1', '--episodes', '1',
             '--max-steps', '4', '--replan-steps', '2', '--steps', '1']
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code == 0
    values = json.loads((tmp_path / 'out' / 'study.json').read_text())
    assert [(row['method'], row['delay']) for row in values['rows']] == [
        (method, delay) for method in METHODS for delay in (0, 1)]
    assert (tmp_path / 'out' / 'commands-drawer-close.png').is_file()
    assert '10 cells' in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main([*words[:9], '--delays', 'soon'])
    assert "'soon'" in capsys.readouterr().err
