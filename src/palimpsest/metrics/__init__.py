"""Pure functions from judgements and features to numbers with their uncertainty."""
