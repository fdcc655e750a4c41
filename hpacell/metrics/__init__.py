"""Scores of segmentations, locations and submissions."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "calibration": ["Calibration", "calibration_table", "expected_calibration_error", "fit_calibration"],
        "triples": ["parse_submission", "read_true_cells"],
        "detections": ["match_detections", "score_detections"],
        "matching": ["match_labels"],
        "agreement": ["aggregated_jaccard", "ctc_det", "ctc_seg", "judge_cells", "panoptic_quality"],
        "instances": ["jaccard", "score_instances"],
        "average_precision": ["score_average_precision", "score_coco"],
        "locations": ["co_occurrence", "score_locations", "summarise_locations"],
        "truth": ["true_labels", "write_truth"],
        "tissue": ["choose_thresholds_by_organ", "dice", "image_influence", "score_tissue"],
        "submission": ["read_submission", "score_submission", "validate_submission", "write_submission"],
        "tissue_submission": ["read_tissue_submission", "validate_tissue_submission", "write_tissue_submission"],
    },
)
