"""Vocabulary, language, image and state encoders."""

from __future__ import annotations

from core_samples import shake
import pytest
import torch

from flow_vla_core.encoders import (
    Fusion,
    ImageEncoder,
    LanguageEncoder,
    SpatialSoftmax,
    StateEncoder,
    Vocabulary,
    drop_words,
)
from flow_vla_core.errors import InstructionMissing, InstructionUnknown

WORDS = Vocabulary.from_instructions(['open the faucet', 'close the faucet', "don't push"])


def test_words_are_numbered_whatever_their_case_and_punctuation() -> None:
    assert WORDS.encode('Open the FAUCET!') == WORDS.encode(' open  the, faucet ')
    assert len(set(WORDS.encode("don't push open close"))) == 4
    assert min(WORDS.encode('open')) >= 2
    assert len(WORDS) == len(WORDS.words) + 2


@pytest.mark.parametrize('text', ['', '  ', '...', '\n'])
def test_an_empty_instruction_is_refused_unless_allowed(text: str) -> None:
    with pytest.raises(InstructionMissing):
        WORDS.encode(text)
    assert WORDS.encode(text, allow_empty=True) == [1]


def test_unknown_words_are_named_with_the_closest_known() -> None:
    with pytest.raises(InstructionUnknown, match=r"'fawcet'.*faucet.*'zebra'"):
        WORDS.encode('open the fawcet zebra')
    with pytest.raises(InstructionUnknown):
        WORDS.encode('zebra', allow_empty=True)


def test_a_batch_is_padded_with_0() -> None:
    words = WORDS.batch(['open', 'close the faucet'])
    assert words.shape == (2, 3)
    assert words[0, 1:].tolist() == [0, 0]
    assert words[1].tolist() == WORDS.encode('close the faucet')


def language(width: int = 7) -> LanguageEncoder:
    """Return an encoder with weights that are nowhere zero."""
    torch.manual_seed(0)
    encoder = LanguageEncoder(len(WORDS), width)
    shake(encoder)
    return encoder.double()


def test_padding_changes_nothing() -> None:
    encoder = language()
    words = WORDS.batch(['open the faucet'])
    padded = torch.cat([words, torch.zeros(1, 4, dtype=torch.long)], 1)
    torch.testing.assert_close(encoder(padded), encoder(words))


def test_the_order_of_words_and_every_word_matter() -> None:
    encoder = language()
    texts = ['open the faucet', 'close the faucet', 'faucet the open', 'open faucet', '']
    vectors = encoder(WORDS.batch(texts, allow_empty=True))
    assert torch.cdist(vectors, vectors)[~torch.eye(len(texts), dtype=torch.bool)].min() > 1e-4


def test_words_are_dropped_as_often_as_asked() -> None:
    words = WORDS.batch(['open the faucet']).expand(4000, 3)
    generator = torch.Generator().manual_seed(0)
    dropped = drop_words(words, 0.25, generator)
    gone = (dropped[:, 0] == 1)
    assert gone.double().mean().item() == pytest.approx(0.25, abs=0.03)
    assert (dropped[gone] == torch.tensor([1, 0, 0])).all()
    assert torch.equal(dropped[~gone], words[~gone])
    assert drop_words(words, 0) is words


@pytest.mark.parametrize('place', [(0, 0), (0, 10), (6, 0), (6, 10), (3, 5)])
def test_spatial_softmax_finds_a_peak(place: tuple[int, int]) -> None:
    module = SpatialSoftmax(1, 1)
    torch.nn.init.ones_(module.maps.weight)
    image = torch.zeros(1, 1, 7, 11)
    image[0, 0, place[0], place[1]] = 100
    torch.testing.assert_close(module(image)[0].detach(), torch.tensor([place[1] / 5 - 1, place[0] / 3 - 1]))


@pytest.mark.parametrize('size', [(20, 20), (23, 17), (84, 84), (97, 60)])
@pytest.mark.parametrize('channels', [1, 3, 6])
def test_an_image_becomes_one_vector_at_any_size(size: tuple[int, int], channels: int) -> None:
    encoder = ImageEncoder(channels, 5, (8, 8, 16), 4, 13)
    images = torch.randint(0, 256, (2, channels, *size), dtype=torch.uint8)
    kept = images.clone()
    out = encoder(images, torch.randn(2, 5))
    assert out.shape == (2, 13)
    assert out.isfinite().all()
    assert torch.equal(images, kept)


def test_image_and_words_both_matter_and_reach_every_weight() -> None:
    torch.manual_seed(0)
    encoder = ImageEncoder(3, 5, (8, 16, 8), 4, 13)
    shake(encoder)
    images, words = torch.randint(0, 256, (3, 3, 21, 21), dtype=torch.uint8), torch.randn(3, 5)
    out = encoder(images, words)
    assert not torch.allclose(out, encoder(images, words + 1), atol=1e-3)
    assert not torch.allclose(out, encoder(255 - images, words), atol=1e-3)
    out.square().sum().backward()
    unreached = [name for name, p in encoder.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not unreached


def test_elements_do_not_see_each_other_so_the_average_weights_need_no_statistics() -> None:
    encoder = ImageEncoder(3, 5, (8, 8, 8), 4, 13)
    images, words = torch.randint(0, 256, (3, 3, 20, 20), dtype=torch.uint8), torch.randn(3, 5)
    torch.testing.assert_close(encoder(images, words)[1:2], encoder(images[1:2], words[1:2]), atol=1e-5, rtol=1e-4)
    assert not list(encoder.buffers())


def test_state_keeps_the_order_of_its_history() -> None:
    encoder = StateEncoder(3, 2, 7)
    state = torch.randn(5, 2, 3)
    assert encoder(state).shape == (5, 7)
    assert not torch.allclose(encoder(state), encoder(state.flip(1)))


def test_fusion_uses_every_part() -> None:
    fusion = Fusion({'a': 2, 'b': 3}, 7)
    parts = {'b': torch.randn(5, 3), 'a': torch.randn(5, 2)}
    condition = fusion(parts)
    assert condition.vector.shape == (5, 7)
    for name in parts:
        assert not torch.allclose(condition.vector, fusion({**parts, name: parts[name] + 1}).vector)


def test_each_token_comes_from_its_part_alone_and_says_which_it_is() -> None:
    fusion = Fusion({'a': 3, 'b': 3, 'c': 2}, 7, tokens=True)
    parts = {'a': torch.randn(5, 3), 'b': torch.randn(5, 3), 'c': torch.randn(5, 2)}
    usual = fusion(parts).tokens
    assert usual.shape == (5, 3, 7)
    for index, name in enumerate(parts):
        changed = fusion({**parts, name: parts[name] + 1}).tokens
        assert (changed != usual).any(2).any(0).tolist() == [place == index for place in range(3)]
    swapped = fusion({**parts, 'a': parts['b'], 'b': parts['a']}).tokens
    assert not torch.allclose(swapped[:, [1, 0, 2]], usual), 'the same numbers from another part are another token'
