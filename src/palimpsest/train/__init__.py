"""Training of what others are judged by."""
