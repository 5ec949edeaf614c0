"""Parts that several methods are built of."""
