"""Pixel environments: one registry of tasks, one renderer, one Gymnasium class per domain."""
