"""Campaigns: a file says what is compared, and commands carry it out."""
