"""Turns observations and the instruction in force into action chunks."""

from __future__ import annotations

from collections.abc import Callable
import gc
import time
from typing import TYPE_CHECKING, Any

from flow_vla.msg import ActionChunk as ChunkMessage
from flow_vla.msg import ExecutionStatus, PolicyStatus
from flow_vla_core.align import Aligned
from flow_vla_core.contract import RobotContract, find_contract
from flow_vla_core.errors import Code, InstructionMissing, ObservationError
from flow_vla_core.execution.continuation import ASKED, Succession, realtime_of
from flow_vla_core.types import ActionChunk
from flow_vla_ros import codecs, qos
from flow_vla_ros.checkpoint_switch import CheckpointSwitch
from flow_vla_ros.diagnostics import DiagnosticsOutbox, wall_clock
from flow_vla_ros.engines import load_engine, scale_of
from flow_vla_ros.inference import ActingEngine, Inference, Job, Outcome, Worker
from flow_vla_ros.latency import DelayedWork, InjectedLatency
from flow_vla_ros.lifecycle import FlowLifecycleNode, Parameter, Parameters, run
from flow_vla_ros.observation_bridge import ObservationBridge
from flow_vla_ros.policy_report import PolicyReport
from flow_vla_ros.trace import Trace

if TYPE_CHECKING:
    from flow_vla_ros.shadow import Shadow

__all__ = ['PolicyNode', 'main']

TRACE_COLUMNS = ('chunk_id', 'observation_stamp', 'image_published', 'observation_complete', 'inference_started',
                 'inference_ended', 'published', 'generation_ms', 'delay_steps', 'continued', 'confidence')


