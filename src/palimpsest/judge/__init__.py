"""Those who look at pictures and say what they show."""
