"""The policy: encoders, fusion, generator and normalisation, bound to one robot contract."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from flow_vla_core.contract import RobotContract
from flow_vla_core.encoders import Fusion, ImageEncoder, LanguageEncoder, StateEncoder, Vocabulary, drop_words
from flow_vla_core.generators import FlowMatchingConfig, Generator, GeneratorConfig, Refined
from flow_vla_core.networks import NetworkConfig, ResidualMLP, Sizes
from flow_vla_core.transforms import Normaliser, Statistics
from flow_vla_core.types import Batch, Condition

__all__ = ['FlowVLA', 'ImageConfig', 'PolicyConfig']


@dataclass(frozen=True)
class ImageConfig:
    """Sizes `ImageEncoder`."""

    widths: tuple[int, ...] = (32, 32, 64)
    points: int = 32
    features: int = 128


@dataclass(frozen=True)
class PolicyConfig:
    """Sizes a policy.

    Args:
        horizon: actions in a chunk H.
        language_width: of the instruction's vector.
        state_width: of the encoded state.
        condition_width: of the condition.
        image: of each camera's encoder.
        network: the velocity network.
        generator: the family that makes the chunks, and its settings.
        refiner: whether a small network corrects the chunks.
        instruction_dropout: share of training examples whose words are taken away.
    """

    horizon: int = 12
    language_width: int = 64
    state_width: int = 64
    condition_width: int = 256
    image: ImageConfig = field(default_factory=ImageConfig)
    network: NetworkConfig = field(default_factory=NetworkConfig)
    generator: GeneratorConfig = field(default_factory=FlowMatchingConfig)
    refiner: bool = False
    instruction_dropout: float = 0.05

    @classmethod
    def dummy(cls) -> PolicyConfig:
        """Return the smallest policy, for tests."""
        return cls(4, 8, 8, 16, ImageConfig((8, 8, 8), 4, 8), NetworkConfig('transformer', 8, 1, 2),
                   FlowMatchingConfig(steps=2, draws=2))


class FlowVLA(nn.Module):
    """Turns observations and words into action chunks in the contract's units.

    Args:
        config: sizes.
        contract: of the robot.
        statistics: of the training data; keys ``state`` and ``actions``.
        vocabulary: words that it knows.
    """

    def __init__(self, config: PolicyConfig, contract: RobotContract, statistics: Mapping[str, Statistics],
                 vocabulary: Vocabulary) -> None:
        super().__init__()
        self.config, self.contract = config, contract
        self.statistics, self.vocabulary = dict(statistics), vocabulary
        self.normalise_state = Normaliser.standard(statistics['state'])
        self.normalise_actions = Normaliser.quantile(statistics['actions'])
        self.language = LanguageEncoder(len(vocabulary), config.language_width)
        self.cameras = nn.ModuleDict({camera.name: ImageEncoder(
            camera.channels * contract.history, config.language_width, config.image.widths, config.image.points,
            config.image.features) for camera in contract.cameras})
        self.state = StateEncoder(contract.state_dim, contract.history, config.state_width)
        widths = {**{f'camera/{name}': config.image.features for name in self.cameras},
                  'state': config.state_width, 'language': config.language_width}
        self.fusion = Fusion(widths, config.condition_width, config.network.kind == 'transformer')
        self.generator = self._build_generator()

    @classmethod
    def create(cls, config: PolicyConfig, contract: RobotContract, statistics: Mapping[str, Statistics],
               vocabulary: Vocabulary) -> FlowVLA:
        """Make an untrained policy with its convolutions laid out for speed."""
        return cls(config, contract, statistics, vocabulary).to(memory_format=torch.channels_last)

    def loss(self, batch: Batch, actions: Tensor, mask: Tensor | None = None,
             generator: torch.Generator | None = None) -> Tensor:
        """Return the training loss of chunks (B, H, A) in the contract's units, a scalar.

        Args:
            batch: what was observed.
            actions: what was done.
            mask: (B, H) bool, false past the end of an episode.
            generator: source of randomness.
        """
        words = drop_words(batch.words, self.config.instruction_dropout, generator) if self.training else batch.words
        condition = self.encode(Batch(batch.images, batch.state, words))
        return self.generator.loss(self.normalise_actions(actions), condition, mask, generator)

    def sample(self, batch: Batch, *, noise: Tensor | None = None, steps: int | None = None,
               prefix: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        """Make chunks (B, H, A) in the contract's units.

        Args:
            batch: what was observed.
            noise: (B, H, A) to begin from; drawn if not given.
            steps: solver steps; None takes the configured number.
            prefix: (B, D, A) in the contract's units, actions that the chunks begin with.
            generator: source of randomness.
        """
        known = None if prefix is None else self.normalise_actions(prefix)
        made = self.generator.sample(self.encode(batch), noise=noise, steps=steps, prefix=known, generator=generator)
        return self.normalise_actions.inverse(made)

    def encode(self, batch: Batch) -> Condition:
        """Encode images, words and state, once for all steps of the generator."""
        language = self.language(batch.words)
        parts = {f'camera/{name}': encoder(batch.images[name].flatten(1, 2), language)
                 for name, encoder in self.cameras.items()}
        parts['state'] = self.state(self.normalise_state(batch.state))
        parts['language'] = language
        return self.fusion(parts)

    def fake_batch(self, count: int, generator: torch.Generator | None = None) -> tuple[Batch, Tensor]:
        """Make random observations and chunks (B, H, A) of the right shapes, for warm-up and tests."""
        contract, config = self.contract, self.config
        images = {camera.name: torch.randint(0, 256, (count, contract.history, camera.channels, *camera.size),
                                             generator=generator, dtype=torch.uint8) for camera in contract.cameras}
        state = torch.randn(count, contract.history, contract.state_dim, generator=generator)
        words = torch.randint(1, len(self.vocabulary), (count, 3), generator=generator)
        return Batch(images, state, words), torch.randn(count, config.horizon, contract.action_dim, generator=generator)

    def _build_generator(self) -> Generator:
        config = self.config
        tokens = config.condition_width if config.network.kind == 'transformer' else 0
        sizes = Sizes(config.horizon, self.contract.action_dim, config.condition_width, tokens)
        generator = config.generator.build(sizes, config.network)
        if not config.refiner:
            return generator
        shape = (sizes.horizon, sizes.action_dim, sizes.condition_dim)
        return Refined(generator, ResidualMLP(*shape, config.condition_width, 2))
