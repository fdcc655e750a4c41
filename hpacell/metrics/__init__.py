"""Scores of segmentations, locations and submissions."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "matching": ["match_labels"],
        "instances": ["jaccard", "score_instances"],
        "locations": ["score_locations", "summarise_locations"],
        "truth": ["true_labels"],
        "submission": ["read_submission", "validate_submission", "write_submission"],
    },
)
