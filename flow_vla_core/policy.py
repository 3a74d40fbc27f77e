"""The policy: encoders, fusion, generator and normalisation, bound to one robot contract."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from flow_vla_core.contract import RobotContract
from flow_vla_core.encoders import Fusion, ImageEncoder, LanguageEncoder, StateEncoder, Vocabulary, drop_words
from flow_vla_core.errors import ConfigError, closest
from flow_vla_core.generators import FlowMatchingConfig, Generator, GeneratorConfig, Guide, Refined, Student
from flow_vla_core.networks import NetworkConfig, ResidualMLP, Sizes
from flow_vla_core.transforms import SCALES, Normaliser, Statistics
from flow_vla_core.types import Batch, Condition

__all__ = ['FlowVLA', 'ImageConfig', 'PolicyConfig']


SHARED = ('horizon', 'language_width', 'state_width', 'condition_width', 'image', 'state_scale',
          'action_scale')  # by a student and its teacher


@dataclass(frozen=True)
class ImageConfig:
    """Sizes `ImageEncoder`.

    Args:
        widths: channels of stem, fine and coarse block.
        points: of the spatial softmax.
        features: width of one camera's vector.

    Example:
        >>> ImageConfig(points=16).features
        128
    """

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
        state_scale: ``standard``, mean and standard deviation to 0 and 1; or ``quantile``, the 1 % and 99 % quantiles
            to -1 and 1.
        action_scale: the same for actions.

    Raises:
        ConfigError: for a scale that is unknown.

    Example:
        >>> PolicyConfig(horizon=7).build_generator(action_dim=4).sizes
        Sizes(horizon=7, action_dim=4, condition_dim=256, token_dim=0)
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
    state_scale: str = 'standard'
    action_scale: str = 'quantile'

    def __post_init__(self) -> None:
        for key in ('state_scale', 'action_scale'):
            if getattr(self, key) not in SCALES:
                raise ConfigError(f'{key}: {getattr(self, key)!r}; {closest(getattr(self, key), SCALES)}')

    @classmethod
    def dummy(cls) -> PolicyConfig:
        """Return the smallest policy, for tests."""
        return cls(4, 8, 8, 16, ImageConfig((8, 8, 8), 4, 8), NetworkConfig('transformer', 8, 1, 2),
                   FlowMatchingConfig(steps=2, draws=2))

    def sizes(self, action_dim: int) -> Sizes:
        """Return the sizes of chunk and condition; tokens are made for the network that attends to them."""
        tokens = self.condition_width if self.network.kind == 'transformer' else 0
        return Sizes(self.horizon, action_dim, self.condition_width, tokens)

    def build_generator(self, action_dim: int) -> Generator:
        """Make the untrained generator. Raise `ConfigError` if one of its settings is out of range."""
        sizes = self.sizes(action_dim)
        generator = self.generator.build(sizes, self.network)
        if not self.refiner:
            return generator
        shape = (sizes.horizon, sizes.action_dim, sizes.condition_dim)
        return Refined(generator, ResidualMLP(*shape, self.condition_width, 2))


class FlowVLA(nn.Module):
    """Turns observations and words into action chunks in the contract's units.

    Args:
        config: sizes.
        contract: of the robot.
        statistics: of the training data; keys ``state`` and ``actions``.
        vocabulary: words that it knows.

    Example:
        >>> from flow_vla_core.contract import find_contract
        >>> contract = RobotContract.load(find_contract('metaworld'))
        >>> numbers = [[0.0] * contract.state_dim, [1.0] * contract.state_dim]
        >>> statistics = {'state': Statistics.of(numbers), 'actions': Statistics.of([row[:4] for row in numbers])}
        >>> words = Vocabulary.from_instructions(['open the drawer'])
        >>> policy = FlowVLA.create(PolicyConfig.dummy(), contract, statistics, words)
        >>> batch, actions = policy.fake_batch(2)
        >>> policy.sample(batch).shape
        torch.Size([2, 4, 4])
    """

    def __init__(self, config: PolicyConfig, contract: RobotContract, statistics: Mapping[str, Statistics],
                 vocabulary: Vocabulary) -> None:
        super().__init__()
        self.config, self.contract = config, contract
        self.statistics, self.vocabulary = dict(statistics), vocabulary
        self.normalise_state = Normaliser.of(statistics['state'], config.state_scale)
        self.normalise_actions = _normalise_actions(config, statistics['actions'])
        self.language = LanguageEncoder(len(vocabulary), config.language_width)
        self.cameras = nn.ModuleDict({camera.name: ImageEncoder(
            camera.channels * contract.history, config.language_width, config.image.widths, config.image.points,
            config.image.features) for camera in contract.cameras})
        self.state = StateEncoder(contract.state_dim, contract.history, config.state_width)
        widths = {**{f'camera/{name}': config.image.features for name in self.cameras},
                  'state': config.state_width, 'language': config.language_width}
        self.fusion = Fusion(widths, config.condition_width,
                             config.sizes(contract.action_dim).token_dim > 0)
        self.generator = config.build_generator(contract.action_dim)

    @classmethod
    def create(cls, config: PolicyConfig, contract: RobotContract, statistics: Mapping[str, Statistics],
               vocabulary: Vocabulary) -> FlowVLA:
        """Make an untrained policy with its convolutions laid out for speed."""
        return cls(config, contract, statistics, vocabulary).to(memory_format=torch.channels_last)

    @property
    def student(self) -> Student | None:
        """The part that learns from a trained generator, if the family is of that kind."""
        inner = _unrefined(self.generator)
        return inner if isinstance(inner, Student) else None

    def learn_from(self, teacher: FlowVLA) -> None:
        """Begin as a trained policy: its encoders are copied and stay as they are, its generator, without a refiner, is
        the teacher.

        Args:
            teacher: with the same encoders, statistics and words.

        Raises:
            ConfigError: if this policy's family learns from no teacher, or the two do not fit; names the setting.
        """
        if self.student is None:
            raise ConfigError(f'generator.family: {self.config.generator.family!r} learns from no teacher')
        for key in SHARED:
            _check_equal(f'policy.{key}', getattr(self.config, key), getattr(teacher.config, key), 'teacher')
        if (self.statistics, self.vocabulary) != (teacher.statistics, teacher.vocabulary):
            raise ConfigError('statistics and words must be those of the teacher')
        self.student.learn_from(_unrefined(teacher.generator))
        for name, part in self.named_children():
            if name != 'generator':
                part.load_state_dict(getattr(teacher, name).state_dict())
                part.requires_grad_(False)

    def begin_as(self, other: FlowVLA) -> None:
        """Take the weights of a trained policy, to learn on. Words that it does not know keep theirs.

        Settings that give the weights no other shape, as ``generator.prefix_steps``, may differ.

        Args:
            other: of the same sizes and with the same statistics; its words come first among this policy's.

        Raises:
            ConfigError: if the two do not fit; names setting or weight.
        """
        owner = 'pretrained policy'
        _check_equal('generator.family', self.config.generator.family, other.config.generator.family, owner)
        for key in ('horizon', 'state_scale', 'action_scale'):
            _check_equal(f'policy.{key}', getattr(self.config, key), getattr(other.config, key), owner)
        if self.statistics != other.statistics or self.vocabulary.words[:len(other.vocabulary.words)] != \
                other.vocabulary.words:
            raise ConfigError('statistics and words must be those of the pretrained policy')
        mine, theirs = self.state_dict(), other.state_dict()
        embedding = 'language.embed.weight'
        theirs[embedding] = torch.cat([theirs[embedding], mine[embedding][len(other.vocabulary):]])
        for name in mine | theirs:
            shapes = [tuple(weights[name].shape) if name in weights else 'none' for weights in (mine, theirs)]
            if shapes[0] != shapes[1]:
                raise ConfigError(f'the settings give {name} the shape {shapes[0]}; the pretrained policy has '
                                  f'{shapes[1]}')
        self.load_state_dict(theirs)

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
               prefix: Tensor | None = None, guide: Guide | None = None,
               generator: torch.Generator | None = None) -> Tensor:
        """Make chunks (B, H, A) in the contract's units.

        Args:
            batch: what was observed.
            noise: (B, H, A) to begin from; drawn if not given.
            steps: solver steps; None takes the configured number.
            prefix: (B, D, A) in the contract's units, actions that the chunks begin with.
            guide: what is left of the plan in force, in the contract's units; not together with a prefix.
            generator: source of randomness.

        Raises:
            ConfigError: for a guide that the family can't follow.
            InputError: as the generator does.
        """
        return self.decode(self.encode(batch), noise=noise, steps=steps, prefix=prefix, guide=guide,
                           generator=generator)

    def decode(self, condition: Condition, *, noise: Tensor | None = None, steps: int | None = None,
               prefix: Tensor | None = None, guide: Guide | None = None,
               generator: torch.Generator | None = None) -> Tensor:
        """Do what `sample` does with what `encode` returned."""
        prefix = None if prefix is None else self.normalise_actions(prefix)
        guide = None if guide is None else guide.normalised(self.normalise_actions)
        made = self.generator.sample(condition, noise=noise, steps=steps, prefix=prefix, guide=guide,
                                     generator=generator)
        return self.normalise_actions.inverse(made)

    def encode(self, batch: Batch) -> Condition:
        """Encode images, words and state, once for all steps of the generator."""
        return self.observe(batch.images, batch.state, self.language(batch.words))

    def observe(self, images: Mapping[str, Tensor], state: Tensor, language: Tensor) -> Condition:
        """Do what `encode` does with words that are encoded already.

        Args:
            images: camera name -> (B, T, C, Y, X) uint8.
            state: (B, T, S) in the contract's units.
            language: (B, L).
        """
        parts = {f'camera/{name}': encoder(images[name].flatten(1, 2), language)
                 for name, encoder in self.cameras.items()}
        parts['state'] = self.state(self.normalise_state(state))
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


def _check_equal(name: str, mine: object, theirs: object, owner: str) -> None:
    if mine != theirs:
        raise ConfigError(f'{name}: {mine!r}; the {owner} has {theirs!r}')


def _unrefined(generator: Generator) -> Generator:
    return generator.base if isinstance(generator, Refined) else generator


def _normalise_actions(config: PolicyConfig, statistics: Statistics) -> Normaliser:
    """Scale actions as is asked for, but leave alone what the family takes as it is."""
    normaliser = Normaliser.of(statistics, config.action_scale)
    kept = list(config.generator.kept(len(statistics.mean)))
    normaliser.offset[kept], normaliser.scale[kept] = 0.0, 1.0
    return normaliser
