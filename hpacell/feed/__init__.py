"""The crop store and batches from it."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "store": ["CropStore", "read_store"],
        "remote": ["fetch_store", "write_store_to"],
        "writer": ["StoreWriter"],
        "augment": ["make_augmenter"],
        "batches": ["make_batches"],
        "sequence": ["CropSequence"],
        "bags": ["make_bags"],
        "export": ["export_store"],
        "foreign": ["import_boxes", "import_crops"],
        "patches": ["PatchFeed"],
        "verify": ["verify_store"],
    },
)
