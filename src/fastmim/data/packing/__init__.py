"""Resized copies of a data set."""
