"""Comparison of families: what a chunk costs, equal terms, resume, the policy's heads, report and command."""

from __future__ import annotations

import csv
from dataclasses import asdict, replace
from functools import partial
import json
from pathlib import Path

from core_samples import make_episodes, make_policy, small_contract
import pytest
from rich.console import Console
import torch

from flow_vla_core.cli import compare as command
from flow_vla_core.errors import ConfigError, DataError
from flow_vla_core.evaluation.compare import Comparison, choose_entries, default_entries
from flow_vla_core.evaluation.comparison_report import ComparisonReport
from flow_vla_core.evaluation.cost import chunks_per_second, count_evaluations, make_chunks, one_thread
from flow_vla_core.evaluation.encoded import encode_episodes
from flow_vla_core.evaluation.family_result import FamilyResult, Measure
from flow_vla_core.evaluation.policy_trial import PolicyTrial, Simulation
from flow_vla_core.evaluation.trials import BimodalTrial
from flow_vla_core.generators import FAMILIES, FlowMatchingConfig, RegressionConfig
from flow_vla_core.networks import NetworkConfig, Sizes
from flow_vla_core.training.checkpoint import load_checkpoint, save_checkpoint
from flow_vla_core.training.config import LoopConfig
from flow_vla_core.types import Condition
from flow_vla_ros.cli import main

SMALL = NetworkConfig('mlp', 8, 1)
LOOP = LoopConfig(steps=3, batch_size=8, warm_up=1, log_every=1)
SIZES = Sizes(4, 2, 3)


def small_trial(**changes) -> BimodalTrial:
    """Return a trial that takes no time."""
    return BimodalTrial(**{'network': SMALL, 'count': 50, 'observations': 2, 'samples': 16, **changes})


def small_comparison(out: Path, names: str = 'regression,distilled', **changes) -> Comparison:
    """Return a comparison of families that learn next to nothing."""
    entries = choose_entries(names, default_entries())
    return Comparison(**{'trial': small_trial(), 'entries': entries, 'loop': LOOP, 'out': out, 'efforts': (1, 2),
                         'timed': 0.01, **changes}).with_teacher()


@pytest.mark.parametrize(('config', 'steps', 'evaluations'), [
    (FlowMatchingConfig(solver='euler'), 3, 3), (FlowMatchingConfig(solver='midpoint'), 3, 6),
    (FlowMatchingConfig(solver='rk4'), 2, 8), (FlowMatchingConfig(steps=7), None, 7), (RegressionConfig(), 5, 1)])
def test_evaluations_of_the_network_are_counted(config: object, steps: int | None, evaluations: int) -> None:
    assert count_evaluations(config.build(SIZES, SMALL), steps) == evaluations


def test_counting_leaves_no_hook_behind() -> None:
    generator = FlowMatchingConfig().build(SIZES, NetworkConfig('transformer', 8, 1, 2))
    count_evaluations(generator)
    assert not generator.network._forward_pre_hooks


def test_the_rate_is_measured_on_one_thread_which_is_given_back() -> None:
    before = torch.get_num_threads()
    generator = FlowMatchingConfig().build(SIZES, SMALL)
    assert chunks_per_second(generator, 1, seconds=0.1) > chunks_per_second(generator, 40, seconds=0.1) > 0
    assert torch.get_num_threads() == before
    with pytest.raises(KeyError), one_thread():
        raise KeyError
    assert torch.get_num_threads() == before


def test_chunks_are_made_in_pieces_without_gradient() -> None:
    generator = RegressionConfig().build(SIZES, SMALL).train()
    condition = Condition(torch.randn(7, 3, generator=torch.Generator().manual_seed(0)))
    made = make_chunks(generator, condition, size=3)
    torch.testing.assert_close(made, generator.sample(condition))
    assert not made.requires_grad and not generator.training


def test_every_family_has_an_entry_that_sees_each_chunk_of_a_batch_once() -> None:
    entries = default_entries()
    assert list(entries) == list(FAMILIES)
    assert all(getattr(entry, 'draws', 1) == 1 for entry in entries.values())


