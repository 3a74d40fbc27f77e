"""The ROS 2 side of flow_vla: nodes, message codecs and simulated robots."""
