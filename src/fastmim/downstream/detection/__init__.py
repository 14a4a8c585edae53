"""Object detection and instance segmentation: Mask R-CNN on any backbone."""
