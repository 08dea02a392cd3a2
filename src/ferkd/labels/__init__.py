"""Soft labels: in memory (:class:`SoftLabels`) and on disk (:class:`LabelStore`)."""

from ferkd.labels.soft import SoftLabels, SparseTargets
from ferkd.labels.store import LabelStore

__all__ = ["LabelStore", "SoftLabels", "SparseTargets"]
