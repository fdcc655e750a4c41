"""Plotly figures of labels, fields, cells and scores."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "style": ["use_hpacell_style"],
        "eda": ["figure_cooccurrence", "figure_field_sizes", "figure_group_counts", "figure_label_counts", "figure_locations"],
        "cells": ["figure_crops", "figure_examples", "figure_field", "figure_outlines"],
        "curves": ["figure_confusion", "figure_location_scores", "figure_training"],
    },
)
