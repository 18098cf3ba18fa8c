"""The visual class of every fine type: an explicit table first, then rules of whole words.

Why these classes (the table `data/fine_types.tsv` holds each decision):

- Inflammatory: every leukocyte with a nucleus, wherever it lives (Kupffer, microglia, Langerhans, osteoclasts,
  thymocytes) and its precursors.
- Connective: PanNuke's class of the stroma: fibroblasts, muscle of every kind, endothelium, pericytes,
  adipocytes, cartilage, bone, and the spindle cells of nerves (Schwann, satellite and enteric glia).
- Epithelial: epithelium and the parenchyma that looks like it (hepatocytes, endocrine and steroid-producing
  cells, trophoblast, mesothelium), with the cells that sit within it (melanocytes, Merkel, myoepithelium).
- none: no class of PanNuke's shows them: neurons, glia of the brain, germ cells, cells of the early embryo, and
  erythroid cells and platelets, whose RNA is everywhere and whose nuclei mostly are not.
- shared: no lineage: states (cycling, dying, checkpoints) and words too wide to vote (stem cell, cancer cell).
  A tumour type of a known lineage votes for its lineage; Neoplastic is decided by evidence, not by a marker.

Dead has no markers either: what dying cells express (BAX, FAS, HSPA1A), stressed and healthy ones express too.
"""

import csv
import functools
import re
from importlib import resources

SHARED = "shared"
NONE = "none"
_PLURALS = re.compile(r"(?<=[a-z]{3})(?<!s)(?<!u)(?<!i)s\b")
_NUMBER = re.compile(r"(?<=[a-z])[ _]\d+$")
_BRACKETS = re.compile(r"\s*\([^)]*\)")
_HEAD = re.compile(r"\s+(?:of|from|in)\s+|,|;")


def data_rows(name: str) -> list[dict[str, str]]:
    """Rows of a shipped tab separated table; a line that starts with ``#`` is a comment."""
    text = (resources.files("stqp.celltyping") / "data" / name).read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return list(csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE))


@functools.lru_cache(maxsize=65536)
def type_key(name: str) -> str:
    """Spelling by which fine types are compared: no case, plural, bracket or cluster number."""
    key = _BRACKETS.sub("", name).strip().casefold().replace("_", " ").replace("’", "'")
    key = _NUMBER.sub("", re.sub(r"\s+", " ", key)).removesuffix(", human")
    return _PLURALS.sub("", key)


@functools.cache
def _explicit() -> dict[str, str]:
    return {type_key(row["fine_type"]): row["class"] for row in data_rows("fine_types.tsv")}


@functools.cache
def _rules() -> list[tuple[re.Pattern[str], str]]:
    return [
        (re.compile(rf"(?:^|[\s/+-]){row['ends_with']}$"), row["class"]) for row in data_rows("fine_type_rules.tsv")
    ]


def class_of_fine_type(name: str) -> str | None:
    """Visual class of a fine type.

    Parameters
    ----------
    name
        Name of a cell type, as marker tables, panels and the Cell Ontology write it.

    Returns
    -------
    str or None
        A visual class, ``shared`` (no lineage), ``none`` (a lineage without a visual class), or None: the name
        is not known. The explicit table decides, for the name and then for its head, which is what stands
        before ``of``, ``in`` or a comma; then the rules, which compare whole words at the end of
        either, so that ``Transient cells`` is no ``T cell``.
    """
    table = _explicit()
    key = type_key(name)
    if key in table:
        return table[key]
    head = type_key(_HEAD.split(key)[0])
    if head in table:
        return table[head]
    for words in (key, head):
        for pattern, visual in _rules():
            if pattern.search(words):
                return visual
    return None
