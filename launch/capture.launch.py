"""Launches the recorder of episodes; by arguments also a simulated robot, and what a person drives it with."""

from launch import LaunchDescription

from flow_vla_ros.bringup import launch_description


def generate_launch_description() -> LaunchDescription:
    """Describe the nodes; ``ros2 launch flow_vla capture.launch.py --show-args`` lists the arguments."""
    return launch_description('capture')
