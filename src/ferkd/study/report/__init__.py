"""One self-contained HTML page from plain data: what was compared, on what evidence, and why."""

from ferkd.study.report.gallery import crop_thumb, gallery_item, jpeg_uri, pick_crops
from ferkd.study.report.model import (
    Budget,
    Cell,
    Choice,
    ConfidencePanel,
    CropThumb,
    Curve,
    Difference,
    Fact,
    Gallery,
    GalleryCrop,
    GalleryItem,
    Goal,
    MiningPanel,
    RegionShares,
    Reliability,
    Report,
    Series,
    Table,
)
from ferkd.study.report.page import render, write_report
from ferkd.study.report.panels import (
    confidence_panel,
    mining_panel,
)

__all__ = [
    "Budget",
    "Cell",
    "Choice",
    "ConfidencePanel",
    "CropThumb",
    "Curve",
    "Difference",
    "Fact",
    "Gallery",
    "GalleryCrop",
    "GalleryItem",
    "Goal",
    "MiningPanel",
    "RegionShares",
    "Reliability",
    "Report",
    "Series",
    "Table",
    "confidence_panel",
    "crop_thumb",
    "gallery_item",
    "jpeg_uri",
    "mining_panel",
    "pick_crops",
    "render",
    "write_report",
]
