"""The policy on a live graph: chunks from observations, refusals with their codes, faults that it survives."""

from __future__ import annotations

from collections.abc import Callable
import csv
import math
from pathlib import Path
import threading
import time
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
import numpy as np
import pytest

pytest.importorskip('rclpy', reason='rclpy is not installed')

from rclpy.lifecycle import TransitionCallbackReturn
from rclpy.parameter import Parameter
from ros_graph import RosGraph
from rosgraph_msgs.msg import Clock
from std_msgs.msg import String

from flow_vla.msg import ActionChunk as ChunkMessage
from flow_vla.msg import PolicyStatus
from flow_vla_core.contract import RobotContract, find_contract
from flow_vla_core.encoders import Vocabulary
from flow_vla_core.errors import ActionNotFinite, Code, InstructionUnknown, StreamMissing
from flow_vla_core.policy import FlowVLA, PolicyConfig
from flow_vla_core.training.checkpoint import save_checkpoint
from flow_vla_core.transforms import Statistics
from flow_vla_core.types import Continuation, Generated, Observation
from flow_vla_ros.codecs import encode_image, encode_state, from_time, message_to_chunk, message_type, to_time
from flow_vla_ros.engines import load_engine
from flow_vla_ros.inference import ActingEngine
from flow_vla_ros.latency import InjectedLatency
from flow_vla_ros.parameters import Parameters
from flow_vla_ros.policy_node import PolicyNode
from flow_vla_ros.qos import CHUNK, CLOCK, LATCHED, RELIABLE_SENSOR, STATE

CONTRACT = RobotContract.load(find_contract('metaworld'))
DT = CONTRACT.rates.policy_dt_ns
START = 1_000 * DT
WORDS = 'open the faucet'


class RecordingEngine:
    """Answers every observation with one constant chunk, as another engine does, or fails as told.

    It keeps what it was shown, and answers while its gate is open.
    """

    def __init__(self) -> None:
        self.inner: ActingEngine | None = None
        self.seen: list[Observation] = []
        self.error: Exception | None = None
        self.gate = threading.Event()
        self.gate.set()
        self.continuations: list[Continuation | None] = []
        self.confidence, self.level = math.nan, 0.05

    def act(self, observation: Observation, continuation: Continuation | None = None) -> Generated:
        self.seen.append(observation)
        self.continuations.append(continuation)
        assert self.gate.wait(20)
        if self.error is not None:
            raise self.error
        if 'flush' in observation.instruction:
            raise InstructionUnknown('unknown word: flush')
        if self.inner is not None:
            return self.inner.act(observation, continuation)
        return Generated(np.full((8, CONTRACT.action_dim), self.level, np.float32), self.confidence)


