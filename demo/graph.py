# SPDX-License-Identifier: GPL-3.0-or-later
"""Builds a workflow from what a running host says of its nodes, in the form in which its front end saves one."""

from __future__ import annotations

import json
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from testbed.server import Server

# the front end's own colours: (title, body)
PURPLE, BLUE, GREEN, NOTE = ("#323", "#535"), ("#223", "#335"), ("#232", "#353"), ("#432", "#653")
GROUP_BLUE, GROUP_GREEN, GROUP_PURPLE, GROUP_GREY = "#3f789e", "#88A06A", "#8A6AA0", "#666"

WIDGET_TYPES = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}
# pixels: a node's title, a group's title, space around nodes in a group, between nodes, and between columns
HEADER, GROUP_TITLE, MARGIN, GAP, AISLE = 30, 46, 14, 18, 70
# pixels that the taller of the two renderers takes: a row of sockets, a widget, one of text, one of many lines, the end
SLOT, WIDGET, TEXT, LINES, END = 20, 28, 36, 110, 46
#: What nodes of ours show below their widgets, in pixels: ``HEIGHT`` in ``web/live.js`` and ``web/saved.js``
VIEWS = {"SODATrain": 410, "SODASaveAdapter": 34, "SODAExportLoRA": 34}


@dataclass
class Node:
    """One node while its graph is built; ``node[0]`` or ``node["MODEL"]`` is an output to link from."""

    id: int
    type: str
    schema: dict[str, Any]
    place: tuple[int, int]
    size: tuple[int, int]
    title: str | None
    colour: tuple[str, str] | None
    inputs: list[dict[str, Any]] = field(default_factory=list)
    widgets: list[Any] = field(default_factory=list)
    links: dict[int, list[int]] = field(default_factory=dict)
    properties: dict[str, Any] = field(default_factory=dict)

    def __getitem__(self, output: int | str) -> tuple[Node, int]:
        return self, self.schema["output_name"].index(output) if isinstance(output, str) else output


