"""The making of the built-in world: training and checking its models."""
