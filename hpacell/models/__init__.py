"""Classifiers and segmenters: zoo, training, evaluation."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "zoo": ["describe_zoo", "make_classifier"],
        "transfer": ["set_backbone_trainable"],
        "recipe": ["TrainingSettings", "split_store"],
        "card": ["TrainedClassifier", "load_classifier"],
        "weak": ["make_bag_model", "pool_cells"],
        "training": ["train_classifier"],
        "watershed": ["make_maps", "watershed_cells"],
        "unet": ["UNetConfig"],
        "segmenter": ["SegmenterSettings", "TrainedSegmenter", "load_segmenter", "split_labelled", "train_segmenter"],
        "region_losses": ["RegionLoss"],
        "semantic": ["SemanticConfig", "describe_semantic", "make_semantic", "predict_mask", "predict_probability"],
        "tissue_recipe": ["TissueSettings", "split_tissue"],
        "tissue": ["TrainedTissue", "cross_validate_tissue", "load_tissue", "train_tissue"],
        "evaluation": ["activation_maps", "evaluate_classifier"],
    },
)
