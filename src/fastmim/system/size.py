"""The size of an image or a grid."""

Size = tuple[int, int]
"""(height, width)."""
