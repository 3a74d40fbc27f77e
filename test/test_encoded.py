"""Recorded episodes after a policy's encoders: what is encoded, and when what was encoded before still counts."""

from __future__ import annotations

from pathlib import Path
import shutil

from bag_tools import CONTRACT as BAG_CONTRACT
from bag_tools import MARKS, record, steps
from core_samples import make_episodes, make_policy, small_contract
import numpy as np
import torch

from flow_vla_core.encoders import Vocabulary
from flow_vla_core.evaluation.encoded import Encoded, encode_bags, encode_episodes
from flow_vla_core.policy import FlowVLA, PolicyConfig
from flow_vla_core.training.checkpoint import save_checkpoint
from flow_vla_core.transforms import Statistics
from flow_vla_core.types import Condition


def test_windows_are_encoded_as_the_policy_encodes_them() -> None:
    contract = small_contract()
    policy = make_policy(contract)
    learn, held = make_episodes(contract, 3), make_episodes(contract, 1, 5)
    encoded = encode_episodes(policy, learn, held)
    assert len(encoded.actions) == 3 * 9 + 5 and encoded.held.tolist() == [False] * 27 + [True] * 5
    torch.testing.assert_close(policy.normalise_actions.inverse(encoded.actions[0, 0]),
                               torch.from_numpy(learn[0].actions[0]))
    assert encoded.mask[8].tolist() == [True, False, False, False]
    assert encoded.conditions.tokens is not None and len(encoded.conditions) == 32


def test_what_was_encoded_is_read_again_under_the_same_key_only(tmp_path: Path) -> None:
    encoded = Encoded(Condition(torch.randn(3, 2)), torch.randn(3, 4, 2), torch.ones(3, 4, dtype=torch.bool),
                      torch.tensor([False, False, True]))
    encoded.save(tmp_path / 'encoded.safetensors', {'seed': 0})
    found = Encoded.load(tmp_path / 'encoded.safetensors', {'seed': 0})
    assert found.digest == encoded.digest and found.conditions.tokens is None
    assert Encoded.load(tmp_path / 'encoded.safetensors', {'seed': 1}) is None
    assert Encoded.load(tmp_path / 'nothing', {}) is None
    whole = (tmp_path / 'encoded.safetensors').read_bytes()
    (tmp_path / 'encoded.safetensors').write_bytes(whole[:-20])
    assert Encoded.load(tmp_path / 'encoded.safetensors', {'seed': 0}) is None
    assert [path.name for path in tmp_path.iterdir()] == ['encoded.safetensors']


def test_bags_that_changed_are_encoded_anew(tmp_path: Path) -> None:
    bags, policy = tmp_path / 'bags', tmp_path / 'policy'
    statistics = {name: Statistics.of(np.random.default_rng(0).normal(size=(9, size)))
                  for name, size in (('state', BAG_CONTRACT.state_dim), ('actions', BAG_CONTRACT.action_dim))}
    words = Vocabulary.from_instructions([MARKS['instruction']])
    save_checkpoint(policy, FlowVLA.create(PolicyConfig.dummy(), BAG_CONTRACT, statistics, words))
    found = []
    for count in (6, 6, 8):
        shutil.rmtree(bags, ignore_errors=True)
        record(bags / 'episode_000001', steps(count))
        found.append(encode_bags(bags, policy, BAG_CONTRACT, tmp_path / 'encoded.safetensors'))
    assert found[0].digest == found[1].digest and len(found[1].actions) == 6
    assert len(found[2].actions) == 8
