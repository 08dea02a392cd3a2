"""Soft labels: in memory (:class:`SoftLabels`) and on disk (:class:`LabelStore`)."""

from ferkd.store.reader import LabelStore
from ferkd.store.soft import SoftLabels, SparseTargets

__all__ = ["LabelStore", "SoftLabels", "SparseTargets"]
