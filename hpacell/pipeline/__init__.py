"""Many fields at once: extraction, prediction, segmentation; runs, sweeps and what came of them."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "extract": ["ExtractReport", "extract_fields"],
        "repair": ["repair_store"],
        "field": ["ExtractSettings", "extract_field"],
        "predict": ["predict_fields", "predict_store"],
        "convert": ["ConvertReport", "convert_labelled"],
        "segment": ["segment_fields"],
        "segmenters": ["segmenter_of"],
        "runs": ["list_runs", "run"],
        "points": ["read_sweep"],
        "sweep": ["run_sweep"],
        "compared": ["read_runs"],
        "comparison": ["compare_runs"],
        "scored": ["paired_difference", "read_test_cells"],
    },
)
