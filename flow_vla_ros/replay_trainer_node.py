"""Trains a policy from topics: while bags are played, or while episodes are recorded."""

from __future__ import annotations

from dataclasses import replace
import math
from pathlib import Path
import threading
import traceback
from typing import TYPE_CHECKING

from std_msgs.msg import String

from flow_vla.msg import TrainingStatus
from flow_vla_core.contract import RobotContract, find_contract
from flow_vla_core.data.episode import OUTCOMES, Episode
from flow_vla_core.data.live_episodes import LiveEpisodes
from flow_vla_core.errors import Code, ConfigError, closest
from flow_vla_ros import qos
from flow_vla_ros.diagnostics import DiagnosticsOutbox, wall_clock
from flow_vla_ros.episode_intake import EpisodeIntake
from flow_vla_ros.lifecycle import FlowLifecycleNode, Parameter, Parameters, run

if TYPE_CHECKING:
    from flow_vla_core.training.online import OnlineTraining
    from flow_vla_core.training.online_types import OnlineConfig, OnlineProgress

__all__ = ['ReplayTrainerNode', 'main']

MEGABYTE = 2 ** 20


class ReplayTrainerNode(FlowLifecycleNode):
    """Makes episodes of what it hears, keeps some of them, and trains on those in a thread of its own.

    Each checkpoint gets a folder that never changes, announced on ``checkpoint``: a policy with ``follow_checkpoints``
    takes it over while it acts. The thread of ROS never waits for decoding or training.
    """

    PARAMETERS = (
        Parameter('contract', 'metaworld', 'robot contract: a file, or a name in config/robots'),
        Parameter('out', 'runs/replay', 'folder of the run'),
        Parameter('resume', False, 'go on from what is in the folder of the run, if there is anything'),
        Parameter('checkpoint', '', 'policy to go on from, with its statistics and words; empty: a new one'),
        Parameter('config', '', 'settings of the training: a file, or a name in config/train; empty: the defaults'),
        Parameter('steps', 0, 'of the optimiser, in all; 0: as the settings have it', minimum=0),
        Parameter('batch_size', 0, 'windows in a step; 0: as the settings have it', minimum=0),
        Parameter('checkpoint_every', 0, 'steps between two checkpoints; 0: as the settings have it', minimum=0),
        Parameter('keep_checkpoints', 3, 'that are left in the folder of the run', minimum=1, maximum=1000),
        Parameter('start_episodes', 5, 'from so many on a new policy is made, with their statistics and words',
                  minimum=1),
        Parameter('words', [''], 'instructions that come later, whose words a new policy is to know'),
        Parameter('outcomes', ['success'], 'of the episodes that are trained on: success, failure, unknown'),
        Parameter('max_frames', 20000, 'in the buffer', minimum=1),
        Parameter('max_mb', 4096, 'memory of the buffer', minimum=1),
        Parameter('keep', 'newest', 'which episodes stay when the buffer is full', choices=('newest', 'reservoir')),
        Parameter('replay', 0.0, 'no faster than each frame received is drawn so often on average; 0: no limit',
                  minimum=0.0),
        Parameter('silence', 2.0, 'after which an episode without marks has ended, s', minimum=0.1, maximum=3600.0),
        Parameter('queue_mb', 512, 'memory for messages that wait to be decoded', minimum=1),
        Parameter('device', 'auto', 'where to train: auto, cpu, cuda'),
        Parameter('threads', 1, 'threads of torch; 0: as many as torch likes', minimum=0, maximum=256),
        Parameter('status_hz', 2.0, 'rate of ~/status, Hz', minimum=0.1, maximum=100.0),
    )

    def on_setup(self, parameters: Parameters) -> None:
        """Read the settings, find a policy to go on from, and listen."""
        from flow_vla_core.training.buffer import EpisodeBuffer
        self._settings = parameters
        self._contract = RobotContract.load(find_contract(parameters.contract))
        self._outcomes = _outcomes(parameters.outcomes)
        self._buffer = EpisodeBuffer(parameters.max_frames, parameters.max_mb * MEGABYTE, parameters.keep)
        self._training = self._new_training(_config(parameters))
        self._diagnostics = DiagnosticsOutbox(self, self._contract.label)
        self._status = self.create_publisher(TrainingStatus, '~/status', qos.STATUS)
        self._checkpoints = self.create_publisher(String, 'checkpoint', qos.LATCHED)
        self._thread: threading.Thread | None = None
        self._state = -1

    def on_start(self) -> None:
        """Begin to listen and to train; after a pause, from where it was."""
        if self._thread is not None:
            self._training = self._new_training(replace(_config(self._settings), resume=True))
        live = LiveEpisodes(self._contract, self._receive, self._training.refuse, silence=self._settings.silence,
                            room=self._settings.max_mb * MEGABYTE)
        self._intake = EpisodeIntake(self, self._contract, live, self._settings.queue_mb * MEGABYTE)
        self._thread = threading.Thread(target=self._run, args=(self._training,), name='training', daemon=True)
        self._thread.start()
        self._own_timers = [self.create_timer(1 / self._settings.status_hz, self._publish_status, clock=wall_clock()),
                            self.create_timer(1.0, self._intake.look_after, clock=wall_clock())]

    def on_stop(self) -> None:
        """Save and cease to train and to listen; the episodes stay."""
        for timer in self._own_timers:
            self.destroy_timer(timer)
        self._intake.close()
        self._training.stop()
        self._thread.join()
        self._publish_status()

    def _new_training(self, config: OnlineConfig) -> OnlineTraining:
        from flow_vla_core.training.online import OnlineTraining
        from flow_vla_core.training.precision import choose_device
        folder = Path(self._settings.out).expanduser().absolute()
        device = choose_device(self._settings.device)
        return OnlineTraining(self._contract, self._buffer, config, folder, device, self._announce)

    def _run(self, training: OnlineTraining) -> None:
        import torch
        if self._settings.threads:
            torch.set_num_threads(self._settings.threads)
        try:
            training.run()
        except Exception:
            self.get_logger().error(f'training failed\n{traceback.format_exc()}')

    def _receive(self, episode: Episode) -> None:
        if episode.outcome not in self._outcomes:
            self._training.refuse(f'{episode.source}: its outcome is {episode.outcome}')
            return
        self._training.receive(episode)

    def _announce(self, folder: Path) -> None:
        self.get_logger().info(f'checkpoint: {folder}')
        self._checkpoints.publish(String(data=str(folder)))

    def _publish_status(self) -> None:
        progress = self._training.progress()
        status = TrainingStatus(
            state=progress.state, message=progress.message, step=progress.step, loss=progress.loss,
            learning_rate=progress.learning_rate, steps_per_second=progress.steps_per_second,
            episodes=progress.episodes, frames=progress.frames, received=progress.received, refused=progress.refused,
            checkpoint=progress.checkpoint)
        status.header.stamp = self.get_clock().now().to_msg()
        self._status.publish(status)
        self._tell(progress)

    def _tell(self, progress: OnlineProgress) -> None:
        from flow_vla_core.training.online_types import State
        if progress.state != self._state:
            self._state = progress.state
            log = self.get_logger()
            text = f'{progress.state.name.lower()}: {progress.message or f"step {progress.step}"}'
            log.error(text) if progress.state == State.FAILED else log.info(text)
        loss = '' if math.isnan(progress.loss) else f'{progress.loss:.4f}'
        self._diagnostics.publish(progress.state != State.FAILED, Code.OK, progress.message or progress.state.name, {
            'step': progress.step, 'loss': loss, 'steps per second': f'{progress.steps_per_second:.1f}',
            'episodes': progress.episodes, 'frames': progress.frames, 'received': progress.received,
            'refused': progress.refused, 'checkpoint': progress.checkpoint,
            'waiting to be decoded': f'{self._intake.waiting_bytes / MEGABYTE:.0f} MB'})


def _config(parameters: Parameters) -> OnlineConfig:
    from flow_vla_core.cli.train import load_config
    from flow_vla_core.training.online_types import OnlineConfig
    changes = {name: parameters[name] or None for name in ('steps', 'batch_size', 'checkpoint_every')}
    return OnlineConfig(load_config(parameters.config or None, **changes), parameters.start_episodes,
                        tuple(text for text in parameters.words if text),
                        Path(parameters.checkpoint).expanduser() if parameters.checkpoint else None,
                        parameters.resume, parameters.keep_checkpoints, parameters.replay)


def _outcomes(names: list[str]) -> set[str]:
    for name in names:
        if name not in OUTCOMES:
            raise ConfigError(f'outcomes: {name!r}; {closest(name, OUTCOMES)}')
    return set(names)


def main() -> None:
    """Run the node."""
    run(ReplayTrainerNode)


if __name__ == '__main__':
    main()
