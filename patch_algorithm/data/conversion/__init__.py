"""Sources to a dataset, in one phase.

Every source is cut into units: fixed runs of whole documents, about 64 MB of text, which depend only on the
source. A worker makes a unit independently of all others: it encodes the text, packs the tokens into rows,
writes them with streaming's ``MDSWriter`` into the unit's own folder within each stream, keeps the tokens
that do not fill a shard in a tail, and finally writes the unit's record, which makes it final. So workers
need no order, and a unit comes out the same wherever and whenever it is made.

- *Killed.* A unit without a record is removed and made again. The record holds the size and hash of each
  file and a hash of the text, so that units whose files are whole and whose text has not changed are kept,
  whatever has happened to other sources. Names of units come from their source's name and their number.
- *Object stores.* The worker uploads the shards before it writes the record, and then removes them here:
  on disk are the units under way, and the tails of those that are finished.
- *Many components.* What would make a small shard goes to the tail; see :class:`units.UnitMaker`.
- *The end.* The tails of all units, in the order of the sources, are joined, and their rows become the last
  shards of each stream. ``index.json`` of a stream lists the shards of all units, then those of the tails;
  ``dataset.json`` comes last, and a folder is renamed to its place only then.

::

    documents    a block of text to the tokens of its documents; the bad ones
    writing      tokens to rows in shards
    units        a unit from its text to its record
    records      what is remembered of a unit
    workdir      where that is kept; the lock, the plan, the last steps
    engines      this process, processes of this machine, or Ray
    work         which units there are, which are finished, and the making of the others
    finish       tails, indexes, the tokenizer
    output       whether the dataset may be written to its place
    upload       files to object stores
    options, conversion, estimation, report
"""

from __future__ import annotations

from patch_algorithm.data.conversion.conversion import convert
from patch_algorithm.data.conversion.options import Conversion
from patch_algorithm.data.conversion.records import ConversionError
from patch_algorithm.data.conversion.report import Report

__all__ = ["Conversion", "ConversionError", "Report", "convert"]
