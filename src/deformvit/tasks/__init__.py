"""What is learned: tasks join a model, data, losses and metrics behind the engine's contract."""
