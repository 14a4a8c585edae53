"""Heights and widths, of images and of grids."""

Size = tuple[int, int]
"""(height, width)."""
