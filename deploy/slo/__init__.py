"""A running server becomes a verdict on its latency objectives."""