@pytest.mark.parametrize(('names', 'message'), [('regresion', "did you mean 'regression'"), (' , ', 'at least one')])
def test_unknown_names_are_refused(names: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        choose_entries(names, default_entries())


def test_a_student_brings_its_teacher_and_results_stay_for_the_next_time(tmp_path: Path,
                                                                        monkeypatch: pytest.MonkeyPatch) -> None:
    comparison = small_comparison(tmp_path)
    assert list(comparison.entries) == ['flow_matching', 'regression', 'distilled']
    results = comparison.run()
    teacher, regression, student = results
    assert student.teacher_seconds == teacher.seconds > 0 and regression.teacher_seconds == 0
    assert [step for step, _ in teacher.losses] == [1, 2, 3]
    assert [measure.evaluations for measure in teacher.measures] == [10, 2, 4]
    assert [measure.steps for measure in regression.measures] == [1]
    assert teacher.parameters == sum(p.numel() for p in comparison.load('flow_matching').parameters())
    monkeypatch.setattr(Comparison, 'compete', lambda *_: pytest.fail('trained again'))
    assert [asdict(result) for result in comparison.run()] == json.loads(
        json.dumps([asdict(result) for result in results]))


def test_only_what_is_left_is_trained(tmp_path: Path) -> None:
    first, = small_comparison(tmp_path, 'regression').run()
    again, _ = small_comparison(tmp_path, 'regression,vae').run()
    assert again.seconds == first.seconds


def test_results_with_other_settings_are_refused(tmp_path: Path) -> None:
    small_comparison(tmp_path, 'regression').run()
    with pytest.raises(ConfigError, match='found with loop'):
        small_comparison(tmp_path, 'regression', loop=replace(LOOP, steps=4)).run()
    with pytest.raises(ConfigError, match='found with trial'):
        small_comparison(tmp_path, 'regression', trial=small_trial(seed=3)).run()


def test_students_without_a_teacher_are_refused(tmp_path: Path) -> None:
    entries = choose_entries('distilled', default_entries())
    with pytest.raises(ConfigError, match='no entry of family flow_matching'):
        Comparison(small_trial(), entries, LOOP, tmp_path).run()


def test_a_comparison_can_be_repeated_and_several_processes_find_the_same(tmp_path: Path) -> None:
    alone = small_comparison(tmp_path / 'alone', 'regression,vae').run()
    together = small_comparison(tmp_path / 'together', 'regression,vae').run(workers=2)
    for one, other in zip(alone, together):
        assert one.losses == other.losses
        assert one.measures[0].scores == pytest.approx(other.measures[0].scores, rel=1e-4)


def test_regression_ends_between_the_modes_and_flow_matching_less_so(tmp_path: Path) -> None:
    loop = LoopConfig(steps=500, batch_size=128, learning_rate=3e-3, warm_up=20, average=0.98)
    trial = BimodalTrial(network=NetworkConfig('mlp', 64, 1), count=5000, observations=8, samples=64)
    comparison = small_comparison(tmp_path, 'regression,flow_matching', trial=trial, loop=loop, efforts=())
    regression, flow = (result.measures[0].scores for result in comparison.run())
    assert flow['w2'] < 0.75 * regression['w2']
    assert flow['between'] < 0.75 * regression['between']
    assert flow['mode_error'] < 0.15 < 0.3 < regression['mode_error']


def test_a_result_comes_back_from_its_file(tmp_path: Path) -> None:
    result = FamilyResult('a', 5, 1.5, 0.0, [Measure(1, 2, 3.0, {'w2': 0.5})], [[1, 0.25]], {'x': 1}, {'success': 1.0})
    result.save(tmp_path / 'a' / 'result.json')
    assert FamilyResult.load(tmp_path / 'a' / 'result.json') == result
    (tmp_path / 'bad.json').write_text('{"name": "a"}')
    with pytest.raises(DataError, match=r'bad\.json'):
        FamilyResult.load(tmp_path / 'bad.json')


def sample_results() -> list[FamilyResult]:
    """Return results of two families, one of which has acted."""
    measures = [Measure(5, 10, 100.0, {'w2': 0.7, 'between': 0.04}), Measure(1, 2, 500.0, {'w2': 1.2, 'between': 0.5})]
    acted = {'success': 0.8, 'low': 0.5, 'high': 0.9}
    return [FamilyResult('flow_matching', 12345, 60.0, 0.0, measures, [(1, 1.0), (2, 0.5)], {}, acted),
            FamilyResult('distilled', 12345, 30.0, 60.0, measures[1:], [(1, 1.0), (2, 0.1)], {})]


def test_the_report_has_a_row_for_each_family_and_effort(tmp_path: Path) -> None:
    report = ComparisonReport(sample_results(), {'w2': 0.6}, {'data': 'bimodal'})
    report.write(tmp_path)
    with (tmp_path / 'comparison.csv').open(newline='') as file:
        rows = list(csv.DictReader(file))
    assert [(row['name'], row['evaluations'], row['success'], row['w2']) for row in rows] == [
        ('flow_matching', '10', '0.8', '0.7'), ('flow_matching', '2', '', '1.2'), ('distilled', '2', '', '1.2')]
    assert report.curves()['flow_matching'] == [(2, 1.2), (10, 0.7)]
    found = json.loads((tmp_path / 'comparison.json').read_text())
    assert found['reference'] == {'w2': 0.6} and len(found['results']) == 2
    assert all((tmp_path / f'{name}.png').stat().st_size > 5000 for name in ('comparison', 'training', 'success'))


def test_the_table_fits_a_terminal_and_names_each_family_once() -> None:
    console = Console(width=100, record=True, quiet=False, file=open('/dev/null', 'w'))  # noqa: SIM115
    console.print(ComparisonReport(sample_results(), {'w2': 0.6}, {'data': 'bimodal'}).table())
    text = console.export_text()
    assert text.count('flow_matching') == 1 and '80.0%' in text and '30 + 60' in text and '0.600' in text


def policy_trial(folder: Path, simulation: Simulation, **changes) -> PolicyTrial:
    """Return a trial with heads of a small policy."""
    contract = small_contract()
    policy = make_policy(contract)
    save_checkpoint(folder, policy)
    encoded = encode_episodes(policy, make_episodes(contract, 4), make_episodes(contract, 2, 8))
    return PolicyTrial(folder, encoded, simulation, **changes)


def test_a_head_becomes_a_policy_that_acts_as_the_head_does(tmp_path: Path) -> None:
    trial = policy_trial(tmp_path / 'base', Simulation(episodes=0))
    comparison = small_comparison(tmp_path / 'out', 'regression', trial=trial)
    result, = comparison.run()
    assert result.acted == {} and set(result.measures[0].scores) == {'chunk_error', 'w2'}
    made, base = load_checkpoint(tmp_path / 'out' / 'regression' / 'checkpoint'), load_checkpoint(tmp_path / 'base')
    batch, _ = made.fake_batch(2, torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted = comparison.load('regression').sample(base.encode(batch))
        torch.testing.assert_close(made.normalise_actions(made.sample(batch)), wanted, atol=1e-5, rtol=1e-5)
    trial.draw(tmp_path / 'out', comparison.examples(5), [result])
    assert (tmp_path / 'out' / 'regression' / 'actions.png').is_file()


def test_a_network_that_wants_other_conditions_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="network: 'mlp'"):
        policy_trial(tmp_path / 'base', Simulation(episodes=0), network=SMALL)


def test_a_head_is_tried_in_simulation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from flow_vla_core.evaluation import policy_trial as module
    from flow_vla_core.evaluation.report import EpisodeResult, Report, Timing, summarise
    asked = []

    def act(plan: object, **_: object) -> Report:
        asked.append(plan)
        episodes = [EpisodeResult(plan.tasks[0], 'x', seed, seed == 0, 9, 500) for seed in range(4)]
        return Report('direct', plan.checkpoint, '', 0, 500, None, False, summarise(episodes), Timing(), 1.0, episodes)

    monkeypatch.setattr(module, 'evaluate_direct', act)
    trial = policy_trial(tmp_path / 'base', Simulation(('drawer-open',), 4))
    result, = small_comparison(tmp_path / 'out', 'regression', trial=trial).run()
    assert result.acted['success'] == 0.25 and result.acted['low'] < 0.25 < result.acted['high']
    assert asked[0].episodes == 4 and asked[0].checkpoint == str(tmp_path / 'out' / 'regression' / 'checkpoint')


def test_unknown_tasks_are_refused_before_anything_is_trained() -> None:
    with pytest.raises(ConfigError, match="did you mean 'drawer-open'"):
        Simulation(('drawer-opn',))


def test_entries_come_from_a_file(tmp_path: Path) -> None:
    (tmp_path / 'a.yaml').write_text('quick: {family: flow_matching, steps: 1}\nplain: {family: regression}')
    assert command.read_entries(tmp_path / 'a.yaml') == {'quick': FlowMatchingConfig(steps=1),
                                                         'plain': RegressionConfig()}
    for text, message in (('quick: {family: flow_macthing}', r'quick\.family.*did you mean'), ('quick: 3', 'family'),
                          ('quick: {family: regression, step: 1}', 'step')):
        (tmp_path / 'a.yaml').write_text(text)
        with pytest.raises(ConfigError, match=message):
            command.read_entries(tmp_path / 'a.yaml')
    with pytest.raises(ConfigError, match='no file'):
        command.read_entries(tmp_path / 'b.yaml')


def run(*words: str) -> int:
    """Run the command; return its exit code."""
    with pytest.raises(SystemExit) as end:
        main(['compare', *words])
    return end.value.code or 0


def test_the_command_compares_and_draws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, 'BimodalTrial', partial(BimodalTrial, count=50, observations=2, samples=16))
    threads = torch.get_num_threads()
    words = ['--out', str(tmp_path), '--generators', 'regression,meanflow', '--steps', '2', '--batch-size', '8',
             '--width', '8', '--depth', '1', '--efforts', '1']
    assert run(*words) == 0
    torch.set_num_threads(threads)
    assert {path.name for path in tmp_path.iterdir()} == {'regression', 'meanflow', 'comparison.json', 'comparison.csv',
                                                          'comparison.png', 'training.png', 'chunks.png'}


@pytest.mark.parametrize(('words', 'message'), [
    (['--generators', 'x'], "generators: 'x'"), (['--data', '/nowhere'], 'policy: none'),
    (['--efforts', '1,0'], "efforts: '1,0'"), (['--network', 'cnn'], 'network.kind')])
def test_mistakes_on_the_command_line_are_named(words: list[str], message: str, tmp_path: Path,
                                                capsys: pytest.CaptureFixture) -> None:
    assert run('--out', str(tmp_path), *words) == 2
    assert message in capsys.readouterr().err
