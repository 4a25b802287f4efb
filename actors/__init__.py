"""Environments, expert policies, rollouts and evaluation."""
