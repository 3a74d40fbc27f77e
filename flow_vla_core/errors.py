"""The exception tree. User mistakes raise one of these, with the offending value and what is allowed."""

from __future__ import annotations

from collections.abc import Iterable
import difflib
from enum import IntEnum

__all__ = [
    'ActionNotFinite', 'CheckpointError', 'ChunkContractMismatch', 'ChunkError', 'ChunkFromFuture', 'ChunkJump',
    'ChunkNotFinite', 'ChunkOverruled', 'ChunkShape', 'ChunkStep', 'ChunkTooOld', 'ChunkUnsure', 'ClockJump',
    'Code', 'ConfigError', 'ContractError', 'DataError', 'DiskFull', 'FlowVLAError', 'ImageInvalid', 'InputError',
    'InstructionMissing', 'InstructionUnknown', 'ObservationError', 'RecordError', 'SolverError', 'StateInvalid',
    'StateNotFinite', 'StreamMissing', 'StreamSkewed', 'StreamStale', 'TrainingError', 'closest', 'in_one_line',
]


class Code(IntEnum):
    """Numbers of refusals; the interface files carry the same ones (a test compares them)."""

    OK = 0
    STREAM_MISSING = 100
    STREAM_STALE = 101
    STREAM_SKEWED = 102
    IMAGE_INVALID = 103
    STATE_INVALID = 104
    STATE_NOT_FINITE = 105
    INSTRUCTION_MISSING = 110
    INSTRUCTION_UNKNOWN = 111
    CLOCK_JUMP = 113
    INFERENCE_FAILED = 120
    ACTION_NOT_FINITE = 121
    CHUNK_SHAPE = 200
    CHUNK_NOT_FINITE = 201
    CHUNK_FROM_FUTURE = 202
    CHUNK_TOO_OLD = 203
    CHUNK_CONTRACT = 204
    CHUNK_STEP = 205
    CHUNK_JUMP = 206
    CHUNK_UNSURE = 207
    CHUNK_OVERRULED = 208
    NO_CHUNK = 210
    STATE_STALE = 211
    EMERGENCY_STOP = 212
    ECHO_MISSING = 213
    COMMAND_NOT_FINITE = 214
    ALREADY_RECORDING = 300
    NOT_RECORDING = 301
    DISK_FULL = 302
    WRITE_FAILED = 303
    TOPIC_MISSING = 304
    NO_INSTRUCTION = 305
    TOPIC_SLOW = 306
    CLOCK_SKEWED = 307
    TIMED_OUT = 400
    CANCELLED = 401
    REPLACED = 402
    NOT_READY = 403
    NOT_ACTING = 404
    STOPPED = 405
    BAD_GOAL = 406


class FlowVLAError(Exception):
    """Is the root of every error that this package raises on purpose."""


class ConfigError(FlowVLAError):
    """Reports a setting that is unknown, missing or out of range."""


class ContractError(ConfigError):
    """Reports a robot contract that can't be used."""


class CheckpointError(FlowVLAError):
    """Reports a checkpoint that is incomplete, damaged or made for something else."""


class DataError(FlowVLAError):
    """Reports a bag or a dataset that can't be used."""


class InputError(FlowVLAError):
    """Reports a tensor that a model can't take: a wrong shape, NaN, or a time outside [0, 1]."""


class TrainingError(FlowVLAError):
    """Reports a training that can't go on."""


class SolverError(FlowVLAError):
    """Reports a differential equation that can't be solved within its limits."""


class ObservationError(FlowVLAError):
    """Reports that no observation can be made now."""

    code = Code.STREAM_MISSING


class StreamMissing(ObservationError):
    """Reports a stream on which nothing has arrived at or before the reference time."""


class StreamStale(ObservationError):
    """Reports a stream whose newest sample is older than the contract allows."""

    code = Code.STREAM_STALE


class StreamSkewed(ObservationError):
    """Reports a sample that is further from the reference time than the contract allows."""

    code = Code.STREAM_SKEWED


class ImageInvalid(ObservationError):
    """Reports an image whose size, encoding or step is not the contract's."""

    code = Code.IMAGE_INVALID


class StateInvalid(ObservationError):
    """Reports a state message that lacks a field or a name."""

    code = Code.STATE_INVALID


class StateNotFinite(ObservationError):
    """Reports NaN or infinity in the state."""

    code = Code.STATE_NOT_FINITE


class InstructionMissing(ObservationError):
    """Reports that no instruction has been given, or an empty one."""

    code = Code.INSTRUCTION_MISSING


class InstructionUnknown(ObservationError):
    """Reports words that the policy was not trained on."""

    code = Code.INSTRUCTION_UNKNOWN


class ClockJump(ObservationError):
    """Reports that ROS time went backwards."""

    code = Code.CLOCK_JUMP


class ActionNotFinite(FlowVLAError):
    """Reports that a model produced NaN or infinity."""

    code = Code.ACTION_NOT_FINITE


class ChunkError(FlowVLAError):
    """Reports an action chunk that the executor refuses."""

    code = Code.CHUNK_SHAPE


class ChunkShape(ChunkError):
    """Reports a chunk whose length does not match its header or the contract."""


class ChunkNotFinite(ChunkError):
    """Reports NaN or infinity in a chunk."""

    code = Code.CHUNK_NOT_FINITE


class ChunkFromFuture(ChunkError):
    """Reports a chunk stamped ahead of the clock."""

    code = Code.CHUNK_FROM_FUTURE


class ChunkTooOld(ChunkError):
    """Reports a chunk whose actions all lie in the past."""

    code = Code.CHUNK_TOO_OLD


class ChunkContractMismatch(ChunkError):
    """Reports a chunk made for another contract."""

    code = Code.CHUNK_CONTRACT


class ChunkStep(ChunkError):
    """Reports a chunk whose step differs from the contract's."""

    code = Code.CHUNK_STEP


class ChunkJump(ChunkError):
    """Reports two actions in a row that no robot within the limits can join."""

    code = Code.CHUNK_JUMP


class ChunkUnsure(ChunkError):
    """Reports a chunk whose confidence is below the least that is followed."""

    code = Code.CHUNK_UNSURE


class ChunkOverruled(ChunkError):
    """Reports a chunk of the policy that came while a person drives."""

    code = Code.CHUNK_OVERRULED


class RecordError(FlowVLAError):
    """Reports that an episode can't be started, written or stopped."""

    def __init__(self, message: str, code: Code = Code.WRITE_FAILED) -> None:
        super().__init__(message)
        self.code = code


class DiskFull(RecordError):
    """Reports that the disk has no room for the recording."""

    def __init__(self, message: str) -> None:
        super().__init__(message, Code.DISK_FULL)


def in_one_line(error: object, limit: int = 300) -> str:
    """Return what somebody else's error or file says, in one line of bounded length that any terminal can show."""
    text = ''.join(letter if letter.isprintable() else '?' for letter in ' '.join(str(error).split()))
    return text if len(text) <= limit else f'{text[:limit]} ...'


def closest(value: str, allowed: Iterable[str]) -> str:
    """Describe what is allowed, beginning with the candidate that looks most like ``value``."""
    allowed = sorted(allowed)
    near = difflib.get_close_matches(value, allowed, n=1, cutoff=0.5)
    listed = ', '.join(repr(name) for name in allowed) or 'nothing'
    return f'did you mean {near[0]!r}? allowed: {listed}' if near else f'allowed: {listed}'
