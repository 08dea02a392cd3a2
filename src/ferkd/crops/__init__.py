"""Crops: drawn at random, cut from a decoded image on the CPU or on a device."""

from ferkd.crops.cut import CUT_RULE, cut, cut_scaled, largest_reduction
from ferkd.crops.draw import (
    CropDistribution,
    center_box,
    hashes,
    image_keys,
    random_boxes,
    uniforms,
)
from ferkd.crops.share import object_share

__all__ = [
    "CUT_RULE",
    "CropDistribution",
    "center_box",
    "cut",
    "cut_scaled",
    "hashes",
    "image_keys",
    "largest_reduction",
    "object_share",
    "random_boxes",
    "uniforms",
]
