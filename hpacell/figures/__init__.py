"""Plotly figures of labels, fields, cells and scores; reports and galleries as HTML."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "style": ["use_hpacell_style"],
        "eda": ["figure_cooccurrence", "figure_field_sizes", "figure_group_counts", "figure_label_counts", "figure_locations"],
        "cells": ["figure_crops", "figure_examples", "figure_field", "figure_outlines"],
        "report": ["write_report"],
        "curves": ["figure_confusion", "figure_location_scores", "figure_training"],
        "comparison": ["figure_average_precisions", "figure_learning_curves", "figure_location_curves", "figure_run_scores", "html_gallery"],
        "instances": ["figure_iou_curves", "figure_judged_cells", "figure_kind_scores"],
    },
)
