"""Mask R-CNN: finds every cell of an image, with box, mask and score."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "config": ["MaskRCNNConfig"],
        "targets": ["make_targets"],
        "model": ["make_learner", "make_network", "segment_image"],
    },
)
