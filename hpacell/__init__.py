"""Microscope fields with image-level labels in; one row, one crop and one set of protein locations per cell out."""

__version__ = "0.1.0"
