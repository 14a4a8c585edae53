"""Backbones on part of an image."""
