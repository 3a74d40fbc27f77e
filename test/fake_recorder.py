"""The services and the status of a recorder that writes nothing, for tests of those who ask it."""

from __future__ import annotations

from typing import Any

from ros_graph import RosGraph
from std_srvs.srv import Trigger

from flow_vla.msg import Episode, RecorderStatus
from flow_vla.srv import MarkEpisode, StartEpisode, StopEpisode
from flow_vla_ros.qos import STATUS

__all__ = ['FakeRecorder']


class FakeRecorder:
    """Notes what it was asked, and answers as told.

    Args:
        graph: to build on.
    """

    def __init__(self, graph: RosGraph) -> None:
        self.asked: list[tuple[str, Any]] = []
        self.refusal = ''
        self.status = RecorderStatus(topics=['ee_pose'], rates=[50.0], ages=[0.01], counts=[7], drops=[2], kept=3,
                                     free_mb=12_345, seconds_left=7_260.0)
        for name, kind in (('start', StartEpisode), ('stop', StopEpisode), ('mark', MarkEpisode),
                           ('rerecord', Trigger), ('check', Trigger)):
            graph.probe.create_service(kind, f'recorder/{name}', lambda request, response, name=name: self._answer(
                name, request, response))
        self._publisher = graph.probe.create_publisher(RecorderStatus, 'recorder/status', STATUS)
        graph.probe.create_timer(0.05, lambda: self._publisher.publish(self.status))

    def _answer(self, name: str, request: Any, response: Any) -> Any:
        self.asked.append((name, request))
        response.success, response.message = not self.refusal, self.refusal
        if self.refusal:
            if hasattr(response, 'code'):
                response.code = 304
            return response
        if name == 'start':
            self.status.state, self.status.id = RecorderStatus.RECORDING, 'episode_000004'
            self.status.outcome, self.status.instruction = Episode.UNKNOWN, request.instruction
        elif name == 'stop':
            self.status.state = RecorderStatus.IDLE
        elif name == 'mark' and request.outcome != MarkEpisode.Request.KEEP_OUTCOME:
            self.status.outcome = request.outcome
        return response