class Graph:
    """Builds one workflow."""

    def __init__(self, name: str, object_info: dict[str, Any]) -> None:
        self.name, self.object_info = name, object_info
        self.nodes: list[Node] = []
        self.links: list[list[Any]] = []
        self.groups: list[dict[str, Any]] = []
        self.notes: list[dict[str, Any]] = []
        self.app: dict[str, list[Any]] = {}
        self._count = 0

    def add(
        self,
        kind: str,
        place: tuple[int, int],
        size: tuple[int, int],
        title: str | None = None,
        colour: tuple[str, str] | None = None,
        **inputs: Any,
    ) -> Node:
        """Add a node. Each input is another node's output to link, or a widget's value; other widgets keep defaults."""
        schema = self.object_info[kind]
        node = Node(self._next(), kind, schema, place, size, title, colour)
        self.nodes.append(node)
        specs = _input_specs(schema)
        if unknown := inputs.keys() - specs.keys():
            raise ValueError(f"{kind} has no input {', '.join(sorted(unknown))}; it has {', '.join(specs)}")
        for name, (socket, _) in specs.items():
            if socket not in WIDGET_TYPES:
                self._input(node, name, socket, inputs.get(name))
        for name, (socket, options) in specs.items():
            if socket in WIDGET_TYPES:
                value = inputs.get(name)
                linked = isinstance(value, tuple)
                self._input(node, name, socket, value if linked else None, widget=not options.get("forceInput"))
                if not options.get("forceInput"):
                    node.widgets.append(_default(socket, options) if linked or name not in inputs else value)
                    if options.get("control_after_generate"):
                        node.widgets.append("fixed")
        return node

    def _input(self, node: Node, name: str, socket: str, source: Any, widget: bool = False) -> None:
        entry: dict[str, Any] = {"name": name, "type": socket, "link": None}
        if widget:
            entry["widget"] = {"name": name}
        node.inputs.append(entry)
        if source is not None:
            self.link(node, name, source)

    def link(self, node: Node, name: str, source: tuple[Node, int]) -> None:
        """Link another node's output to an input that is still free."""
        place, entry = next((i, entry) for i, entry in enumerate(node.inputs) if entry["name"] == name)
        origin, slot = source
        given = origin.schema["output"][slot]
        if given not in (entry["type"], "*") and entry["type"] != "*":
            raise ValueError(f"{node.type}.{name} takes {entry['type']}, {origin.type} gives {given}")
        entry["link"] = len(self.links) + 1
        self.links.append([entry["link"], origin.id, slot, node.id, place, given])
        origin.links.setdefault(slot, []).append(entry["link"])

    def app_mode(self, inputs: list[tuple[Node, str]], outputs: list[Node]) -> None:
        """What the front end's app mode shows: widgets to set, and nodes whose pictures are the result.

        Texts, and widgets of one name, are called after their nodes, as app mode shows no node.
        """
        names = [widget for _, widget in inputs]
        for node, widget in inputs:
            if node.title and (names.count(widget) > 1 or widget in {"text", "string"}):
                next(entry for entry in node.inputs if entry["name"] == widget)["label"] = node.title
        self.app = {
            "inputs": [[str(node.id), widget] for node, widget in inputs],
            "outputs": [str(node.id) for node in outputs],
        }

    def note(self, place: tuple[int, int], size: tuple[int, int], text: str, title: str = "Note") -> None:
        self.notes.append({
            "id": self._next(), "type": "MarkdownNote", "pos": list(place), "size": list(size), "flags": {}, "order": 0,
            "mode": 0, "inputs": [], "outputs": [], "title": title, "properties": {}, "widgets_values": [text],
            "color": NOTE[0], "bgcolor": NOTE[1],
        })  # fmt: skip

    def group(self, title: str, colour: str, *nodes: Node) -> None:
        """A frame around nodes."""
        left = min(n.place[0] for n in nodes) - MARGIN
        top = min(n.place[1] for n in nodes) - HEADER - GROUP_TITLE
        right = max(n.place[0] + n.size[0] for n in nodes) + MARGIN
        bottom = max(n.place[1] + n.size[1] for n in nodes) + MARGIN
        self.groups.append({
            "id": len(self.groups) + 1, "title": title, "bounding": [left, top, right - left, bottom - top],
            "color": colour, "font_size": 24, "flags": {},
        })  # fmt: skip

    def _next(self) -> int:
        self._count += 1
        return self._count

    def as_json(self) -> dict[str, Any]:
        nodes = self.notes + [self._node(node, order) for order, node in enumerate(self.nodes, len(self.notes))]
        return {
            "id": str(uuid.uuid5(uuid.NAMESPACE_URL, f"soda/{self.name}")),
            "revision": 0,
            "last_node_id": self._count,
            "last_link_id": len(self.links),
            "nodes": nodes,
            "links": self.links,
            "groups": self.groups,
            "config": {},
            "extra": {"ds": {"scale": 0.5, "offset": [900, 160]}, **({"linearData": self.app} if self.app else {})},
            "version": 0.4,
        }

    def _node(self, node: Node, order: int) -> dict[str, Any]:
        outputs = [
            {"name": name, "type": socket, "links": node.links.get(slot)}
            for slot, (name, socket) in enumerate(zip(node.schema["output_name"], node.schema["output"], strict=True))
        ]
        for entry, is_list in zip(outputs, node.schema["output_is_list"], strict=True):
            if is_list:
                entry["shape"] = 6  # the front end's mark of a list
        data: dict[str, Any] = {
            "id": node.id, "type": node.type, "pos": list(node.place), "size": list(node.size), "flags": {},
            "order": order, "mode": 0, "inputs": node.inputs, "outputs": outputs,
            "properties": {"Node name for S&R": node.type, **node.properties}, "widgets_values": node.widgets,
        }  # fmt: skip
        if node.title:
            data["title"] = node.title
        if node.colour:
            data["color"], data["bgcolor"] = node.colour
        return data


