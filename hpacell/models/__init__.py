"""Classifiers: zoo, training, evaluation."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "zoo": ["describe_zoo", "make_classifier"],
        "transfer": ["set_backbone_trainable"],
        "training": ["TrainedClassifier", "TrainingSettings", "load_classifier", "train_classifier"],
        "evaluation": ["evaluate_classifier"],
    },
)
