"""DrQ-v2, replay storage, the update-ratio limiter and their actors."""
