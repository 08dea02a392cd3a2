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

__all__ = [
    "CUT_RULE",
    "CropDistribution",
    "center_box",
    "cut",
    "cut_scaled",
    "hashes",
    "image_keys",
    "largest_reduction",
    "random_boxes",
    "uniforms",
]
