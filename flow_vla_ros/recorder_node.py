"""Records episodes: the contract's topics, as they are on the wire, into one rosbag2 folder with MCAP each."""

from __future__ import annotations

from pathlib import Path
import sys

from rclpy.clock import JumpThreshold, TimeJump
from rclpy.duration import Duration
from std_srvs.srv import Trigger

from flow_vla.msg import Episode
from flow_vla.srv import MarkEpisode, StartEpisode, StopEpisode
from flow_vla_core.contract import RobotContract, find_contract
from flow_vla_core.data.alignment import STATUS_AGE, STATUS_TOPIC
from flow_vla_core.data.bag_repair import repair_all
from flow_vla_core.data.bag_writer import COMPRESSIONS
from flow_vla_core.data.recording import RecordingOptions
from flow_vla_core.data.typestore import full_name
from flow_vla_core.errors import Code, ConfigError, RecordError
from flow_vla_ros.allocator import keep_memory
from flow_vla_ros.diagnostics import wall_clock
from flow_vla_ros.episodes import OUTCOMES, Ended, Episodes, next_folder
from flow_vla_ros.lifecycle import FlowLifecycleNode, Parameter, Parameters, run
from flow_vla_ros.preflight import Disk, Preflight, least_rates
from flow_vla_ros.recorder_status import StatusOutbox
from flow_vla_ros.topic_taps import TopicTaps

__all__ = ['RecorderNode', 'main', 'next_folder']

OPTIONAL = (('action_chunk', 'flow_vla/msg/ActionChunk'), ('teleop/action_chunk', 'flow_vla/msg/ActionChunk'),
            (STATUS_TOPIC, 'flow_vla/msg/ExecutionStatus'))
MEGABYTE = 2 ** 20
JUMP = JumpThreshold(min_forward=None, min_backward=Duration(seconds=-1), on_clock_change=False)
SWITCH_SECONDS = 0.001  # the writer waits so long at most for the thread that receives


