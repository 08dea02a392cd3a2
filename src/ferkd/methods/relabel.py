"""ReLabel: labels pooled from a label map an image.

Source: Yun et al., "Re-labeling ImageNet", CVPR 2021.
"""

from __future__ import annotations

from ferkd.methods.base import ONE_CROP, Method, Taught
from ferkd.methods.stored import stored

METHOD = Method(
    name="relabel",
    card=__doc__,
    make=stored,
    settings=Taught,
    labels="map",
    defaults={"data": ONE_CROP},
)