class Rig:
    """Puts an active policy on a graph, and a robot whose sensors are published by `show`.

    Args:
        graph: to build on.
        engine_factory: makes the engine; a `RecordingEngine` if None.
        parameters: of the policy.
    """

    def __init__(self, graph: RosGraph, engine_factory: Callable | None = None, **parameters: Any) -> None:
        overrides = [Parameter(key, value=value) for key, value in parameters.items()]
        self.clock = graph.probe.create_publisher(Clock, '/clock', CLOCK) if 'use_sim_time' in parameters else None
        self.graph, self.engine = graph, RecordingEngine()
        self.node = graph.add(PolicyNode(engine_factory=engine_factory or (lambda *_: self.engine),
                                         parameter_overrides=overrides))
        assert self.node.trigger_configure() == TransitionCallbackReturn.SUCCESS
        self.chunks: list[ChunkMessage] = graph.inbox(ChunkMessage, 'action_chunk', CHUNK)
        self.statuses: list[PolicyStatus] = graph.inbox(PolicyStatus, 'policy/status')
        self.cameras = {camera.name: graph.outbox(message_type('sensor_msgs/Image'), camera.topic, RELIABLE_SENSOR)
                        for camera in CONTRACT.cameras}
        self.streams = {stream.name: graph.outbox(message_type(stream.message), stream.topic, STATE)
                        for stream in CONTRACT.state}
        self.words = graph.outbox(String, CONTRACT.instruction.topic, LATCHED)
        self.plugged = set(self.cameras) | set(self.streams)
        self.state = {'ee_position': np.array([0.1, 0.6, 0.2]), 'gripper': np.array([1.0])}
        assert self.node.trigger_activate() == TransitionCallbackReturn.SUCCESS

    @property
    def now(self) -> int:
        return self.node.get_clock().now().nanoseconds

    @property
    def status(self) -> PolicyStatus:
        return self.statuses[-1] if self.statuses else PolicyStatus(code=65535)

    @property
    def reference(self) -> int:
        try:
            return self.node._bridge.reference_time()
        except StreamMissing:
            return -1

    def say(self, words: str) -> None:
        self.words.publish(String(data=words))
        self.graph.spin_until(lambda: self.node._bridge.instruction == words)

    def show(self, stamp: int, **changes: Any) -> None:
        for camera in CONTRACT.cameras:
            if camera.name in self.plugged:
                message = encode_image(np.full((*camera.resolution, 3), 7, np.uint8), camera, stamp)
                for key, value in changes.items():
                    setattr(message, key, value)
                self.cameras[camera.name].publish(message)
        for stream in CONTRACT.state:
            if stream.name in self.plugged:
                self.streams[stream.name].publish(encode_state(stream, self.state[stream.name], stamp))

    def play(self, period: float = 0.05) -> None:
        self.graph.probe.create_timer(period, lambda: self.show(self.now))

    def set_time(self, stamp: int) -> None:
        self.clock.publish(Clock(clock=to_time(stamp)))
        self.graph.spin_until(lambda: self.now == stamp)

    def answer(self, stamp: int, delay: int = 0) -> ChunkMessage:
        """Show the robot at a time and return the chunk that is published ``delay`` ns later."""
        count = len(self.engine.seen)
        self.engine.gate.clear()
        self.set_time(stamp)
        self.show(stamp)
        self.graph.spin_until(lambda: len(self.engine.seen) > count)
        self.set_time(stamp + delay)
        self.engine.gate.set()
        self.graph.spin_until(lambda: len(self.chunks) > count)
        return self.chunks[-1]

    def wait_for(self, code: Code) -> None:
        self.graph.spin_until(lambda: self.status.code == code)


def test_a_chunk_answers_an_observation(graph: RosGraph, tmp_path: Path) -> None:
    trace = tmp_path / 'policy.csv'
    rig = Rig(graph, trace_file=str(trace))
    rig.say(WORDS)
    stamp = rig.now
    rig.show(stamp)
    graph.spin_until(lambda: rig.chunks)
    chunk = message_to_chunk(rig.chunks[0], CONTRACT)
    assert (chunk.stamp, chunk.dt, chunk.id, chunk.instruction) == (stamp, DT, 1, WORDS)
    np.testing.assert_array_equal(chunk.actions, np.full((8, 4), 0.05, np.float32))
    observation = rig.engine.seen[0]
    assert {name: image.shape for name, image in observation.images.items()} == {
        'front': (1, 84, 84, 3), 'gripper_cam': (1, 84, 84, 3)}
    np.testing.assert_allclose(observation.state, [[0.1, 0.6, 0.2, 1.0]], rtol=1e-6)
    rig.wait_for(Code.OK)
    assert (rig.status.state, rig.status.chunks, rig.status.instruction) == (PolicyStatus.RUNNING, 1, WORDS)
    rig.node.trigger_deactivate()
    row, = csv.DictReader(trace.open())
    order = [int(row[key]) for key in ('image_published', 'inference_started', 'inference_ended', 'published')]
    assert (row['chunk_id'], int(row['observation_stamp'])) == ('1', stamp)
    assert 0 < order[0] <= int(row['observation_complete'])
    assert order == sorted(order)


def test_chunks_are_replan_steps_apart_and_new_words_take_effect_at_once(graph: RosGraph) -> None:
    rig = Rig(graph, replan_steps=3, use_sim_time=True)
    rig.set_time(START)
    rig.say(WORDS)
    rig.answer(START)
    for stamp in (START + DT, START + 3 * DT - 1):
        rig.set_time(stamp)
        rig.show(stamp)
        graph.spin_until(lambda stamp=stamp: rig.reference == stamp and not rig.node._worker.busy)
    assert len(rig.engine.seen) == 1
    rig.say('close the faucet')
    graph.spin_until(lambda: len(rig.chunks) == 2)
    assert [chunk.instruction for chunk in rig.chunks] == [WORDS, 'close the faucet']
    later = from_time(rig.chunks[-1].header.stamp) + 3 * DT
    for stamp in (later - 1, later):
        rig.set_time(stamp)
        rig.show(stamp)
        graph.spin_until(lambda stamp=stamp: rig.reference == stamp)
    graph.spin_until(lambda: len(rig.chunks) == 3)
    assert from_time(rig.chunks[-1].header.stamp) == later


