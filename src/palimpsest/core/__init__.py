"""What everything stands on: errors, names, files and progress. No torch."""
