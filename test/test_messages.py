"""Messages to arrays: every encoding against rosbags-image, padding, area averaging, and everything that is refused."""

from __future__ import annotations

from array import array
from types import SimpleNamespace
from typing import Any

from bag_tools import CONTRACT, DT, START, image, make, message
from hypothesis import given, settings, strategies
import numpy as np
import pytest

from flow_vla_core.align import Synchroniser
from flow_vla_core.contract import ActionPart, Camera, Limits, StateStream
from flow_vla_core.errors import DataError, ImageInvalid, StateInvalid, StateNotFinite
from flow_vla_core.messages import decode_action, decode_image, decode_state, make_observation, resize_image, stamp_of

CHANNELS = {'rgb8': 3, 'bgr8': 3, 'rgba8': 4, 'bgra8': 4, 'mono8': 1}


def camera(encoding: str = 'rgb8', rows: int = 6, columns: int = 8, size: tuple[int, int] | None = None) -> Camera:
    return Camera(name='eye', topic='eye', encoding=encoding, resolution=(rows, columns), size=size or (rows, columns),
                  max_age=1.0, max_skew=1.0)


def pixels(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def padded(source: np.ndarray, step: int, **changes: Any) -> Any:
    """Build an image whose rows are followed by bytes that belong to no pixel."""
    rows = source.reshape(len(source), -1)
    data = np.full((len(source), step), 77, np.uint8)
    data[:, :rows.shape[1]] = rows
    return image(START, source, step=step, data=data.reshape(-1), **changes)


@pytest.mark.parametrize(('encoding', 'order'), [
    ('rgb8', [0, 1, 2]), ('bgr8', [2, 1, 0]), ('rgba8', [0, 1, 2]), ('bgra8', [2, 1, 0]), ('mono8', [0])])
def test_decodes_to_red_green_blue(encoding: str, order: list[int]) -> None:
    source = pixels(6, 8, CHANNELS[encoding])
    decoded = decode_image(image(START, source, encoding=encoding), camera(encoding))
    assert decoded.dtype == np.uint8 and decoded.flags.c_contiguous
    np.testing.assert_array_equal(decoded, source[..., order])


@pytest.mark.parametrize('encoding', CHANNELS)
def test_decodes_like_rosbags_image(encoding: str) -> None:
    pytest.importorskip('cv2', reason='rosbags-image needs OpenCV')
    from rosbags.image import message_to_cvimage
    built = image(START, pixels(6, 8, CHANNELS[encoding]), encoding=encoding)
    reference = message_to_cvimage(built, 'mono8' if encoding == 'mono8' else 'rgb8').reshape(6, 8, -1)
    np.testing.assert_array_equal(decode_image(built, camera(encoding)), reference)


@pytest.mark.parametrize('encoding', CHANNELS)
def test_decodes_like_cv_bridge(encoding: str) -> None:
    cv_bridge = pytest.importorskip('cv_bridge', reason='cv_bridge comes with a ROS distribution only')
    from flow_vla_ros.codecs import message_type
    source = pixels(6, 8, CHANNELS[encoding])
    live = message_type('sensor_msgs/Image')(height=6, width=8, encoding=encoding, step=8 * CHANNELS[encoding],
                                             data=array('B', source.tobytes()))
    reference = cv_bridge.CvBridge().imgmsg_to_cv2(live, 'mono8' if encoding == 'mono8' else 'rgb8').reshape(6, 8, -1)
    np.testing.assert_array_equal(decode_image(live, camera(encoding)), reference)


@pytest.mark.parametrize('wrap', [bytes, lambda data: array('B', data.tobytes()), memoryview, np.asarray])
def test_data_may_be_any_buffer(wrap: Any) -> None:
    source = pixels(6, 8, 3)
    np.testing.assert_array_equal(decode_image(image(START, source, data=wrap(source.reshape(-1))), camera()), source)


@pytest.mark.parametrize('encoding', CHANNELS)
def test_padding_of_rows_is_left_out(encoding: str) -> None:
    source = pixels(6, 8, CHANNELS[encoding])
    tight = decode_image(image(START, source, encoding=encoding), camera(encoding))
    np.testing.assert_array_equal(decode_image(padded(source, 64, encoding=encoding), camera(encoding)), tight)


@pytest.mark.parametrize(('changes', 'words'), [
    ({'encoding': 'bgr8'}, "'bgr8', the contract says 'rgb8'"),
    ({'encoding': 'bayer_rggb8'}, "'bayer_rggb8'"),
    ({'height': 7}, '7 rows and 8 columns'),
    ({'width': 9}, '6 rows and 9 columns'),
    ({'step': 23}, 'step 23 bytes, a row needs 24'),
    ({'step': 25}, '144 bytes, 6 rows of 25 have 150'),
    ({'data': np.zeros(143, np.uint8)}, '143 bytes'),
    ({'data': np.zeros(145, np.uint8)}, '145 bytes'),
    ({'data': np.zeros(0, np.uint8)}, '0 bytes'),
])
def test_refuses_what_the_contract_does_not_say(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ImageInvalid, match=f'eye: .*{words}'):
        decode_image(image(START, pixels(6, 8, 3), **changes), camera())


def test_decodes_to_the_size_that_the_policy_sees() -> None:
    decoded = decode_image(image(START, pixels(6, 8, 3)), camera(size=(3, 4)))
    np.testing.assert_array_equal(decoded, resize_image(pixels(6, 8, 3), (3, 4)))
    assert decoded.shape == (3, 4, 3)


@settings(max_examples=60, deadline=None)
@given(strategies.tuples(*[strategies.integers(1, 12)] * 4), strategies.sampled_from([1, 3]))
def test_resizing_averages_the_area(shape: tuple[int, int, int, int], channels: int) -> None:
    """Hold against the mean over a grid so fine that old and new pixels both consist of whole cells of it."""
    rows, columns, new_rows, new_columns = shape
    source = pixels(rows, columns, channels)
    fine = source.repeat(new_rows, 0).repeat(new_columns, 1).astype(np.float64)
    mean = fine.reshape(new_rows, rows, new_columns, columns, channels).mean((1, 3))
    result = resize_image(source, (new_rows, new_columns))
    assert result.dtype == np.uint8
    assert np.abs(result - mean).max() <= 0.5 + 1e-9


def test_equal_size_is_the_identity() -> None:
    source = pixels(5, 7, 3)
    assert resize_image(source, (5, 7)) is source


@pytest.mark.parametrize('size', [(84, 84), (50, 70), (168, 84)])
def test_a_flat_image_stays_flat(size: tuple[int, int]) -> None:
    for value in (0, 1, 127, 255):
        assert (resize_image(np.full((168, 168, 3), value, np.uint8), size) == value).all()


def test_states_come_in_the_order_of_the_contract() -> None:
    stream = StateStream(name='arm', topic='joint_states', message='sensor_msgs/JointState', field='velocity',
                         names=('c', 'a'), unit='rad/s', max_age=1.0, max_skew=1.0)
    built = SimpleNamespace(name=['a', 'b', 'c'], position=[], velocity=[1.0, 2.0, 3.0], effort=[])
    np.testing.assert_array_equal(decode_state(built, stream), np.array([3, 1], np.float32))
    assert decode_state(built, stream).dtype == np.float32


def test_states_of_the_contract() -> None:
    pose, joints = CONTRACT.state
    np.testing.assert_allclose(decode_state(message('/ee_pose', START, 0.25), pose), [0.25, 0.5, 0.1])
    np.testing.assert_allclose(decode_state(message('/joint_states', START, 0.75), joints), [0.75])


@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf])
def test_states_that_are_not_finite_are_named(value: float) -> None:
    with pytest.raises(StateNotFinite, match='ee_position: x is not finite'):
        decode_state(message('/ee_pose', START, value), CONTRACT.state[0])


