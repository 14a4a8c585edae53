"""The training engine; it knows no method, target or data."""
