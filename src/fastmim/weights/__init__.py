"""Weights: sources, files and their models."""