def test_states_that_lack_something_are_named() -> None:
    pose, joints = CONTRACT.state
    with pytest.raises(StateInvalid, match="no joint 'gripper' in the message; did you mean 'grippers'"):
        decode_state(SimpleNamespace(name=['grippers'], position=[1.0]), joints)
    with pytest.raises(StateInvalid, match='1 names but 0 values'):
        decode_state(SimpleNamespace(name=['gripper'], position=[]), joints)
    with pytest.raises(StateInvalid, match="no field 'pose.position'"):
        decode_state(message('/joint_states', START), pose)
    with pytest.raises(StateInvalid, match="ee_position: pose of geometry_msgs/PoseStamped: .*'x'"):
        decode_state(message('/ee_pose', START), pose.model_copy(update={'field': 'pose'}))


def test_actions_of_the_contract() -> None:
    ee, gripper = CONTRACT.actions
    np.testing.assert_allclose(decode_action(message('/' + ee.topic, START, 0.1), ee), [0.1, 0, 0])
    np.testing.assert_allclose(decode_action(message('/' + gripper.topic, START, -1.0), gripper), [-1])


def part(kind: str, names: tuple[str, ...], message_type: str) -> ActionPart:
    bounds = tuple(1.0 for _ in names)
    limits = Limits(min=tuple(-b for b in bounds), max=bounds, velocity=bounds)
    return ActionPart(name='part', kind=kind, names=names, unit='1', limits=limits, message=message_type,
                      topic='command')


