"""Pictures of flows, comparisons and toys: the numbers behind them, that the data reach them, and the command."""

from __future__ import annotations

import json
from pathlib import Path

from core_samples import make_episodes, make_policy, small_contract
import numpy as np
from PIL import Image
import pytest
import torch

from flow_vla_core.errors import ConfigError, DataError
from flow_vla_core.evaluation import show as show_module
from flow_vla_core.evaluation.compare import Comparison, choose_entries, default_entries
from flow_vla_core.evaluation.comparison_plots import (
    plot_chunks,
    plot_comparison,
    plot_losses,
    plot_straightness,
    plot_success,
)
from flow_vla_core.evaluation.cost import make_chunks
from flow_vla_core.evaluation.flow_plots import Evolution, plot_actions, plot_evolution, record_evolution
from flow_vla_core.evaluation.gallery import EDGE, EXACT, Gallery, Picture
from flow_vla_core.evaluation.gallery_plot import plot_gallery
from flow_vla_core.evaluation.show import show_bimodal, show_policy
from flow_vla_core.evaluation.toys import FLOORS
from flow_vla_core.evaluation.trials import BimodalTrial
from flow_vla_core.generators import FlowMatchingConfig
from flow_vla_core.networks import NetworkConfig, Sizes
from flow_vla_core.training.checkpoint import save_checkpoint
from flow_vla_core.training.config import LoopConfig
from flow_vla_core.types import Condition
from flow_vla_ros.cli import main

SMALL = NetworkConfig('mlp', 8, 1)
SIZES = Sizes(5, 3, 2)
LOOP = LoopConfig(steps=2, batch_size=8, warm_up=1)


def seeded(seed: int = 0) -> torch.Generator:
    """Return a source of randomness."""
    return torch.Generator().manual_seed(seed)


def pixels(path: Path) -> np.ndarray:
    """Read a picture."""
    with Image.open(path) as image:
        return np.asarray(image.convert('L'))


def drift(config: FlowMatchingConfig, bias: float) -> torch.nn.Module:
    """Return a flow whose velocity is the same everywhere."""
    generator = config.build(SIZES, SMALL)
    torch.nn.init.constant_(generator.network.leave.bias, bias)
    return generator


@pytest.mark.parametrize(('solver', 'times'), [('euler', [0, 0.5, 1]), ('midpoint', [0, 0.25, 0.5, 0.75, 1])])
def test_the_way_from_noise_is_recorded(solver: str, times: list[float]) -> None:
    generator, condition = drift(FlowMatchingConfig(solver=solver), 2.0), Condition(torch.zeros(7, 2))
    found = record_evolution(generator, condition, 2, seeded())
    np.testing.assert_allclose(found.times, times)
    noise = torch.randn(7, 5, 3, generator=seeded()).numpy()
    np.testing.assert_allclose(found.states, noise + 2 * found.times[:, None, None, None], atol=1e-5)
    np.testing.assert_array_equal(found.end, make_chunks(generator, condition, 2, seeded()).numpy())


def test_guidance_gives_both_halves_at_once_and_only_one_is_recorded() -> None:
    generator = drift(FlowMatchingConfig(drop=0.1, guidance=2.0), 1.0)
    assert record_evolution(generator, Condition(torch.zeros(7, 2)), 3, seeded()).states.shape == (4, 7, 5, 3)


def test_a_generator_whose_network_sees_no_chunk_on_its_way_is_refused() -> None:
    generator = FlowMatchingConfig().build(SIZES, SMALL)
    generator.network = torch.nn.Identity()
    generator._sample = lambda condition, noise, *_: noise
    with pytest.raises(ConfigError, match='FlowMatching shows no chunk'):
        record_evolution(generator, Condition(torch.zeros(7, 2)))


