"""Nothing mixes devices, checked without one: tensors that hold no numbers stand in for those of a GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
import sys

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from flow_vla_core.flows import FLOWS
from flow_vla_core.generators import FAMILIES, Generator, Guide, Student
from flow_vla_core.networks import NetworkConfig, Sizes
from flow_vla_core.types import Condition

SIZES = Sizes(5, 7, 3)
MADE = [*((family, 'mlp') for family in FAMILIES), ('flow_matching', 'unet'), ('flow_matching', 'transformer')]
ASK_NUMBERS = {'consistency', 'meanflow', 'shortcut'}  # their losses depend on numbers, which such tensors lack
SOLVE = {'planar', 'continuous'}  # so do the steps of these flows' samples
made_of = pytest.mark.parametrize(('family', 'kind'), MADE)


class OneDevice(TorchDispatchMode):
    """Refuses operations on tensors of two devices, but for copies, numbers and indices, which CUDA allows."""

    def __torch_dispatch__(self, func: Callable, types: object, args: tuple = (), kwargs: dict | None = None) -> object:
        """Look at the devices, then run the operation."""
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor) and leaf.ndim]
        devices = {tensor.device.type for tensor in tensors}
        assert len(devices) < 2 or 'copy' in str(func) or str(func).startswith('aten.index.'), f'{func} mixes {devices}'
        return func(*args, **(kwargs or {}))


@pytest.fixture(autouse=True)
def without_checks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Leave out the checks of numbers, which are not there."""
    for name, module in list(sys.modules.items()):
        if name.startswith('flow_vla_core.'):
            for check, answer in (('all_finite', lambda _: True), ('bounds_of', lambda _: (0.0, 1.0))):
                if hasattr(module, check):
                    monkeypatch.setattr(module, check, answer)
    with OneDevice():
        yield


def make(family: str, kind: str) -> Generator:
    """Make a generator on the other device, with a teacher if it needs one."""
    network = NetworkConfig(kind, 8, 1, 2)
    made = FAMILIES[family].dummy(SIZES).build(SIZES, network)
    if isinstance(made, Student):
        made.learn_from(FAMILIES['flow_matching'].dummy(SIZES).build(SIZES, network))
    return made.to('meta')


def blank(*shape: int) -> Tensor:
    """Return a tensor on the other device."""
    return torch.zeros(shape, device='meta')


def test_two_devices_are_noticed() -> None:
    with pytest.raises(AssertionError, match='mixes'):
        blank(3) + torch.zeros(3)


@made_of
def test_losses_stay_on_their_device(family: str, kind: str) -> None:
    if family in ASK_NUMBERS:
        pytest.skip('the loss depends on numbers')
    mask = torch.ones(4, 5, dtype=torch.bool, device='meta')
    made = make(family, kind)
    made.loss(blank(4, 5, 7), Condition(blank(4, 3)), mask, torch.Generator()).backward()


@made_of
def test_samples_stay_on_their_device(family: str, kind: str) -> None:
    made, condition, random = make(family, kind), Condition(blank(4, 3)), torch.Generator()
    guides = [{'guide': Guide(torch.zeros(4, 2, 7), torch.ones(5))}] if made.guidable else []
    for asked in ({}, {'prefix': torch.zeros(4, 2, 7)}, *guides):
        assert made.sample(condition, generator=random, **asked).device.type == 'meta'


@pytest.mark.parametrize('name', FLOWS)
def test_density_flows_stay_on_their_device(name: str) -> None:
    flow = FLOWS[name](5, 3).to('meta').eval()
    distribution = flow(blank(4, 3))
    if name != 'continuous':
        assert distribution.log_prob(blank(4, 5)).device.type == 'meta'
    if name not in SOLVE:
        assert distribution.sample((2,)).device.type == 'meta'
