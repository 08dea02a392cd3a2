"""FKD: soft labels of stored crops.

Source: Shen and Xing, "A Fast Knowledge Distillation Framework for Visual Recognition", ECCV 2022.
"""

from __future__ import annotations

from ferkd.methods.base import Method, Setup
from ferkd.methods.stored import LabelKind, StoredLabels, StoredSettings, stored


class Settings(StoredSettings):
    """``label_kind`` is what is made of the stored labels; see `ferkd.methods.stored.as_kind`."""

    label_kind: LabelKind = "soft"


def _make(settings: Settings, setup: Setup) -> StoredLabels:
    return stored(settings, setup, settings.label_kind)


METHOD = Method(name="fkd", card=__doc__, make=_make, settings=Settings, labels="crops")
