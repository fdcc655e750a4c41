"""Plotly figures of labels, fields, cells and scores; reports and galleries as HTML."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "style": ["use_hpacell_style"],
        "eda": ["figure_combinations", "figure_cooccurrence", "figure_label_counts", "figure_locations", "figure_rarity"],
        "donors": ["figure_ages", "figure_field_sizes", "figure_group_counts", "figure_missing", "figure_values"],
        "shapes": ["figure_cell_ratios", "figure_cells_per_field", "figure_crop_sizes", "size_quartiles"],
        "splits": ["figure_leakage", "figure_sampling", "figure_split_balance", "leaking_groups"],
        "units": ["figure_mask_areas", "figure_unit_shapes", "measure_units"],
        "cells": ["figure_crops", "figure_examples", "figure_field", "figure_outlines", "figure_pictures"],
        "pictures": ["change_patches", "figure_changes", "figure_masks", "figure_tiles"],
        "page": ["write_page"],
        "collection": ["explore_tables"],
        "report": ["write_report"],
        "curves": ["figure_confusion", "figure_location_scores", "figure_training"],
        "comparison": ["figure_average_precisions", "figure_learning_curves", "figure_location_curves", "figure_run_scores", "html_gallery"],
        "instances": ["figure_iou_curves", "figure_judged_cells", "figure_kind_scores"],
    },
)
