"""From a field to its cells: segmentation, crops, measurements."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "segmentation": ["SegmentationSettings", "segment_cells", "segment_field", "segment_nuclei"],
        "crops": ["crop_cells"],
        "windows": ["cut_windows", "read_boxes"],
        "measurements": ["measure_cells"],
    },
)