class PolicyNode(FlowLifecycleNode):
    """Infers in one worker thread, whenever a new observation is due, and publishes the chunks.

    An inference starts when a new reference time lies at least ``replan_steps`` policy steps after the last chunk's,
    or at once when the instruction has changed. With stale, missing, skewed or invalid input, or without a usable
    instruction, there is none, and status and diagnostics say why.

    In real time (``realtime``) an inference is told what is left of the plan in force, which is the chunk that was
    published last, and how many of its actions will have been executed by the time the new chunk comes: the longest of
    the last measured delays, from an observation's stamp to the publishing of its chunk. The way from there to the
    executor, well below one step on one machine, is not counted. What the executor says that it doesn't follow, as
    while a person drives, is never continued.

    Another checkpoint takes the place of the one in force while the node acts: named on the topic ``checkpoint``, with
    ``follow_checkpoints``, or by setting the parameter ``checkpoint``. It is loaded in the background and swapped in
    between two inferences; one that can't be used is refused, and the one before stays.

    With ``shadow`` no chunk is sent, and ``action_chunk`` isn't even advertised: each is compared with the commands
    that others send, see `Shadow`.

    Args:
        name: of the node.
        engine_factory: (parameters, contract) -> object with ``act(observation, continuation)``.
        arguments: as of `rclpy.node.Node`.
    """

    PARAMETERS = (
        Parameter('contract', 'metaworld', 'robot contract: a file, or a name in config/robots'),
        Parameter('checkpoint', '', 'folder of the policy'),
        Parameter('follow_checkpoints', False, 'take over each checkpoint that is named on the topic checkpoint'),
        Parameter('shadow', False, 'only watch: compare chunks with the commands that are sent, and send none'),
        Parameter('report_file', '', 'shadow: summary as JSON, with one row for each chunk as CSV beside it; none if '
                  'empty'),
        Parameter('device', 'auto', 'where the policy runs: auto, cpu, cuda, cuda:1 ...'),
        Parameter('steps', 0, "solver steps of a chunk; 0: the policy's own", minimum=0, maximum=1000),
        Parameter('seed', 0, 'of the noise that chunks are made from', minimum=0),
        Parameter('threads', 0, 'threads of torch; 0: as many as torch likes', minimum=0, maximum=256),
        Parameter('replan_steps', 5, 'policy steps from one chunk to the next', minimum=1, maximum=1000),
        Parameter('realtime', 'auto', 'how a chunk continues the one in force: not at all, by guided inference, or '
                  'with its first actions set; auto: as the policy was trained to', choices=ASKED),
        Parameter('beta', 5.0, 'guided: largest weight of the guidance', minimum=0.0, maximum=1000.0),
        Parameter('delay_window', 10, 'last delays that the expected one is the longest of', minimum=1, maximum=1000),
        Parameter('budget', 0.0, 'time for a chunk, s; fewer solver steps are taken to keep it; 0: no limit',
                  minimum=0.0, maximum=60.0),
        Parameter('samples', 1, 'chunks drawn at once; above 1 their spread becomes the confidence', minimum=1,
                  maximum=256),
        Parameter('allow_empty_instruction', False, 'act without words, as the policy learned to'),
        Parameter('blank_images', False, 'EVALUATION ONLY: the policy sees black images'),
        Parameter('latency', 0.0, 'TESTS ONLY: chunks come so much later, s', minimum=0.0, maximum=60.0),
        Parameter('latency_jitter', 0.0, 'TESTS ONLY: and up to this much more, s', minimum=0.0, maximum=60.0),
        Parameter('latency_spike', 0.0, 'TESTS ONLY: and every n-th this much more, s', minimum=0.0, maximum=60.0),
        Parameter('latency_spike_every', 0, 'TESTS ONLY: n; 0: no spikes', minimum=0),
        Parameter('status_hz', 10.0, 'rate of ~/status, Hz', minimum=0.1, maximum=100.0),
        Parameter('trace_file', '', 'CSV file with one row for each chunk; none if empty'),
    )

    def __init__(self, name: str | None = None, *,
                 engine_factory: Callable[[Parameters, RobotContract], ActingEngine] | None = None,
                 **arguments: Any) -> None:
        super().__init__(name, **arguments)
        self._engine_factory = engine_factory or load_engine
        self._chunk_id = 0
        self._epoch = 0

    def on_setup(self, parameters: Parameters) -> None:
        """Load contract and checkpoint and open the topics."""
        self._settings = parameters
        self._contract = RobotContract.load(find_contract(parameters.contract))
        engine = self._engine_factory(parameters, self._contract)
        self._succession = Succession(self._contract, parameters.replan_steps, window=parameters.delay_window)
        self._trace = Trace(parameters.trace_file, TRACE_COLUMNS)
        self._diagnostics = DiagnosticsOutbox(self, self._contract.label)
        self._status = self.create_publisher(PolicyStatus, '~/status', qos.STATUS)
        self.create_subscription(ExecutionStatus, 'executor/status', self._on_execution, qos.STATUS)
        self._shadow = _open_shadow(self, self._contract, parameters)
        self._chunks = None if self._shadow else self.create_publisher(ChunkMessage, 'action_chunk', qos.CHUNK)
        self._wake = self.create_guard_condition(self._on_outcome)
        self._bridge = ObservationBridge(self, self._contract, self._consider, self._on_jump)
        latency = InjectedLatency.of(parameters)
        self._inference = Inference(self, self._contract, engine, parameters.blank_images)
        self._work = DelayedWork(self._inference, latency, parameters.seed)
        self._worker = Worker(self._work, self._wake.trigger)
        self._switch = CheckpointSwitch(self, self._inference, self._load, lambda: not self._worker.busy,
                                        self._on_change)
        self._report = PolicyReport(self._bridge, self._switch, self._remarks, parameters.budget)
        self._epoch += 1
        self._realtime = ''
        self._choose_realtime()
        if parameters.follow_checkpoints:
            self._switch.follow()
        if parameters.blank_images:
            self.get_logger().warning('blank_images is set: the policy sees black images')
        if latency != InjectedLatency():
            self.get_logger().warning(f'chunks are held back: {latency}')
        # What exists by now stays: the collector never walks it during an inference.
        gc.collect()
        gc.freeze()

    def _load(self, checkpoint: str) -> ActingEngine:
        return self._engine_factory(Parameters({**self._settings, 'checkpoint': checkpoint}), self._contract)

    def on_start(self) -> None:
        """Begin to infer."""
        self._forget()
        self._own_timers = [
            self.create_timer(1 / self._settings.status_hz, self._on_status_timer, clock=wall_clock()),
            self.create_timer(1.0, self._publish_diagnostics, clock=wall_clock())]

    def on_stop(self) -> None:
        """Cease to infer; a chunk that is being made is dropped."""
        self._epoch += 1
        for timer in self._own_timers:
            self.destroy_timer(timer)
        self._trace.flush()
        if self._shadow:
            self._shadow.finish()
        self._publish_status()

    def on_teardown(self) -> None:
        """End the threads and close the files."""
        self._work.interrupt()
        self._worker.close()
        self._switch.close()
        self._trace.close()
        if self._shadow:
            self._shadow.close()
        del self._worker

    def _forget(self) -> None:
        self._epoch += 1
        self._succession.forget()
        self._report.clear()

    def _on_execution(self, status: ExecutionStatus) -> None:
        if status.source != ExecutionStatus.POLICY:
            self._succession.disown(codecs.from_time(status.header.stamp))

    def _on_jump(self) -> None:
        self._epoch += 1
        self._succession.forget()

    def _consider(self) -> None:
        """Start an inference if one is due and the input can be used."""
        if not self.active or self._worker.busy:
            return
        try:
            instruction = self._instruction()
            due = self._succession.is_due(self._bridge.reference_time(), instruction)
            aligned = self._bridge.select() if due else None
        except ObservationError as error:
            self._note(error.code, str(error))
            return
        if aligned is not None:
            self._begin(aligned, instruction)

    def _begin(self, aligned: Aligned, instruction: str) -> None:
        self._succession.begin(aligned.stamp, instruction)
        rest, expected = self._succession.continuation(aligned.stamp, instruction), self._succession.delay
        self._report.short = rest is not None and rest.delay < expected
        if self._report.short:
            self.get_logger().warning(f'the next chunk is expected {expected} steps late, what is left of the plan '
                                      f'bridges {rest.delay}', throttle_duration_sec=5.0)
        self._worker.submit(Job(aligned, instruction, self._epoch, *self._bridge.published(aligned), rest))

    def _instruction(self) -> str:
        instruction = self._bridge.instruction or ''
        if not instruction.strip() and not self._settings.allow_empty_instruction:
            topic = self._contract.instruction.topic
            raise InstructionMissing(f'no instruction has been given on {topic}' if self._bridge.instruction is None
                                     else f'the instruction on {topic} is empty')
        return instruction

    def _on_outcome(self) -> None:
        self._bridge.now()  # a jump of ROS time that nothing else has met yet makes outcomes invalid
        for outcome in self._worker.take():
            current = outcome.job.epoch == self._epoch and self.active
            if current and outcome.job.instruction == (self._bridge.instruction or ''):
                if outcome.made is not None:
                    self._publish_chunk(outcome)
                self._note(outcome.code, outcome.message)
        self._switch.swap()
        self._consider()

    def _on_change(self, other_length: bool) -> None:
        if other_length:
            self._succession.forget()
        self._choose_realtime()
        self._publish_status()

    def _choose_realtime(self) -> None:
        """Let chunks continue each other as asked, or as the engine in force does; in a shadow nothing is executed."""
        asked = self._settings.realtime
        chosen = 'none' if asked == 'auto' and self._shadow else realtime_of(asked, self._inference.engine)
        if chosen != self._realtime:
            self.get_logger().info(f'realtime: {chosen}' + (' (auto)' if asked == 'auto' else ''))
        self._realtime = self._succession.realtime = chosen

    def _publish_chunk(self, outcome: Outcome) -> None:
        self._chunk_id += 1
        job, made, took = outcome.job, outcome.made, outcome.ended - outcome.started
        continued = job.continuation.delay if job.continuation else 0
        chunk = ActionChunk(job.aligned.stamp, self._contract.rates.policy_dt_ns, made.actions, self._chunk_id,
                            job.instruction, took, continued, made.confidence)
        self._send(chunk)
        delay = self._succession.publish(chunk, self.get_clock().now().nanoseconds)
        self._report.publish(took, made.confidence, delay)
        self._trace.write((chunk.id, chunk.stamp, job.image_published, job.complete, outcome.started, outcome.ended,
                           time.time_ns(), f'{self._report.generation_ms:.3f}', delay, continued,
                           f'{made.confidence:.3f}'))

    def _send(self, chunk: ActionChunk) -> None:
        if self._shadow:
            self._shadow.add(chunk, scale_of(self._inference.engine, self._contract), self._switch.checkpoint)
        else:
            self._chunks.publish(codecs.chunk_to_message(chunk, self._contract))

    def _note(self, code: Code, message: str) -> None:
        if self._report.note(code, message):
            log = self.get_logger()
            log.info('acting') if code == Code.OK else log.warning(f'not acting: {message}')
            self._publish_status()

    def _on_status_timer(self) -> None:
        try:
            self._instruction()
            self._bridge.select()
        except ObservationError as error:
            self._note(error.code, str(error))
        self._bridge.log_changes()
        self._publish_status()

    def _publish_status(self) -> None:
        status = self._report.status(self.active)
        status.header.stamp = self.get_clock().now().to_msg()
        self._status.publish(status)

    def _remarks(self) -> list[str]:
        loud = ['IMAGES ARE BLANKED.'] if self._settings.blank_images else []
        return loud + ([f'{self._shadow.facts()}.'] if self._shadow else [])

    def _publish_diagnostics(self) -> None:
        self._trace.flush()
        code, message, values = self._report.diagnostics()
        self._diagnostics.publish(code == Code.OK and not self._settings.blank_images, code, message, values)


def _open_shadow(node: PolicyNode, contract: RobotContract, parameters: Parameters) -> Shadow | None:
    if not parameters.shadow:
        return None
    from flow_vla_ros.shadow import Shadow
    return Shadow(node, contract, parameters.report_file)


def main() -> None:
    """Run the node."""
    run(PolicyNode)


if __name__ == '__main__':
    main()
