"""Simulated robots without ROS; flow_vla_ros.sim puts them on the graph."""
