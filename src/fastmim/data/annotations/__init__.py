"""Annotations of images other than one class for each: masks and boxes."""
