"""The data sets of the results, laid out as the suites and recipes name them."""

from ferkd.study.data.fashion import fashion_mnist
from ferkd.study.data.flowers import flowers

__all__ = ["fashion_mnist", "flowers"]
