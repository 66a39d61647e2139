"""The engine half: weights, model, batcher and the process that serves them. The only place that imports torch."""
