"""The built-in world: pictures with exact labels, and models trained on them."""
