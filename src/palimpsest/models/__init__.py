"""Backbones, each behind the verbs that methods need."""
