"""Architectures that timm lacks."""
