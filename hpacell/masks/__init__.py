"""Label images, boxes, run-length codes, COCO files, and the layouts in which labelled images come."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "labels": ["clear_border", "labels_to_masks", "masks_to_labels", "relabel"],
        "boxes": ["box_iou", "boxes_of"],
        "rle": ["decode_hpa", "decode_kaggle", "decode_labels_rle", "decode_rle", "encode_hpa", "encode_kaggle", "encode_labels_rle", "encode_rle"],
        "coco": ["read_coco", "write_coco"],
        "labelled": ["LabelledImage"],
        "writers": ["write_labelled"],
        "layouts": ["find_labelled"],
        "tissue": ["decode_tissue", "find_tissue_images", "read_tissue", "rings_mask"],
    },
)
