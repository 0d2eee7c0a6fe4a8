"""The scan: every image of every source as one row, committed part by part. Cheap, so done anew every time."""

import pyarrow as pa
from tqdm import tqdm

from . import sources
from .store import PART_ROWS, SCAN_SCHEMA


def scan(store, recipe):
    """Write the ``scan`` table of ``recipe.sources`` in their order; returns the number of rows.

    Names, order and bytes of the parts depend on the sources alone.
    """
    names, total, buffer = [], 0, []
    store.begin("scan")

    def commit():
        name = f"part-{len(names):05d}.parquet"
        store.write_part("scan", name, pa.Table.from_pylist(buffer, SCAN_SCHEMA))
        names.append(name)

    with tqdm(desc="scan", unit="img", disable=None) as progress:
        for source in recipe.sources:
            for row in sources.rows(source, store, recipe.download):
                buffer.append(row)
                if len(buffer) == PART_ROWS:
                    commit()
                    total += len(buffer)
                    progress.update(len(buffer))
                    buffer = []
    if buffer:
        commit()
        total += len(buffer)
    store.finish("scan", names, total)
    return total
