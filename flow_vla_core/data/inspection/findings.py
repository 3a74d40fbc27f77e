"""What can be wrong with a bag: one number, one severity and one sentence for each kind of it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from flow_vla_core.errors import ConfigError, closest

__all__ = ['MEANING', 'Finding', 'FindingCode', 'Severity', 'read_codes', 'worst']


class Severity(IntEnum):
    """Says how bad a finding is: an error makes data wrong or unusable, a warning wants to be looked at."""

    INFO = 0
    WARNING = 1
    ERROR = 2


class FindingCode(IntEnum):
    """Numbers the kinds of findings; they never change their meaning."""

    UNREADABLE = 500
    DAMAGED = 501
    EMPTY = 502
    COUNT_DIFFERS = 503
    CONTRACT_DIFFERS = 510
    CONTRACT_UNKNOWN = 511
    TOPIC_MISSING = 512
    TOPIC_SILENT = 513
    TYPE_WRONG = 514
    TYPE_FOREIGN = 515
    MESSAGE_DAMAGED = 516
    STAMP_ZERO = 520
    STAMP_FUTURE = 521
    STAMP_BACKWARDS = 522
    STAMP_FAR = 523
    STAMP_REPEATED = 524
    REORDERED = 525
    GAP = 530
    DROPS = 531
    LOST = 532
    RATE_LOW = 533
    SKEWED = 534
    NO_OVERLAP = 535
    RESOLUTION_WRONG = 540
    ENCODING_WRONG = 541
    IMAGE_INVALID = 542
    FROZEN = 543
    NOT_FINITE = 550
    OUT_OF_LIMITS = 551
    JUMP = 552
    CONSTANT = 553
    NO_INSTRUCTION = 560
    NOT_ENDED = 561
    IDLE = 562
    DUPLICATE = 570
    OUTLIER_LENGTH = 571
    OUTLIER_ACTION = 572


INFO, WARNING, ERROR = Severity
C = FindingCode
MEANING: dict[FindingCode, tuple[Severity, str]] = {
    C.UNREADABLE: (ERROR, 'no bag, or nothing in it can be read'),
    C.DAMAGED: (ERROR, 'cut off or damaged; what stands before is read'),
    C.EMPTY: (ERROR, 'no messages at all'),
    C.COUNT_DIFFERS: (WARNING, 'the metadata speak of another number of messages'),
    C.CONTRACT_DIFFERS: (ERROR, 'recorded for a contract with another interface'),
    C.CONTRACT_UNKNOWN: (WARNING, 'no contract, or none named (--contract); only the topics were inspected'),
    C.TOPIC_MISSING: (ERROR, 'a topic of the contract was not recorded'),
    C.TOPIC_SILENT: (ERROR, 'a topic of the contract has no messages'),
    C.TYPE_WRONG: (ERROR, "recorded with another type than the contract's"),
    C.TYPE_FOREIGN: (WARNING, 'no definition of the message type is known; its contents were not looked at'),
    C.MESSAGE_DAMAGED: (ERROR, 'messages that are not what their type says'),
    C.STAMP_ZERO: (ERROR, 'headers without a stamp'),
    C.STAMP_FUTURE: (ERROR, 'stamped later than received: clocks are not synchronised'),
    C.STAMP_BACKWARDS: (ERROR, 'stamps jump back and go on from there'),
    C.STAMP_FAR: (ERROR, 'stamped long before it was received: another clock, or a driver that does not stamp'),
    C.STAMP_REPEATED: (WARNING, 'several messages with one stamp; only the last of them counts'),
    C.REORDERED: (WARNING, 'messages that came after later ones; reading sorts them'),
    C.GAP: (WARNING, 'a stream paused; an error where the contract does not allow it'),
    C.DROPS: (WARNING, 'single messages are missing, by the period of the stream'),
    C.LOST: (WARNING, 'the recorder itself counted messages that were lost on the way'),
    C.RATE_LOW: (WARNING, 'slower than the policy steps: the same sample is seen twice'),
    C.SKEWED: (ERROR, 'lies further before the reference time than the contract allows'),
    C.NO_OVERLAP: (ERROR, 'there is no time at which all streams and commands exist'),
    C.RESOLUTION_WRONG: (ERROR, "images of another size than the contract's"),
    C.ENCODING_WRONG: (ERROR, "images of another encoding than the contract's"),
    C.IMAGE_INVALID: (ERROR, 'images whose bytes do not fit their description'),
    C.FROZEN: (WARNING, 'the same picture again and again while the robot moves'),
    C.NOT_FINITE: (ERROR, 'NaN or infinity'),
    C.OUT_OF_LIMITS: (ERROR, "commands outside of the contract's limits"),
    C.JUMP: (WARNING, 'commands in a row that no robot within the limits can join'),
    C.CONSTANT: (WARNING, 'a value that never changes in any bag'),
    C.NO_INSTRUCTION: (ERROR, 'no words, neither in the marks nor on the topic'),
    C.NOT_ENDED: (WARNING, 'an episode begins and no mark ends it'),
    C.IDLE: (WARNING, 'nothing moves for a large part of the time; data trim --idle cuts the ends'),
    C.DUPLICATE: (ERROR, 'holds the same messages as another bag'),
    C.OUTLIER_LENGTH: (WARNING, 'much longer or shorter than the others'),
    C.OUTLIER_ACTION: (WARNING, 'commands much larger, or with larger jumps, than in the others'),
}


@dataclass(frozen=True)
class Finding:
    """Says what is wrong, where.

    Args:
        code: kind of it.
        bag: path as it was given; empty for something about the whole set.
        topic: or stream, or name of a value; empty for the whole bag.
        message: one line with the numbers.
        severity: by default the one of its kind.

    Example:
        >>> print(Finding.of('STAMP_ZERO', 'bags/a', '/joint_states', '3 of 40 stamps are zero'))
        error   520 STAMP_ZERO       bags/a /joint_states: 3 of 40 stamps are zero
    """

    code: FindingCode
    bag: str
    topic: str
    message: str
    severity: Severity

    @classmethod
    def of(cls, name: str, bag: str, topic: str, message: str, severity: Severity | None = None) -> Finding:
        """Build from the name of a code."""
        code = FindingCode[name]
        return cls(code, bag, topic, message, MEANING[code][0] if severity is None else severity)

    def __str__(self) -> str:
        place = ' '.join(filter(None, (self.bag, self.topic))) or 'all bags'
        return f'{self.severity.name.lower():7} {self.code.value} {self.code.name:16} {place}: {self.message}'

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {'severity': self.severity.name.lower(), 'number': self.code.value, 'code': self.code.name,
                'bag': self.bag, 'topic': self.topic, 'message': self.message}


def worst(findings: Iterable[Finding]) -> Severity | None:
    """Return the highest severity, or None without findings."""
    return max((finding.severity for finding in findings), default=None)


def read_codes(words: Iterable[str]) -> set[FindingCode]:
    """Read names or numbers of codes, in any case. Raise `ConfigError`, which names what is allowed."""
    codes = set()
    for word in words:
        name = word.strip().upper().replace('-', '_')
        found = {**FindingCode.__members__, **{str(code.value): code for code in FindingCode}}.get(name)
        if found is None:
            raise ConfigError(f'code {word!r}: {closest(name, FindingCode.__members__)}')
        codes.add(found)
    return codes
