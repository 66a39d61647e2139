"""Picture in, labels out: the image intake, the engine's client (no torch) and, in `worker/`, the engine itself."""