def test_in_real_time_an_inference_is_told_what_is_left_of_the_plan(graph: RosGraph) -> None:
    rig = Rig(graph, realtime='prefix', replan_steps=3, use_sim_time=True)
    rig.set_time(START)
    rig.say(WORDS)
    first = rig.answer(START, delay=DT + DT // 2)
    rig.engine.level = 0.07
    second = rig.answer(START + 3 * DT)
    assert (first.delay, second.delay) == (0, 2)
    begin, rest = rig.engine.continuations
    assert begin is None
    np.testing.assert_array_equal(rest.actions, np.full((5, 4), 0.05, np.float32))
    assert (rest.delay, rest.execute) == (2, 3)
    rig.say('close the faucet')
    graph.spin_until(lambda: len(rig.chunks) == 3)
    np.testing.assert_array_equal(rig.engine.continuations[-1].actions, np.full((2, 4), 0.07, np.float32))


def test_a_delay_that_the_plan_cannot_bridge_is_reported(graph: RosGraph) -> None:
    rig = Rig(graph, realtime='guided', use_sim_time=True)
    rig.set_time(START)
    rig.say(WORDS)
    rig.answer(START, delay=6 * DT)
    assert rig.answer(START + 6 * DT).delay == 2
    graph.spin_until(lambda: 'too short' in rig.status.message)


def test_confidence_and_delay_are_reported(graph: RosGraph) -> None:
    rig = Rig(graph, use_sim_time=True)
    rig.set_time(START)
    rig.say(WORDS)
    rig.engine.confidence = 0.25
    assert rig.answer(START, delay=2 * DT).confidence == 0.25
    graph.spin_until(lambda: rig.status.message == 'delay 2 steps, confidence 0.25')


def test_injected_latency_makes_chunks_late_and_is_loud(graph: RosGraph, capfd: pytest.CaptureFixture) -> None:
    rig = Rig(graph, latency=0.3)
    assert 'chunks are held back: InjectedLatency(fixed=0.3' in capfd.readouterr().err
    rig.say(WORDS)
    rig.show(rig.now)
    graph.spin_until(lambda: rig.chunks)
    assert from_time(rig.chunks[0].generation_time) >= 0.3e9


def test_injected_latency_does_not_keep_a_node_from_its_end(graph: RosGraph) -> None:
    rig = Rig(graph, latency=60.0)
    rig.say(WORDS)
    rig.show(rig.now)
    graph.spin_until(lambda: rig.engine.seen)
    start = time.monotonic()
    rig.node.trigger_deactivate()
    assert rig.node.trigger_cleanup() == TransitionCallbackReturn.SUCCESS
    assert time.monotonic() - start < 8
    assert rig.chunks == []


@given(count=st.integers(1, 100), every=st.integers(0, 5), seed=st.integers(0, 100))
def test_latency_is_drawn_as_told(count: int, every: int, seed: int) -> None:
    latency = InjectedLatency(fixed=0.1, jitter=0.05, spike=2.0, spike_every=every)
    drawn = latency.draw(count, np.random.default_rng(seed)) - 0.1
    is_spike = every > 0 and count % every == 0
    assert 0 <= drawn - 2.0 * is_spike <= 0.05


def test_a_chunk_for_words_that_are_no_longer_in_force_is_dropped(graph: RosGraph) -> None:
    rig = Rig(graph)
    rig.say(WORDS)
    rig.engine.gate.clear()
    rig.show(rig.now)
    graph.spin_until(lambda: rig.engine.seen)
    rig.say('close the faucet')
    rig.engine.gate.set()
    graph.spin_until(lambda: rig.chunks)
    assert [chunk.instruction for chunk in rig.chunks] == ['close the faucet']


def test_missing_input_and_missing_words_are_named(graph: RosGraph) -> None:
    rig = Rig(graph)
    rig.wait_for(Code.INSTRUCTION_MISSING)
    assert 'instruction' in rig.status.message
    rig.say(WORDS)
    rig.wait_for(Code.STREAM_MISSING)
    rig.plugged.discard('gripper_cam')
    rig.show(rig.now)
    graph.spin_until(lambda: 'gripper_cam' in rig.status.message and 'front' not in rig.status.message)
    assert dict(zip(rig.status.streams, rig.status.stream_age))['gripper_cam'] == -1
    assert (rig.status.state, rig.engine.seen) == (PolicyStatus.WAITING, [])


def test_a_camera_that_is_unplugged_stops_the_policy_until_it_is_back(graph: RosGraph) -> None:
    rig = Rig(graph)
    rig.say(WORDS)
    rig.play()
    rig.wait_for(Code.OK)
    rig.plugged.discard('front')
    gone = rig.now
    rig.wait_for(Code.STREAM_STALE)
    assert 'front' in rig.status.message
    count = len(rig.chunks)
    graph.spin_until(lambda: rig.now > gone + 2 * 10 ** 9)
    assert len(rig.chunks) == count
    rig.plugged.add('front')
    rig.wait_for(Code.OK)
    graph.spin_until(lambda: len(rig.chunks) > count)


def test_words_that_are_empty_or_unknown_stop_the_policy(graph: RosGraph) -> None:
    rig = Rig(graph)
    rig.say(WORDS)
    rig.play()
    for words, code in (('', Code.INSTRUCTION_MISSING), ('flush the toilet', Code.INSTRUCTION_UNKNOWN)):
        rig.wait_for(Code.OK)
        rig.say(words)
        rig.wait_for(code)
        count = len(rig.chunks)
        rig.say(WORDS)
        graph.spin_until(lambda count=count: len(rig.chunks) > count)
        assert rig.chunks[count].instruction == WORDS


def test_an_empty_instruction_is_answered_when_it_is_allowed(graph: RosGraph) -> None:
    rig = Rig(graph, allow_empty_instruction=True)
    rig.show(rig.now)
    graph.spin_until(lambda: rig.chunks)
    assert rig.engine.seen[0].instruction == ''


@pytest.mark.parametrize(('broken', 'code'), [
    ({'state': np.array([0.1, np.nan, 0.2])}, Code.STATE_NOT_FINITE),
    ({'encoding': 'bgr8'}, Code.IMAGE_INVALID), ({'height': 100}, Code.IMAGE_INVALID),
    ({'step': 168 * 4}, Code.IMAGE_INVALID)])
def test_invalid_input_is_refused_and_it_goes_on_with_the_next(graph: RosGraph, broken: dict, code: Code) -> None:
    rig = Rig(graph)
    rig.say(WORDS)
    good = rig.state['ee_position']
    rig.state['ee_position'] = broken.pop('state', good)
    rig.show(rig.now, **broken)
    rig.wait_for(code)
    assert rig.engine.seen == []
    rig.state['ee_position'] = good
    rig.show(rig.now)
    rig.wait_for(Code.OK)
    graph.spin_until(lambda: len(rig.chunks) == 1)


@pytest.mark.parametrize(('error', 'code'), [(RuntimeError('out of memory'), Code.INFERENCE_FAILED),
                                             (ActionNotFinite('NaN at action 3'), Code.ACTION_NOT_FINITE)])
def test_a_model_that_fails_is_reported_and_asked_again(graph: RosGraph, error: Exception, code: Code) -> None:
    rig = Rig(graph)
    rig.say(WORDS)
    rig.engine.error = error
    rig.show(rig.now)
    rig.wait_for(code)
    assert str(error) in rig.status.message
    assert rig.chunks == []
    rig.engine.error = None
    rig.show(rig.now)
    rig.wait_for(Code.OK)
    graph.spin_until(lambda: rig.chunks)


def test_a_clock_that_jumps_backwards_drops_what_was_seen(graph: RosGraph) -> None:
    rig = Rig(graph, use_sim_time=True, realtime='prefix')
    rig.set_time(START)
    rig.say(WORDS)
    rig.show(START)
    graph.spin_until(lambda: len(rig.chunks) == 1)
    rig.set_time(START // 2)
    rig.wait_for(Code.CLOCK_JUMP)
    rig.show(START + DT)  # was in flight when the clock jumped
    rig.show(START // 2)
    graph.spin_until(lambda: len(rig.chunks) == 2)
    assert [from_time(chunk.header.stamp) for chunk in rig.chunks] == [START, START // 2]
    assert rig.engine.continuations == [None, None]
    rig.wait_for(Code.OK)


def test_blank_images_are_black_and_loud(graph: RosGraph) -> None:
    rig = Rig(graph, blank_images=True)
    rig.say(WORDS)
    rig.show(rig.now)
    graph.spin_until(lambda: rig.chunks)
    assert not any(image.any() for image in rig.engine.seen[0].images.values())
    graph.spin_until(lambda: 'BLANKED' in rig.status.message)


def test_a_deactivated_policy_is_silent(graph: RosGraph) -> None:
    rig = Rig(graph)
    rig.say(WORDS)
    rig.engine.gate.clear()
    rig.show(rig.now)
    graph.spin_until(lambda: rig.engine.seen)
    rig.node.trigger_deactivate()
    rig.engine.gate.set()
    graph.spin_until(lambda: not rig.node._worker.busy)
    rig.show(rig.now)
    rig.node.trigger_activate()
    rig.show(rig.now)
    graph.spin_until(lambda: rig.chunks)
    assert len(rig.engine.seen) == 2
    assert rig.chunks[0].id == 1


def save_policy(folder: Path, contract: RobotContract) -> None:
    """Write an untrained policy of the smallest size."""
    numbers = Statistics.of(np.random.default_rng(0).uniform(-1, 1, (50, 4)))
    policy = FlowVLA.create(PolicyConfig.dummy(), contract, {'state': numbers, 'actions': numbers},
                            Vocabulary.from_instructions([WORDS]))
    save_checkpoint(folder, policy)


def test_a_real_policy_is_loaded_and_acts(graph: RosGraph, tmp_path: Path) -> None:
    save_policy(tmp_path / 'policy', CONTRACT)
    rig = Rig(graph, engine_factory=load_engine, checkpoint=str(tmp_path / 'policy'), device='cpu', threads=1, steps=1)
    rig.say(WORDS)
    rig.show(rig.now)
    graph.spin_until(lambda: rig.chunks)
    chunk = message_to_chunk(rig.chunks[0], CONTRACT)
    assert chunk.actions.shape == (PolicyConfig.dummy().horizon, CONTRACT.action_dim)
    assert np.isfinite(chunk.actions).all()
    rig.say('flush the toilet')
    rig.wait_for(Code.INSTRUCTION_UNKNOWN)
    assert 'flush' in rig.status.message


@pytest.mark.parametrize(('realtime', 'least', 'most'), [('none', 0.1, 10), ('guided', 0, 0.1), ('prefix', 0, 1e-5)])
def test_a_real_policy_continues_its_own_plan(graph: RosGraph, tmp_path: Path, realtime: str, least: float,
                                              most: float) -> None:
    save_policy(tmp_path / 'policy', CONTRACT)
    engine = RecordingEngine()

    def load(parameters: Parameters, contract: RobotContract) -> RecordingEngine:
        engine.inner = load_engine(parameters, contract)
        return engine

    rig = Rig(graph, engine_factory=load, checkpoint=str(tmp_path / 'policy'), device='cpu', threads=1, steps=1,
              realtime=realtime, replan_steps=2, samples=2, use_sim_time=True)
    rig.engine = engine
    rig.set_time(START)
    rig.say(WORDS)
    first, second = (message_to_chunk(rig.answer(START + steps * DT, delay=2 * DT), CONTRACT) for steps in (0, 2))
    assert (first.delay, second.delay) == (0, 0 if realtime == 'none' else 2)
    assert 0 <= second.confidence <= 1
    assert least <= np.abs(second.actions[:2] - first.actions[2:]).max() <= most


def test_an_unknown_mode_is_refused_when_it_is_set(graph: RosGraph) -> None:
    node = graph.add(PolicyNode())
    result, = node.set_parameters([Parameter('realtime', value='guide')])
    assert not result.successful and "'guided'" in result.reason


def test_a_checkpoint_that_does_not_fit_refuses_to_configure(
        graph: RosGraph, tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    values = CONTRACT.model_dump(mode='json', exclude_none=True)
    values['state'][0]['unit'] = 'mm'
    save_policy(tmp_path / 'other', RobotContract.parse(values))
    cases = [('', 'give the folder of a policy'), (str(tmp_path / 'nothing'), 'missing'),
             (str(tmp_path / 'other'), "state.ee_position.unit: 'mm' != 'm'")]
    for number, (checkpoint, said) in enumerate(cases):
        override = Parameter('checkpoint', value=checkpoint)
        node = graph.add(PolicyNode(f'policy_{number}', parameter_overrides=[override]))
        assert node.trigger_configure() == TransitionCallbackReturn.FAILURE
        assert said in capfd.readouterr().err
