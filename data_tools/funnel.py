"""How many images each rule rejects: counted once, shown by the report, the dataset card and the command line."""

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import pyarrow.compute as pc


@dataclass
class Funnel:
    """Counts over a decision.

    fired: by rule, the images that it rejects. first: those it is the first to reject (they add up to ``rows - kept``).
    alone: those that no other rule rejects. flagged: by flag.
    """

    rows: int = 0
    kept: int = 0
    fired: Counter = field(default_factory=Counter)
    first: Counter = field(default_factory=Counter)
    alone: Counter = field(default_factory=Counter)
    flagged: Counter = field(default_factory=Counter)


def funnel(store):
    """The :class:`Funnel` of a finished decision."""
    counts = Funnel()
    for table in store.batches("decide", ["keep", "rules", "flags", "primary"]):
        counts.rows += len(table)
        counts.kept += pc.sum(table["keep"]).as_py() or 0
        _count(counts.fired, pc.list_flatten(table["rules"]))
        _count(counts.flagged, pc.list_flatten(table["flags"]))
        _count(counts.first, pc.drop_null(table["primary"]))
        single = np.asarray(pc.list_value_length(table["rules"])) == 1
        _count(counts.alone, table["primary"].filter(single))
    return counts


def _count(counter, values):
    for entry in pc.value_counts(values).to_pylist():
        counter[entry["values"]] += entry["counts"]