class RecorderNode(FlowLifecycleNode):
    """Writes serialized messages with their own stamps; nothing is decoded.

    `~/start` begins an episode, if nothing speaks against it, and `~/stop` ends it, keeping or deleting it, once every
    stream has come up to the moment of the call. `~/mark` judges it or changes its words, `~/rerecord` begins it again,
    `~/check` says what would speak against a start. A message's log time is the ROS time of its receipt, its publish
    time the stamp of its header where its type has one. Messages that were lost are counted and told.
    """

    PARAMETERS = (
        Parameter('contract', 'metaworld', 'robot contract: a file, or a name in config/robots'),
        Parameter('folder', 'bags', 'where episodes are written, a folder each'),
        Parameter('extra_topics', [''], 'further topics, each as "name type", such as "/tf tf2_msgs/msg/TFMessage"'),
        Parameter('compression', 'auto', 'of the bags', choices=tuple(COMPRESSIONS)),
        Parameter('jpeg', 0, 'quality of raw images as JPEG; 0 keeps them as they are', minimum=0, maximum=100),
        Parameter('sync', True, 'hand what is written to the disk once a second, for the case of a power cut'),
        Parameter('queue_mb', 512, 'memory for messages that wait to be written', minimum=1, maximum=65536),
        Parameter('min_free_mb', 500, 'free space on the disk below which no episode is started', minimum=0),
        Parameter('catch_up', 4.0, 'longest time that a stop waits for streams that lag behind, s', minimum=0.0),
        Parameter('check', True, 'refuse a start while topics are silent or slow, or clocks differ'),
        Parameter('least_rates', [''], 'rates that are checked, each as "topic Hz"; others: one message a policy step'),
        Parameter('clock_tolerance', 0.5, 'largest distance of stamps from the clock at receipt, s', minimum=0.0),
        Parameter('skew_tolerance', 0.3, 'largest difference between the delays of two streams, s', minimum=0.0),
        Parameter('repair', True, 'repair bags in the folder that a killed process has left'),
        Parameter('status_hz', 5.0, 'rate of ~/status, Hz', minimum=0.1, maximum=100.0),
    )

    def on_setup(self, parameters: Parameters) -> None:
        """Repair what was left behind, and subscribe to every topic."""
        self._settings = parameters
        self._contract = RobotContract.load(find_contract(parameters.contract))
        folder = _writable(Path(parameters.folder).expanduser().absolute())
        if parameters.repair:
            self._repair(folder)
        kinds = self._topics(parameters.extra_topics)
        options = RecordingOptions(parameters.queue_mb * MEGABYTE, parameters.jpeg, sync=parameters.sync)
        self._disk = Disk(folder, parameters.min_free_mb)
        self._episodes = Episodes(self, self._contract, folder, kinds, parameters.compression, options)
        self._taps = TopicTaps(self, kinds, self._episodes.receive, {self.resolve_topic_name(STATUS_TOPIC)},
                               STATUS_AGE)
        self._preflight = self._make_preflight(parameters)
        self._status = StatusOutbox(self, self._contract.name, self._taps, self._episodes, self._disk)
        self._problem: RecordError | None = None
        self.create_service(StartEpisode, '~/start', self._on_start_episode)
        self.create_service(StopEpisode, '~/stop', self._on_stop_episode)
        self.create_service(MarkEpisode, '~/mark', self._on_mark)
        self.create_service(Trigger, '~/rerecord', self._on_rerecord)
        self.create_service(Trigger, '~/check', self._on_check)
        self.create_timer(1 / parameters.status_hz, self._report, clock=wall_clock())
        self.create_timer(1.0, self._look_after, clock=wall_clock())
        self._jumps = self.get_clock().create_jump_callback(JUMP, post_callback=self._on_jump)

    def on_start(self) -> None:
        """Count anew what is kept."""
        self._episodes.forget()

    def on_stop(self) -> None:
        """End an episode that is being recorded; it is kept, its outcome as it was marked."""
        if self._episodes.running:
            self._finish(True, Episode.UNKNOWN)

    def on_teardown(self) -> None:
        """Listen to the clock no more."""
        self._jumps.unregister()

    def _on_jump(self, jump: TimeJump) -> None:
        """End an episode: what follows has times that it has had already, and would be read in between."""
        if self._episodes.running:
            self._episodes.fail(RecordError(f'ROS time went back by {-jump.delta.nanoseconds / 1e9:.3f} s; the episode '
                                            'ends there', Code.CLOCK_JUMP))
            self._report()

    def _topics(self, extra: list[str]) -> dict[str, str]:
        contract = self._contract
        named = [*((stream.topic, stream.message) for stream in contract.streams),
                 *((part.topic, part.message) for part in contract.actions),
                 (contract.instruction.topic, 'std_msgs/msg/String'), *OPTIONAL]
        for line in filter(None, extra):
            words = line.split()
            if len(words) != 2:
                raise ConfigError(f'extra_topics: {line!r}: write "name type"')
            named.append((words[0], words[1]))
        return {self.resolve_topic_name(name): full_name(kind) for name, kind in named}

    def _make_preflight(self, parameters: Parameters) -> Preflight:
        streams = tuple(self.resolve_topic_name(stream.topic) for stream in self._contract.streams)
        actions = tuple(self.resolve_topic_name(part.topic) for part in self._contract.actions)
        rates = dict.fromkeys(streams, 1 / self._contract.rates.policy_dt)
        rates |= least_rates(parameters.least_rates, self.resolve_topic_name)
        for topic in rates:
            if topic not in self._taps.meters:
                raise ConfigError(f'least_rates: {topic} is not recorded; there are {", ".join(self._taps.meters)}')
        return Preflight(self._taps, tuple(dict.fromkeys((*streams, *actions, *rates))),
                         {topic: rate for topic, rate in rates.items() if rate > 0}, streams,
                         parameters.clock_tolerance, parameters.skew_tolerance)

    def _repair(self, folder: Path) -> None:
        for done in repair_all(folder):
            if done.error:
                self.get_logger().error(str(done))
            elif done.complaint:
                self.get_logger().warning(str(done))

    def _report(self) -> None:
        self._episodes.look_after()
        self._status.publish(self._episodes.failure or self._problem)

    def _look_after(self) -> None:
        """Judge the topics, and follow publishers that came with another quality of service than was expected."""
        if not self._episodes.running:
            self._taps.follow()
        self._problem = next(iter(self._complaints()), None) if not self._episodes.running else None
        self._status.diagnose(self._episodes.failure or self._problem)

    def _complaints(self) -> list[RecordError]:
        """List what speaks against a start, the worst first."""
        found = list(self._preflight.complaints() if self._settings.check else self._preflight.missing())
        if self.get_clock().now().nanoseconds == 0:
            found.insert(0, RecordError('nobody publishes /clock', Code.TOPIC_MISSING))
        return [*found, *self._disk.complaints(self._status.bytes_per_second())]

    def _on_check(self, _request: Trigger.Request, response: Trigger.Response) -> object:
        complaints = self._complaints()
        response.success = not complaints
        response.message = '; '.join(map(str, complaints)) or 'ready'
        return response

    def _on_start_episode(self, request: StartEpisode.Request, response: StartEpisode.Response) -> object:
        try:
            if self._episodes.running:
                raise RecordError(f'{self._episodes.episode.id} is being recorded; stop it first',
                                  Code.ALREADY_RECORDING)
            self._check_start(request.instruction)
            self._begin(request.instruction, request.task)
        except RecordError as error:
            response.success, response.code, response.message = False, int(error.code), str(error)
            return response
        response.success, response.id = True, self._episodes.episode.id
        response.path = str(self._episodes.recording.writer.folder)
        if (heard := self._episodes.words.in_force) and heard.strip() != request.instruction.strip():
            response.message = f'the words in force for the policy are others: {heard!r}'
        return response

    def _check_start(self, instruction: str) -> None:
        if not self.active:
            raise RecordError('the recorder is not active', Code.WRITE_FAILED)
        if not instruction.strip():
            raise RecordError('the instruction is empty', Code.NO_INSTRUCTION)
        if complaints := self._complaints():
            raise RecordError('; '.join(map(str, complaints)), complaints[0].code)

    def _begin(self, instruction: str, task: str) -> None:
        self._taps.drain()  # what was received before belongs to no episode
        self._taps.newest.clear()
        self._episodes.begin(instruction, task, self._taps)
        self._report()

    def _on_stop_episode(self, request: StopEpisode.Request, response: StopEpisode.Response) -> object:
        try:
            ended = self._stop_episode(request.keep, request.outcome)
        except RecordError as error:
            response.success, response.code, response.message = False, int(error.code), str(error)
            return response
        response.success, response.message = True, ended.message
        if request.outcome not in OUTCOMES:
            response.message = f'outcome {request.outcome} is none, kept as unknown; {ended.message}'
        response.id, response.path = ended.folder.name, str(ended.folder)
        response.messages, response.duration = ended.messages, ended.duration
        return response

    def _stop_episode(self, keep: bool, outcome: int) -> Ended:
        self._need_episode()
        return self._finish(keep, outcome if outcome in OUTCOMES else Episode.UNKNOWN)

    def _need_episode(self) -> None:
        """Raise `RecordError` if nothing is being recorded; the first time with the reason why that ended."""
        self._episodes.look_after()
        if (failure := self._episodes.failure) is not None:
            self._episodes.failure = None
            raise failure
        if not self._episodes.running:
            raise RecordError('no episode is being recorded', Code.NOT_RECORDING)

    def _finish(self, keep: bool, outcome: int) -> Ended:
        if keep:
            topics = {self.resolve_topic_name(stream.topic) for stream in self._contract.streams}
            late = self._taps.catch_up(topics, self._settings.catch_up)
            if late:
                self.get_logger().warning(f'the episode ends without the last samples of {", ".join(late)}')
        try:
            return self._episodes.end(keep, outcome, self._taps)
        finally:
            self._report()

    def _on_mark(self, request: MarkEpisode.Request, response: MarkEpisode.Response) -> object:
        keeps = request.outcome == MarkEpisode.Request.KEEP_OUTCOME
        try:
            self._need_episode()
            if not keeps and request.outcome not in OUTCOMES:
                raise RecordError(f'outcome {request.outcome} is none; allowed: '
                                  f'{", ".join(f"{number} {name}" for number, name in OUTCOMES.items())}, '
                                  f'{MarkEpisode.Request.KEEP_OUTCOME} to leave it')
            self._episodes.mark(None if keeps else request.outcome, request.instruction.strip())
        except RecordError as error:
            response.code, response.message = int(error.code), str(error)
            return response
        response.success, response.id = True, self._episodes.episode.id
        self._report()
        return response

    def _on_rerecord(self, _request: Trigger.Request, response: Trigger.Response) -> object:
        try:
            self._episodes.look_after()
            last = self._episodes.last
            if last is None:
                raise RecordError('no episode was recorded yet', Code.NOT_RECORDING)
            self._check_start(last.instruction)
            if self._episodes.running:
                self._finish(False, Episode.UNKNOWN)
            else:
                self._episodes.discard_kept()
            self._begin(last.instruction, last.task)
        except RecordError as error:
            response.success, response.message = False, str(error)
            return response
        response.success, response.message = True, self._episodes.episode.id
        return response


def _writable(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f'folder: {folder}: {error.strerror}') from error
    return folder


def main() -> None:
    """Run the node."""
    keep_memory()
    sys.setswitchinterval(SWITCH_SECONDS)
    run(RecorderNode)


if __name__ == '__main__':
    main()
