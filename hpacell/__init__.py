"""Microscope fields with image-level labels in; one row, one crop and one set of protein locations per cell out."""

import lazy_loader

__version__ = "0.1.0"

# What most people need, each loaded when it is first used. The function `segment` is the one for every method.
__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "fields.find": ["find_fields"],
        "fields.read": ["Field", "read_field"],
        "fields.simulate": ["simulate_fields"],
        "pipeline.segmenters": ["segment"],
        "cells.measurements": ["measure_cells"],
        "cells.crops": ["crop_cells"],
        "pipeline.segment": ["segment_fields"],
        "pipeline.extract": ["extract_fields"],
        "pipeline.field": ["ExtractSettings"],
        "pipeline.predict": ["predict_fields"],
        "feed.store": ["read_store"],
    },
)
