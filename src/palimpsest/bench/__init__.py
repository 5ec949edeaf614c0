"""Many runs as one piece of work."""