def test_the_evolution_is_drawn_with_one_chunk_of_the_expert_and_with_many(tmp_path: Path) -> None:
    states = np.random.default_rng(0).normal(size=(3, 9, 4, 2))
    evolution = Evolution(np.linspace(0, 1, 3), states)
    plot_evolution(tmp_path / 'new' / 'one.png', evolution, 'xy', states[-1, :1].repeat(20, 0), 'title')
    plot_evolution(tmp_path / 'many.png', evolution, 'xy', states[0], 'title')
    one, many = pixels(tmp_path / 'new' / 'one.png'), pixels(tmp_path / 'many.png')
    assert one.shape == many.shape and (one != many).any() and (one < 255).mean() > 0.02


def test_distributions_are_drawn_also_when_a_dimension_never_changes(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    expert, made = random.normal(size=(200, 2, 2)), random.normal(1, 1, (100, 2, 2))
    expert[..., 1] = made[..., 1] = -1
    plot_actions(tmp_path / 'far.png', expert, made)
    plot_actions(tmp_path / 'near.png', expert, expert)
    assert (pixels(tmp_path / 'far.png') != pixels(tmp_path / 'near.png')).any()


def test_pictures_of_a_comparison_show_every_family(tmp_path: Path) -> None:
    curves = {f'family_{index}': [(1, 2.0 / (1 + index)), (2, 1.0)] for index in range(23)}
    plot_comparison(tmp_path / 'all.png', curves, 0.6)
    plot_comparison(tmp_path / 'few.png', {'family_0': curves['family_0']})
    assert (pixels(tmp_path / 'all.png') < 255).sum() > 2 * (pixels(tmp_path / 'few.png') < 255).sum()
    plot_losses(tmp_path / 'losses.png', {'a': [(1, 1.0), (2, 0.5)], 'b': [(1, -1.0), (2, -2.0)], 'none': []})
    plot_success(tmp_path / 'success.png', {'a': (0.5, (0.3, 0.7)), 'b': (0.0, (0.0, 0.2))})
    chunks = np.random.default_rng(0).normal(size=(20, 16, 2))
    plot_chunks(tmp_path / 'chunks.png', chunks, {'a': chunks, 'b': chunks, 'c_d': chunks[:1]}, {'a': 'note'})
    for name in ('losses', 'success', 'chunks'):
        assert (pixels(tmp_path / f'{name}.png') < 200).sum() > 1000


def test_straightness_is_drawn(tmp_path: Path) -> None:
    rows = {'independent': [(1, 1.8), (100, 0.48)], 'optimal transport': [(1, 0.51), (100, 0.48)]}
    plot_straightness(tmp_path / 'a.png', rows, {'independent': 9.7, 'optimal transport': 0.03}, 0.4)
    plot_straightness(tmp_path / 'b.png', rows, {'independent': 9.7, 'optimal transport': 9.7})
    assert (pixels(tmp_path / 'a.png') != pixels(tmp_path / 'b.png')).any()


def test_a_gallery_is_trained_once_and_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gallery = Gallery(tmp_path, ('real_nvp', 'flow_matching', 'distilled', 'vae'), ('moons', 'spirals'), LOOP, SMALL, 9)
    pictures = gallery.run()
    assert list(pictures) == ['moons', 'spirals']
    moons, spirals = pictures.values()
    assert list(moons) == [EXACT, 'real_nvp', 'flow_matching', 'distilled', 'vae']
    assert all(picture.samples.shape == (2000, 2) for picture in moons.values())
    assert spirals['vae'].density is None and spirals['vae'].nll is None
    assert spirals[EXACT].density.sum() * (2 * EDGE / 9) ** 2 == pytest.approx(1, abs=0.01), 'counted, not known'
    assert spirals[EXACT].nll is None and spirals['real_nvp'].nll is not None
    monkeypatch.setattr(Gallery, '_train', lambda *_: pytest.fail('trained again'))
    again = gallery.run()
    np.testing.assert_array_equal(again['moons']['real_nvp'].density, moons['real_nvp'].density)
    assert again['moons']['real_nvp'].nll == pytest.approx(moons['real_nvp'].nll)
    plot_gallery(tmp_path / 'gallery.png', pictures)
    assert (pixels(tmp_path / 'gallery.png') < 200).sum() > 5000
    with pytest.raises(ConfigError, match='other settings'):
        Gallery(tmp_path, ('real_nvp',), ('moons',), LoopConfig(steps=3), SMALL).run()


def test_densities_of_the_gallery_are_in_the_toy_s_units(tmp_path: Path) -> None:
    """They integrate to 1 and the mass lies where the samples are, though models learn shrunken points."""
    pictures = Gallery(tmp_path, ('real_nvp', 'flow_matching'), ('moons',), LOOP, SMALL, 24).run()['moons']
    cell = (2 * EDGE / 24) ** 2
    side = (np.arange(24) + 0.5) * 2 * EDGE / 24 - EDGE
    for picture in pictures.values():
        inside = picture.samples[(np.abs(picture.samples) < EDGE).all(1)]
        density = picture.density * cell
        assert density.sum() == pytest.approx(len(inside) / 2000, abs=0.03)
        moments = np.stack([density.sum(0) @ side ** 2, density.sum(1) @ side ** 2]) / density.sum()
        np.testing.assert_allclose(moments, (inside ** 2).mean(0), rtol=0.1)
    exact = pictures.pop(EXACT)
    assert exact.nll == FLOORS['moons']
    for picture in pictures.values():
        assert picture.nll == pytest.approx(-(exact.density * cell * np.log(picture.density)).sum(), abs=0.1)


def test_a_picture_comes_back_from_its_file(tmp_path: Path) -> None:
    for density, nll in ((None, None), (np.ones((3, 3), np.float32), 2.5)):
        Picture(np.zeros((4, 2), np.float32), density, nll).save(tmp_path / 'x' / 'a.safetensors')
        found = Picture.load(tmp_path / 'x' / 'a.safetensors')
        assert found.samples.shape == (4, 2) and (found.density is None) == (density is None)
        assert found.nll == nll


@pytest.mark.parametrize(('models', 'toys', 'message'), [(('real_nvq',), ('moons',), "did you mean 'real_nvp'"),
                                                         (('vae',), ('moon',), "did you mean 'moons'")])
def test_unknown_names_are_refused(models: tuple, toys: tuple, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        Gallery(tmp_path, models, toys, LOOP)


def compared(out: Path) -> Path:
    """Leave the results of a comparison; return the folder of flow matching in it."""
    trial = BimodalTrial(network=SMALL, count=50, observations=2, samples=16)
    comparison = Comparison(trial, choose_entries('flow_matching', default_entries()), LOOP, out, (), 0.01)
    comparison.run()
    return out / 'flow_matching'


def test_a_family_is_shown_on_one_observation_with_the_weights_that_were_compared(tmp_path: Path) -> None:
    shown = show_bimodal(compared(tmp_path), 20)
    assert shown.expert.shape == (20, 16, 2) and len(shown.condition) == 20
    assert torch.equal(shown.condition.vector[0], shown.condition.vector[-1])
    assert shown.generator.solver == 'midpoint' and not shown.generator.training


def test_a_policy_is_shown_on_one_moment_or_on_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    contract = small_contract()
    policy = make_policy(contract)
    save_checkpoint(tmp_path, policy)
    episodes = make_episodes(contract, 2)
    monkeypatch.setattr(show_module, 'choose_bags', lambda folders: ([Path('a'), Path('b')], []))
    monkeypatch.setattr(show_module, 'load_episodes', lambda bags, _: episodes[:len(bags)])
    one = show_policy(tmp_path, tmp_path, contract, 5, 3)
    expected = policy.normalise_actions(torch.from_numpy(episodes[0].actions[3:7]))
    torch.testing.assert_close(one.expert, expected.expand(5, 4, 4))
    assert list(one.names) == ['ee x', 'ee y', 'ee z', 'gripper'] and episodes[0].instruction in one.title
    many = show_policy(tmp_path, tmp_path, contract, 50, None)
    assert len(many.expert) == 2 * (9 - 3)  # windows that do not reach past the end
    with pytest.raises(ConfigError, match='moment: 9; allowed: 0 to 8'):
        show_policy(tmp_path, tmp_path, contract, 5, 9)


def run(*words: object) -> int:
    """Run the command on one thread as it does; return its exit code."""
    threads = torch.get_num_threads()
    with pytest.raises(SystemExit) as end:
        main(['plot', *map(str, words)])
    torch.set_num_threads(threads)
    return end.value.code or 0


def test_the_command_draws_a_family_of_a_comparison(tmp_path: Path) -> None:
    family = compared(tmp_path)
    for kind in ('flow', 'actions'):
        assert run(kind, family, '--out', tmp_path / f'{kind}.png', '--samples', 30, '--steps', 2) == 0
        assert (tmp_path / f'{kind}.png').stat().st_size > 5000


def test_the_command_draws_trainings(tmp_path: Path) -> None:
    points = [{'step': step, 'values': {'loss': 1 / step, 'learning_rate': 0.1}} for step in (1, 2, 3)]
    (tmp_path / 'report.json').write_text(json.dumps({'points': points}))
    assert run('training', tmp_path, '--out', tmp_path / 'run.png') == 0
    (tmp_path / 'comparison.json').write_text(json.dumps({'results': [{'name': 'a', 'losses': [[1, 2.0], [2, 1.0]]}]}))
    assert run('training', tmp_path, '--out', tmp_path / 'comparison.png') == 0
    assert pixels(tmp_path / 'run.png').shape != pixels(tmp_path / 'comparison.png').shape


def test_the_command_draws_straightness(tmp_path: Path) -> None:
    figures = {'euler_1': 2.8, 'euler_4': 1.1, 'straightness': 1.8, 'floor': 0.3}
    rows = [{'source': 'gaussian', 'coupling': 'independent',
             **{name: {'mean': value, 'std': 0.0} for name, value in figures.items()}}]
    (tmp_path / 'a.json').write_text(json.dumps({'rows': rows}))
    assert run('straightness', tmp_path / 'a.json', '--out', tmp_path / 'a.png') == 0
    assert (tmp_path / 'a.png').stat().st_size > 5000
    for wrong in ({'rows': []}, {'rows': [{'source': 'gaussian'}]}, {}):
        (tmp_path / 'b.json').write_text(json.dumps(wrong))
        assert run('straightness', tmp_path / 'b.json', '--out', tmp_path / 'b.png') == 2


def test_the_command_draws_a_gallery(tmp_path: Path) -> None:
    assert run('gallery', '--out', tmp_path, '--models', 'real_nvp', '--toys', 'moons,spirals', '--steps', 2) == 0
    assert (tmp_path / 'gallery.png').is_file() and (tmp_path / 'moons' / 'real_nvp.safetensors').is_file()


@pytest.mark.parametrize(('words', 'message'), [
    (('flow', '/nowhere'), 'neither a checkpoint nor'), (('training', '/nowhere'), 'report.json'),
    (('straightness', '/nowhere'), '/nowhere'), (('gallery', '--models', 'x'), "models: 'x'")])
def test_mistakes_on_the_command_line_are_named(words: tuple, message: str, capsys: pytest.CaptureFixture) -> None:
    assert run(*words) == 2
    assert message in capsys.readouterr().err


def test_a_policy_needs_bags_and_a_result_of_bags_is_shown_elsewhere(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / 'policy', make_policy(small_contract()))
    assert run('flow', tmp_path / 'policy') == 2
    family = compared(tmp_path)
    values = json.loads((family / 'result.json').read_text())
    values['settings']['trial']['data'] = 'bags'
    (family / 'result.json').write_text(json.dumps(values))
    with pytest.raises(DataError, match='compared on bags'):
        show_bimodal(family, 5)
