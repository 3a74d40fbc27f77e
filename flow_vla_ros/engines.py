"""Checkpoints as engines: loaded once when a node is set up, and in the background while it runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
import os
from pathlib import Path
import queue
import threading
import traceback

import numpy as np

from flow_vla_core.contract import RobotContract
from flow_vla_core.errors import ConfigError, FlowVLAError
from flow_vla_ros.inference import ActingEngine
from flow_vla_ros.parameters import Parameters

__all__ = ['EngineLoader', 'Loaded', 'horizon_of', 'load_engine', 'scale_of']

NICE = 5    # of the loading thread, so that it takes no time from an inference


@dataclass(frozen=True)
class Loaded:
    """Holds how a load ended.

    Args:
        checkpoint: the folder.
        engine: ready to act, None if it is refused.
        message: why.
    """

    checkpoint: str
    engine: ActingEngine | None
    message: str = ''


class EngineLoader:
    """Loads engines in a thread of its own, one after another; of those that wait only the newest is loaded.

    Args:
        load: folder -> engine, warmed up; may raise anything.
        on_loaded: called in the loader's thread when something can be fetched with `take`.
    """

    def __init__(self, load: Callable[[str], ActingEngine], on_loaded: Callable[[], None]) -> None:
        self._load, self._on_loaded = load, on_loaded
        self._asked: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._loaded: queue.SimpleQueue[Loaded] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name='loader', daemon=True)
        self._thread.start()

    def ask(self, checkpoint: str) -> None:
        """Ask for a folder to be loaded."""
        self._asked.put(checkpoint)

    def take(self) -> list[Loaded]:
        """Return what has been loaded, or refused, since the last call."""
        found = []
        while not self._loaded.empty():
            found.append(self._loaded.get())
        return found

    def close(self, timeout: float = 10.0) -> None:
        """End the thread after the load that it is at."""
        self._asked.put(None)
        self._thread.join(timeout)

    def _run(self) -> None:
        _step_back()
        while (checkpoint := self._newest()) is not None:
            self._loaded.put(self._try(checkpoint))
            self._on_loaded()

    def _newest(self) -> str | None:
        asked = self._asked.get()
        while asked is not None and not self._asked.empty():
            asked = self._asked.get()
        return asked

    def _try(self, checkpoint: str) -> Loaded:
        try:
            return Loaded(checkpoint, self._load(checkpoint))
        except FlowVLAError as error:
            return Loaded(checkpoint, None, str(error))
        except Exception as error:
            return Loaded(checkpoint, None, f'{type(error).__name__}: {error}\n{traceback.format_exc()}')


def load_engine(parameters: Parameters, contract: RobotContract) -> ActingEngine:
    """Load the checkpoint that the parameters name. Raise `CheckpointError` if it is not made for the contract."""
    if not parameters.checkpoint:
        raise ConfigError('checkpoint: give the folder of a policy')
    import torch

    from flow_vla_core.engine import Engine
    from flow_vla_core.training.checkpoint import load_checkpoint
    if parameters.threads:
        torch.set_num_threads(parameters.threads)
    engine = Engine(load_checkpoint(Path(parameters.checkpoint), contract), device=parameters.device,
                    steps=parameters.steps or None, seed=parameters.seed,
                    allow_empty=parameters.allow_empty_instruction, realtime=parameters.realtime,
                    beta=parameters.beta, budget=parameters.budget or None, samples=parameters.samples)
    engine.warm_up()
    return engine


def horizon_of(engine: ActingEngine) -> int | None:
    """Return the length of an engine's chunks; None if it does not say."""
    policy = getattr(engine, 'policy', None)
    return None if policy is None else policy.config.horizon


def scale_of(engine: ActingEngine, contract: RobotContract) -> np.ndarray:
    """Return the standard deviations (A,) of the actions that an engine's policy was trained on; 1 where unknown."""
    policy = getattr(engine, 'policy', None)
    found = np.ones(contract.action_dim) if policy is None else np.array(policy.statistics['actions'].std)
    return np.where(found > 0, found, 1.0)


def _step_back() -> None:
    """Give this thread, and those that torch makes for it, less of a busy processor, where the system can."""
    if hasattr(os, 'setpriority') and hasattr(threading, 'get_native_id'):
        try:
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)
        except OSError:
            pass  # as it was
