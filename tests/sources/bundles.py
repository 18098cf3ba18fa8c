"""Spoil bundles, for tests."""

import gzip

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq


def edit(path, change):
    """Change a table by way of pandas."""
    if path.suffix == ".parquet":
        table = change(pq.read_table(path).to_pandas())
        pq.write_table(pa.Table.from_pandas(table, preserve_index=False), path)
    else:
        table = change(pyarrow.csv.read_csv(path).to_pandas())
        path.write_bytes(gzip.compress(table.to_csv(index=False).encode()))


def read_all(outs, source="polygons"):
    """Cells, nuclei, cell outlines and counts of a bundle, held against each other as an import does."""
    from stqp.sources.xenium import XeniumBundle
    from stqp.sources.xenium_nuclei import check_counts, check_places

    bundle = XeniumBundle.open(outs)
    cells = bundle.read_cells()
    nuclei = bundle.read_nuclei(cells.ids, source, cells.nucleus_count)
    outlines = bundle.read_cell_outlines(cells.ids)
    counts = bundle.read_counts(cells.ids)
    check_places(nuclei, cells, "nuclei", outs)
    if outlines is not None:
        check_places(outlines, cells, "cell outlines", outs)
    check_counts(counts, cells, outs)
    return cells, nuclei, outlines, counts
