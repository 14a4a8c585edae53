"""Batches of crops, read by worker processes."""
