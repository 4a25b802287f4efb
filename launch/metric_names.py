"""What every number of a training run means, by its name in TensorBoard ("phase/name"; what heads a row has no phase)."""

from __future__ import annotations

PROCESSES = ("driver", "learner", "rollout", "reward", "replay", "evaluator", "weights")

HEAD = {
    "agent_steps": "Policy queries whose transitions a replay shard has stored",
    "frames": "Simulator steps: agent steps times action_repeat",
    "updates": "Gradient steps of the learner",
    "wall_s": "Seconds since the run began, earlier parts of a resumed run included",
}
LEARNING = {
    "episodes": "Episodes that the replay shards have stored",
    "episode_success": "Success rate of the last 20 training episodes",
    "env_return": "Mean sum of the environment's reward over the last 20 training episodes",
    "dense_return": "Mean sum of the simulator's shaped reward over the last 20 training episodes",
    "learned_return": "Mean sum of the standardised learned reward over the last 20 training episodes",
}
RATES = {
    "agent_steps_per_s": "Agent steps per second since the last row",
    "updates_per_s": "Updates per second since the last row",
    "update_ratio": "Updates per agent step after limiter.min_steps",
    "rollout_weight_version": "Updates behind the weights that the newest episode was rolled out with",
    "weight_lag_updates": "Updates done between the weights of an episode and its storage, mean of the last 20 episodes",
    "block_latency_s": "Seconds from the start of a block of episodes to its storage, mean since the last row",
}
REWARD_SERVICE = {
    "reward_queue_requests": "Blocks that wait for a batch of the reward actors",
    "reward_batch_fill": "Frames of a reward batch over max_batch_frames, mean since the last row",
    "reward_latency_s": "Seconds from a reward actor's request to its result, mean since the last row",
    "reward_frames_per_s": "Frames scored per second of computing, mean since the last row",
    "reward_busy_s": "Seconds that the reward actors have computed",
    "reward_requests": "Blocks scored",
    "reward_batches": "Batches computed",
    "reward_frames": "Frames scored",
    "reward_failed_batches": "Batches that ended in an error",
}
LEARNER = {
    "critic_loss": "Loss of the critic",
    "critic_q1": "Mean value of the first critic",
    "critic_q2": "Mean value of the second critic",
    "critic_target_q": "Mean target value",
    "actor_loss": "Loss of the actor",
    "actor_logprob": "Mean log-probability of the actor's actions",
    "actor_ent": "Mean entropy of the actor's exploration noise",
    "actor_saturation": "Share of the actor's outputs before tanh that are beyond +-2",
    "actor_dormant_ratio": "Share of the actor's units that hardly respond",
    "batch_reward": "Mean n-step reward of a batch, the weighted bonus included",
    "expl_reward": "Mean bonus of a batch, unweighted",
    "bonus_loss": "Loss of the bonus's own network",
    "batch_wait_s": "Seconds that the learner has waited for batches",
}
REPLAY = {
    "replay_transitions": "Transitions that the replay shards hold",
    "dropped_episodes": "Episodes that were rolled out and that their shard did not store",
    "duplicate_episodes": "Episodes that reached a shard a second time and were not stored again",
}
HEALTH = {
    "recoveries": "Blocks, evaluations and learner calls lost with a process and repeated",
    "object_store_bytes": "Bytes of the cluster's object stores in use",
    "object_store_share": "Share of the cluster's object stores in use",
    **{f"{kind}_rss_bytes": f"Resident memory of the largest {kind} process" for kind in PROCESSES},
    **{
        f"{kind}_private_bytes": f"Resident memory of the largest {kind} process, without mapped files and shared memory"
        for kind in PROCESSES
    },
}
# Only of runs with storage=.
STORAGE = {
    "storage_copies": "Checkpoints that were copied to storage=",
    "storage_failures": "Attempts to copy a checkpoint that failed",
}
EVALUATION = {
    "success_rate": "Share of evaluation episodes that succeeded",
    "success_low": "Lower end of the 95 % interval of success_rate",
    "success_high": "Upper end of the 95 % interval of success_rate",
    "episodes": "Episodes of one evaluation",
    "env_return": "Mean sum of the environment's reward",
    "dense_return": "Mean sum of the simulator's shaped reward",
    "learned_return": "Mean sum of the standardised learned reward, of the episodes that became videos",
    "length_steps": "Mean agent steps of an episode",
    "weight_version": "Updates behind the weights that were evaluated",
    "evaluation_wall_s": "Seconds that the evaluation took",
}

TRAIN = {**LEARNING, **RATES, **REWARD_SERVICE, **LEARNER, **REPLAY, **HEALTH, **STORAGE}
DESCRIPTIONS = {
    **HEAD,
    **{f"train/{name}": text for name, text in TRAIN.items()},
    **{f"eval/{name}": text for name, text in EVALUATION.items()},
}