@dataclass
class Column:
    """Nodes one below the other, each as high as it needs, in groups."""

    graph: Graph
    x: int
    width: int
    y: int = 0
    _group: list[Node] = field(default_factory=list)

    def add(self, kind: str, title: str | None = None, colour: Any = None, body: int = 0, **inputs: Any) -> Node:
        """As :meth:`Graph.add`, below the last one.

        Args:
            body: its height where that is more than its sockets and widgets take, as with pictures.
        """
        height = max(body, natural_height(self.graph.object_info[kind]))
        node = self.graph.add(kind, (self.x, self.y), (self.width, height), title, colour, **inputs)
        self._group.append(node)
        self.y += height + HEADER + GAP
        return node

    def group(self, title: str, colour: str) -> None:
        """A frame around the nodes since the last one."""
        self.graph.group(title, colour, *self._group)
        self._group = []
        self.y += MARGIN + GROUP_TITLE

    @property
    def next(self) -> int:
        """Where a column beside this one starts."""
        return self.x + self.width + AISLE


def natural_height(schema: dict[str, Any]) -> int:
    """Of a node's body without pictures, in pixels: enough for both renderers, with the widgets of first sight."""
    sockets, widgets = 0, 0
    for socket, options in _input_specs(schema).values():
        if socket not in WIDGET_TYPES or options.get("forceInput"):
            sockets += 1
        elif not options.get("hidden"):
            text = socket == "STRING" or "widgetType" in options
            widgets += LINES if options.get("multiline") else TEXT if text else WIDGET
            if options.get("control_after_generate") and not schema["name"].startswith("SODA"):
                widgets += WIDGET  # a row of its own in the classic canvas; our nodes show none
    return SLOT * max(sockets, len(schema["output"])) + widgets + VIEWS.get(schema["name"], 0) + END


def _input_specs(schema: dict[str, Any]) -> dict[str, tuple[str, dict[str, Any]]]:
    """Input name -> (socket type, options), required ones first; a combo's choices are in its options."""
    specs = {}
    for part in ("required", "optional"):
        for name in schema["input_order"].get(part, []):
            kind, *rest = schema["input"][part][name]
            options = dict(rest[0]) if rest else {}
            if isinstance(kind, list):  # the older way to say what a combo offers
                kind, options["options"] = "COMBO", kind
            specs[name] = kind, options
    return specs


def _default(socket: str, options: dict[str, Any]) -> Any:
    if "default" in options:
        return options["default"]
    if socket == "COMBO":
        return next(iter(options.get("options") or []), "")
    return {"INT": 0, "FLOAT": 0.0, "STRING": "", "BOOLEAN": False}[socket]


def set_widgets(node: dict[str, Any], values: dict[str, Any]) -> None:
    """Set widgets of a node in a workflow as it is saved, by name; others than it has are left out."""
    names: list[str] = []
    for name in (entry["widget"]["name"] for entry in node["inputs"] if entry.get("widget")):
        names += [name, "control_after_generate"] if name == "seed" else [name]
    for place, name in enumerate(names):
        if name in values:
            node["widgets_values"][place] = values[name]


def widget_defaults(schema: dict[str, Any]) -> dict[str, Any]:
    """What a node's widgets hold when it is dropped into a graph."""
    specs = _input_specs(schema).items()
    return {name: _default(socket, options) for name, (socket, options) in specs if socket in WIDGET_TYPES}


def read_object_info(saved: Path | None) -> dict[str, Any]:
    """Every node as a host describes it: from a saved ``/object_info``, or from a ComfyUI started for it."""
    if saved is not None:
        return dict(json.loads(saved.read_text(encoding="utf-8")))
    with Server(cpu=True) as server:
        return server.object_info()
