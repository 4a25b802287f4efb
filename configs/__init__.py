"""Hydra config groups: task, reward, preset, cluster."""
