"""Words to numbers, and numbers to one vector."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
import re

import torch
from torch import Tensor, nn

from flow_vla_core.errors import InstructionMissing, InstructionUnknown, closest

__all__ = ['LanguageEncoder', 'Vocabulary', 'drop_words']

PADDING, NOTHING, FIRST = 0, 1, 2


@dataclass(frozen=True)
class Vocabulary:
    """Numbers the words that a policy was trained on; 0 is padding and 1 stands for an empty instruction.

    Args:
        words: known words; word i has the number 2 + i.

    Example:
        >>> Vocabulary.from_instructions(['open the door', 'close the door']).encode('Close the door!')
        [2, 5, 3]
    """

    words: tuple[str, ...]

    @classmethod
    def from_instructions(cls, instructions: Iterable[str]) -> Vocabulary:
        """Collect the words of some instructions."""
        return cls(tuple(sorted({word for text in instructions for word in _split(text)})))

    def with_words(self, words: Iterable[str]) -> Vocabulary:
        """Return this vocabulary with further words after its own, which keep their numbers."""
        return Vocabulary(self.words + tuple(sorted(set(words) - set(self.words))))

    def __len__(self) -> int:
        return FIRST + len(self.words)

    def encode(self, text: str, *, allow_empty: bool = False) -> list[int]:
        """Number the words of an instruction; case and punctuation don't matter.

        Raises:
            InstructionMissing: for an empty text, unless ``allow_empty``.
            InstructionUnknown: for words that are not known; names them and the closest known ones.
        """
        words = _split(text)
        if not words and not allow_empty:
            raise InstructionMissing('the instruction is empty')
        unknown = [word for word in words if word not in self.words]
        if unknown:
            raise InstructionUnknown('; '.join(f'unknown word {word!r}: {closest(word, self.words)}'
                                               for word in unknown))
        return [FIRST + self.words.index(word) for word in words] or [NOTHING]

    def batch(self, texts: Sequence[str], *, allow_empty: bool = False) -> Tensor:
        """Number several instructions: (B, T) int64, padded with 0."""
        rows = [self.encode(text, allow_empty=allow_empty) for text in texts]
        words = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
        for index, row in enumerate(rows):
            words[index, :len(row)] = torch.tensor(row)
        return words


class LanguageEncoder(nn.Module):
    """Reads learned word embeddings with an LSTM; its last state is the instruction's vector.

    Args:
        vocabulary: number of word numbers.
        width: of embeddings, LSTM and result L.

    Example:
        >>> LanguageEncoder(7, width=8)(torch.tensor([[2, 5, 0], [3, 4, 6]])).shape
        torch.Size([2, 8])
    """

    def __init__(self, vocabulary: int, width: int = 64) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width, padding_idx=PADDING)
        self.read = nn.LSTM(width, width, batch_first=True)
        self.leave = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, words: Tensor) -> Tensor:
        """(B, T) -> (B, L); padding changes nothing."""
        states, _ = self.read(self.embed(words))
        last = (words != PADDING).sum(1).clamp(min=1) - 1
        return self.leave(states[torch.arange(len(words), device=words.device), last])


def drop_words(words: Tensor, share: float, generator: torch.Generator | None = None) -> Tensor:
    """Replace a share of the instructions (B, T) by the empty one."""
    if share == 0:
        return words
    dropped = (torch.rand(len(words), generator=generator) < share).to(words.device)
    nothing = torch.full_like(words, PADDING)
    nothing[:, 0] = NOTHING
    return torch.where(dropped[:, None], nothing, words)


def _split(text: str) -> list[str]:
    return re.findall(r"[^\W_]+(?:['-][^\W_]+)*", text.lower())
