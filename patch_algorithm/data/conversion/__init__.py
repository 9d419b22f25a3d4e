"""Sources to a dataset: what is asked for, who does the work, what is kept of it, where it goes."""

from __future__ import annotations

from patch_algorithm.data.conversion.conversion import convert
from patch_algorithm.data.conversion.options import Conversion
from patch_algorithm.data.conversion.report import Report
from patch_algorithm.data.conversion.workdir import ConversionError

__all__ = ["Conversion", "ConversionError", "Report", "convert"]
