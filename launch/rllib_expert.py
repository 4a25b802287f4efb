"""Policies of RLlib's new API stack (RLModule) as experts. Reading one unpickles it: only for checkpoints you trust."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

# Where an Algorithm's checkpoint keeps its modules, and what marks the folder of a single one.
MODULES = Path("learner_group/learner/rl_module")
CONNECTORS = Path("env_runner/env_to_module_connector")
CONSTRUCTOR = "class_and_ctor_args.pkl"


def load_rllib_policy(path: Path) -> Callable[[np.ndarray], np.ndarray]:
    """Reads the mean action of a checkpoint's policy. Unpickles it, so it runs what the checkpoint contains.

    Args:
        path: Folder that `Algorithm.save_to_path`, `RLModule.save_to_path` or Ray Tune wrote, with one policy.

    Returns:
        A callable: state (S,) -> action (A,) float32.

    Raises:
        ValueError: if it is no such folder, holds several policies or no continuous actions in [-1, 1], or if the policy
            was trained on filtered observations.
    """
    folder = _module_folder(path)
    if (path / CONNECTORS / CONSTRUCTOR).is_file():
        _refuse_filters(path / CONNECTORS)
    from ray.rllib.core.rl_module.rl_module import RLModule

    module = RLModule.from_checkpoint(str(folder.absolute()))
    return ModulePolicy(module, str(path))


def _module_folder(path: Path) -> Path:
    root = path / MODULES if (path / MODULES).is_dir() else path
    if root == path and not (path / CONSTRUCTOR).is_file():
        raise ValueError(
            f"{path} is no RLlib checkpoint of the new API stack: neither {MODULES} nor {CONSTRUCTOR} is there. "
            "Expected a folder of Algorithm.save_to_path or RLModule.save_to_path"
        )
    inner = sorted(p for p in root.iterdir() if (p / CONSTRUCTOR).is_file())
    if len(inner) > 1:
        raise ValueError(
            f"{path} holds {len(inner)} policies: give the folder of one, {', '.join(str(p) for p in inner)}"
        )
    return inner[0] if inner else root


def _refuse_filters(folder: Path) -> None:
    """A policy trained on normalised observations means nothing without the normaliser."""
    from ray.rllib.connectors.connector_pipeline_v2 import ConnectorPipelineV2

    pipeline = ConnectorPipelineV2.from_checkpoint(str(folder.absolute()))
    filters = [name for c in pipeline.connectors if "Filter" in (name := type(c).__name__)]
    if filters:
        raise ValueError(
            f"the policy of {folder.parents[1]} was trained on observations changed by {', '.join(filters)}, which are "
            "not applied here; wrap both in a function and give expert=module:function"
        )


class ModulePolicy:
    """The mean action of an RLModule.

    Attributes:
        state_size: Numbers in a state, or None if the module does not say.
        action_size: Numbers in an action.
    """

    def __init__(self, module: Any, name: str) -> None:
        """Checks the action space.

        Raises:
            ValueError: unless actions are a Box in [-1, 1].
        """
        import gymnasium

        space = module.action_space
        if not isinstance(space, gymnasium.spaces.Box) or not (
            np.allclose(space.low, -1.0) and np.allclose(space.high, 1.0)
        ):
            raise ValueError(f"{name} has actions {space}, expected a continuous Box in [-1, 1]")
        shape = getattr(module.observation_space, "shape", None)
        self.state_size = int(np.prod(shape)) if shape else None
        self.action_size = int(np.prod(space.shape))
        self._module, self._name = module, name

    def __str__(self) -> str:
        return f"{self._name}: {type(self._module).__name__} of RLlib"

    def __call__(self, state: np.ndarray) -> np.ndarray:
        """Mean action (A,) float32 of one state (S,)."""
        import torch
        from ray.rllib.core.columns import Columns
        from ray.rllib.core.distribution.torch.torch_distribution import TorchSquashedGaussian

        batch = {Columns.OBS: torch.as_tensor(np.asarray(state, dtype=np.float32))[None]}
        with torch.no_grad():
            output = self._module.forward_inference(batch)
            if Columns.ACTIONS in output:
                return output[Columns.ACTIONS][0].numpy()
            inputs = output[Columns.ACTION_DIST_INPUTS]
            distribution = self._module.get_inference_action_dist_cls().from_logits(inputs)
            action = distribution.to_deterministic().sample()
            if isinstance(distribution, TorchSquashedGaussian):
                action = torch.tanh(action)  # RLlib leaves the mean of a squashed Gaussian unsquashed.
        return action[0].numpy()
