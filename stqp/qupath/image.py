"""What a .qpdata file holds of an image beside its objects: type, stains, workflow, properties, TMA grid."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from stqp.errors import UsageError
from stqp.qupath.codec.decode import Parts
from stqp.qupath.codec.document import Document
from stqp.qupath.codec.layout import (
    HIERARCHY,
    IMAGE_TYPE,
    KINDS,
    SCRIPT_STEP,
    STAINS,
    TMA_GRID,
    WORKFLOW,
    Q,
    Vocabulary,
)
from stqp.qupath.java.nodes import NULL, Block, EnumNode, Instance, StreamError, Text, encode
from stqp.qupath.objects import ObjectKind, PathObjects

IMAGE_TYPES = ("BRIGHTFIELD_H_E", "BRIGHTFIELD_H_DAB", "BRIGHTFIELD_OTHER", "FLUORESCENCE", "OTHER", "UNSET")
_BOXED = ("Integer", "Long", "Short", "Byte", "Double", "Float", "Boolean", "Character")
_PLUGIN_STEPS = tuple(f"{Q}plugins.workflow.{kind}PluginWorkflowStep" for kind in ("Simple", "Default"))


@dataclass(frozen=True)
class Stains:
    """Stains of a brightfield image.

    Attributes
    ----------
    name : str
    stains : list of (name, (float, float, float))
        Two or three; the optical density of each in red, green, blue.
    background : tuple of float
        Red, green, blue of the empty slide.
    """

    name: str
    stains: list[tuple[str, tuple[float, ...]]]
    background: tuple[float, ...] = (255.0, 255.0, 255.0)

    @classmethod
    def parse(cls, text: str) -> Stains:
        """Read QuPath's text of stains.

        Raises
        ------
        StreamError
            When it is none.
        """
        try:
            content = json.loads(text)
            found = []
            for k in range(1, 4):
                if f"Stain {k}" in content:
                    found.append((str(content[f"Stain {k}"]), _floats(content[f"Values {k}"])))
            return cls(str(content.get("Name", "")), found, _floats(content["Background"]))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise StreamError(f"its stains are not as QuPath writes them ({error!r})") from error

    def text(self) -> str:
        """QuPath's text of the stains."""
        content: dict[str, str] = {"Name": self.name}
        for k, (name, vector) in enumerate(self.stains, start=1):
            content[f"Stain {k}"] = name
            content[f"Values {k}"] = " ".join(f"{v:.8g}" for v in vector)
        content["Background"] = " " + " ".join(f"{v:g}" for v in self.background)
        return json.dumps(content, ensure_ascii=False, separators=(", ", " : "))


@dataclass(frozen=True)
class WorkflowStep:
    """A step of an image's workflow: what QuPath lists, and the script that repeats it."""

    name: str
    script: str = ""
    parameters: dict[str, Any] = field(default_factory=dict)


@dataclass
class ImageData:
    """All that is known of a file.

    Attributes
    ----------
    objects : PathObjects
    image_type : str
        One of `IMAGE_TYPES`.
    stains : Stains or None
    workflow : list of WorkflowStep
    properties : dict
        Text, numbers and truth values; of anything else, the name of its class in angle brackets.
    tma_grid : tuple of int or None
        Width and height; the cores are the root's children of that kind, row by row.
    head : dict
        The JSON at the beginning: versions, and how QuPath opened the image.
    """

    objects: PathObjects
    image_type: str = "BRIGHTFIELD_H_E"
    stains: Stains | None = None
    workflow: list[WorkflowStep] = field(default_factory=list)
    properties: dict[str, Any] = field(default_factory=dict)
    tma_grid: tuple[int, int] | None = None
    head: dict[str, Any] = field(default_factory=dict)

    @property
    def qupath_version(self) -> str | None:
        """Version of QuPath that wrote the file."""
        version = self.head.get("qupathVersion")
        return str(version) if version is not None else None


def image_data(document: Document) -> ImageData:
    """Read what a parsed file holds."""
    data = ImageData(document.objects(), image_type="UNSET")
    for item in document.items:
        if isinstance(item, EnumNode) and item.desc.name == IMAGE_TYPE:
            data.image_type = str(item.constant)
        elif isinstance(item, Text) and item.raw[:1] == b"{" and not data.head:
            data.head = _head(str(item))
        elif not isinstance(item, Instance):
            continue
        elif item.desc.name == STAINS:
            data.stains = Stains.parse(str(item.data[1]))
        elif item.desc.name == WORKFLOW:
            data.workflow = [_step(node) for node in item.data[1:]]
        elif item.desc.name == "java.util.HashMap":
            data.properties = java_map(item)
    grid = _hierarchy(document).get("tmaGrid")
    if isinstance(grid, Instance) and grid.desc.name == TMA_GRID:
        data.tma_grid = int(grid.get("gridWidth")), int(grid.get("gridHeight"))
    return data