def test_pose_commands_become_rotation_vectors() -> None:
    half = np.sqrt(0.5)
    pose = SimpleNamespace(position=SimpleNamespace(x=1.0, y=2.0, z=3.0),
                           orientation=SimpleNamespace(x=0.0, y=0.0, z=half, w=half))
    wanted = part('ee_pose', ('z', 'rz', 'x'), 'geometry_msgs/PoseStamped')
    np.testing.assert_allclose(decode_action(SimpleNamespace(pose=pose), wanted), [3, np.pi / 2, 1], rtol=1e-6)


def test_velocities_of_a_trajectory() -> None:
    point = SimpleNamespace(positions=[1.0, 2.0], velocities=[3.0, 4.0])
    trajectory = SimpleNamespace(joint_names=['a', 'b'], points=[point])
    velocity = part('joint_velocity', ('b', 'a'), 'trajectory_msgs/JointTrajectory')
    position = part('joint_position', ('b', 'a'), 'trajectory_msgs/JointTrajectory')
    np.testing.assert_array_equal(decode_action(trajectory, velocity), [4, 3])
    np.testing.assert_array_equal(decode_action(trajectory, position), [2, 1])


@pytest.mark.parametrize(('built', 'kind'), [
    (SimpleNamespace(joint_names=['a'], points=[]), 'trajectory_msgs/JointTrajectory'),
    (SimpleNamespace(joint_names=['b'], points=[SimpleNamespace(positions=[1.0])]), 'trajectory_msgs/JointTrajectory'),
    (SimpleNamespace(data=[1.0, 2.0]), 'std_msgs/Float64MultiArray'),
    (SimpleNamespace(data=[]), 'std_msgs/Float64MultiArray'),
])
def test_commands_that_do_not_fit_are_refused(built: Any, kind: str) -> None:
    with pytest.raises(DataError, match='command: .* does not hold'):
        decode_action(built, part('joint_position', ('a',), kind))


def test_stamps() -> None:
    assert stamp_of(message('/ee_pose', START + 7)) == START + 7
    assert stamp_of(make('std_msgs/String', data='')) is None


def test_an_observation_holds_the_history_of_every_stream() -> None:
    contract = CONTRACT.model_copy(update={'history': 2})
    synchroniser = Synchroniser.for_contract(contract)
    for k in range(3):
        for stream in contract.streams:
            synchroniser.push(stream.name, START + k * DT, message('/' + stream.topic, START + k * DT, float(k)))
    observation = make_observation(contract, synchroniser.select(), 'open the faucet')
    assert (observation.stamp, observation.instruction) == (START + 2 * DT, 'open the faucet')
    assert {name: views.shape for name, views in observation.images.items()} == {
        'front': (2, 84, 84, 3), 'gripper_cam': (2, 84, 84, 3)}
    assert [int(view.max()) for view in observation.images['front']] == [1, 2]
    np.testing.assert_allclose(observation.state, [[1, 0.5, 0.1, 1], [2, 0.5, 0.1, 2]])
    assert set(observation.stamps.values()) == {(START + DT, START + 2 * DT)}
