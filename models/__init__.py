"""Neural networks and their maths, video datasets and checkpoint folders."""