def set_image(
    document: Document,
    image_type: str | None = None,
    stains: Stains | None = None,
    steps: Sequence[WorkflowStep] = (),
    properties: Mapping[str, str | int | float | bool] | None = None,
) -> None:
    """Change what a file holds beside its objects; what is not named stays.

    Parameters
    ----------
    document
        The file.
    image_type
        One of `IMAGE_TYPES`.
    stains
        In place of those that are there.
    steps
        Appended to the workflow.
    properties
        Added to those that are there, or in place of those of the same key.

    Raises
    ------
    UsageError
        When QuPath has no such type of image.
    """
    items, v = document.items, document.vocabulary
    if image_type is not None:
        if image_type not in IMAGE_TYPES:
            raise UsageError(f"{image_type!r} is no image type of QuPath's; it has {', '.join(IMAGE_TYPES)}")
        # another type is another constant of the enum, whose description stays
        constant = EnumNode(v.desc(IMAGE_TYPE), Text(encode(image_type)))
        _put(items, constant, lambda i: isinstance(i, EnumNode) and i.desc.name == IMAGE_TYPE, 3)
    if stains is not None:
        node = Instance(v.desc(STAINS), [Block(struct.pack(">i", 1)), Text(encode(stains.text()))])
        _put(items, node, lambda i: isinstance(i, Instance) and i.desc.name == STAINS, 4)
    if steps:
        old = next((i for i in items if isinstance(i, Instance) and i.desc.name == WORKFLOW), None)
        nodes = [*(old.data[1:] if old is not None else []), *(_step_node(v, step) for step in steps)]
        counted = Block(struct.pack(">ii", 1, len(nodes)))
        if old is not None:
            old.data[:] = [counted, *nodes]
        else:
            items.insert(-1, Instance(v.desc(WORKFLOW), [counted, *nodes]))
    if properties:
        old = next((i for i in items if isinstance(i, Instance) and i.desc.name == "java.util.HashMap"), None)
        pairs = {} if old is None else {str(k): (k, value) for k, value in _pairs(old)}
        for key, value in properties.items():
            pairs[key] = (pairs[key][0] if key in pairs else Text(encode(key)), _boxed(v, value))
        fresh = v.hash_map(list(pairs.values()))
        if old is not None:
            old.data[:] = fresh.data
        else:
            items.insert(-1, fresh)


def set_tma_grid(document: Document, size: tuple[int, int]) -> None:
    """Make the root's cores a grid, row by row.

    Raises
    ------
    UsageError
        When there are not as many cores as places.
    """
    parts, v = Parts(document.root), document.vocabulary
    children = document.root.data[parts.start : parts.stop]
    cores = [c for c in children if isinstance(c, Instance) and KINDS.get(c.desc.name) == ObjectKind.TMA_CORE]
    width, height = size
    if len(cores) != width * height:
        raise UsageError(f"a TMA grid of {width} x {height} needs {width * height} cores, but there are {len(cores)}")
    grid = v.serial(TMA_GRID, struct.pack(">ii", height, width), [v.array_list([*cores])])
    _hierarchy(document).data[0][1][1] = grid


def _hierarchy(document: Document) -> Instance:
    return next(i for i in document.items if isinstance(i, Instance) and i.desc.name == HIERARCHY)


def java_map(node: Any) -> dict[str, Any]:
    """Keys and values of any of Java's maps."""
    return {str(key): plain(value) for key, value in _pairs(node)}


def plain(node: Any) -> Any:
    """Text, number or truth value of a node; the name of its class in angle brackets for others."""
    if node is NULL or node is None:
        return None
    if isinstance(node, Text):
        return str(node)
    if isinstance(node, EnumNode):
        return str(node.constant)
    name = getattr(getattr(node, "desc", None), "name", type(node).__name__)
    if isinstance(node, Instance) and name.removeprefix("java.lang.") in _BOXED:
        value = node.get("value")
        return bool(value) if name.endswith("Boolean") else value
    return f"<{name}>"


def _pairs(node: Any) -> list[tuple[Any, Any]]:
    if node is NULL or not isinstance(node, Instance):
        return []
    if (key := node.get("k")) is not None:
        return [(key, node.get("v"))]
    if (inner := node.get("m")) is not None:
        return _pairs(inner)
    for _, _, extra in node.data:
        if extra and isinstance(extra[0], Block):
            flat = [item for item in extra[1:] if not isinstance(item, Block)]
            return list(zip(flat[::2], flat[1::2], strict=False))
    return []


def _step(node: Any) -> WorkflowStep:
    if not isinstance(node, Instance):
        return WorkflowStep(plain(node) or "")
    if node.desc.name in _PLUGIN_STEPS:
        texts = ["" if item is NULL else str(item) for item in node.data if not isinstance(item, Block)]
        name, plugin, argument, before, after = (texts + [""] * 5)[:5]
        script = f"{before}runPlugin('{plugin}', '{argument}'){after}"
        return WorkflowStep(name, script, {"plugin": plugin, "arguments": argument})
    if not isinstance(node.data[0], tuple):
        return WorkflowStep(f"<{node.desc.name}>")
    name, script = node.get("name"), node.get("script")
    return WorkflowStep(plain(name) or "", plain(script) or "", java_map(node.get("map")))


def _step_node(v: Vocabulary, step: WorkflowStep) -> Instance:
    pairs = [(Text(encode(str(key))), _boxed(v, value)) for key, value in step.parameters.items()]
    return v.serial(SCRIPT_STEP, b"", [v.hash_map(pairs), Text(encode(step.name)), Text(encode(step.script))])


def _boxed(v: Vocabulary, value: Any) -> Any:
    if isinstance(value, (bool, np.bool_)):
        return v.boolean(bool(value))
    if isinstance(value, (int, np.integer)) and -(1 << 31) <= value < 1 << 31:
        return v.integer(int(value))
    if isinstance(value, (int, float, np.integer, np.floating)):
        return v.double(float(value))
    return Text(encode(str(value)))


def _put(items: list[Any], node: Any, same: Any, place: int) -> None:
    for k, item in enumerate(items):
        if same(item):
            items[k] = node
            return
    after = next((k for k, item in enumerate(items) if isinstance(item, Block)), 0) + place
    if after < len(items) and items[after] is NULL:
        items[after] = node
    else:
        items.insert(min(after, len(items) - 1), node)


def _head(text: str) -> dict[str, Any]:
    try:
        content = json.loads(text)
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def _floats(text: str) -> tuple[float, ...]:
    return tuple(float(part) for part in str(text).split())
