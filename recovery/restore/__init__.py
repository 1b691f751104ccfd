"""The way back: a point in time, restored beside, verified, compared, and only then given."""
