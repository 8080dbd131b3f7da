"""precomputed."""
