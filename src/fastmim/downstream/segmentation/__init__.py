"""Semantic segmentation: UperNet on any backbone."""
