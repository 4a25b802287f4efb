"""Frames in, learned rewards out: histories, estimators, standardisation, batching."""
