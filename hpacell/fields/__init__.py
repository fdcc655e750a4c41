"""From files to fields: reading, catalog, pictures, simulation."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "find": ["FieldSource", "Survey", "find_fields", "survey_fields"],
        "read": ["Field", "FieldError", "read_field"],
        "depth": ["IntensityScale", "to_uint8"],
        "image": ["Reading"],
        "inspect": ["inspect_fields"],
        "picture": ["composite", "draw_outlines"],
        "duplicates": ["group_duplicates", "read_duplicates"],
        "catalog": ["catalog_fields", "read_labels", "split_fields", "split_folds"],
        "intensity": ["normalise_intensity", "to_channels"],
        "tiles": ["blend_tiles", "cut_tiles", "join_tiles", "tile_windows"],
        "tissue": ["find_tissue", "tissue_window"],
        "regions": ["open_regions"],
        "simulate": ["simulate_field", "simulate_fields"],
        "slides": ["simulate_tissue", "simulate_tissues"],
    },
)
