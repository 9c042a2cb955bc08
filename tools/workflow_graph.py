"""A graph of nodes, written as the page saves it and as the server takes it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

GOLDEN = Path(__file__).parents[1] / "tests" / "object_info.json"
WIDGETS = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}
LABELS = {"upload": "choose file to upload"}
NOT_SENT = {"IMAGEUPLOAD", "AUDIOUPLOAD", "AUDIO_UI"}  # widgets of the page that are no input of the node

TITLE, GAP, PAD = 30, 26, 20
GROUP_TITLE, GROUP_GAP, COLUMN_GAP = 62, 40, 60
LINE = 50
COLOURS = {"load": "#3f789e", "give": "#8A8", "task": "#b58b2a", "sample": "#88A", "out": "#a1309b"}


@dataclass(frozen=True)
class Slot:
    name: str
    type: str
    optional: bool = False


@dataclass(frozen=True)
class NodeType:
    sockets: tuple[Slot, ...]
    widgets: tuple[Slot, ...]
    outputs: tuple[Slot, ...]
    seed: str = ""  # the widget followed by "control after generate"
    defaults: dict = field(default_factory=dict)
    lists: frozenset[int] = frozenset()  # outputs that are lists
    tells: bool = False  # whether a line of text appears under the widgets

    def height(self) -> int:
        """As the page computes it, without text boxes and previews, with room for the node's line."""
        rows = max(len(self.sockets), len(self.outputs), 1)
        widgets = len(self.widgets) + bool(self.seed)
        return 20 * rows + 6 + (24 * widgets + 8 if widgets else 0) + LINE * self.tells


def _slots(text: str) -> tuple[Slot, ...]:
    """`"image:IMAGE mask:MASK?"`; `?` marks an optional one."""
    pairs = (item.split(":") for item in text.split())
    return tuple(Slot(name, type_.rstrip("?"), type_.endswith("?")) for name, type_ in pairs)


def _native(sockets: str, widgets: str, outputs: str, seed: str = "") -> NodeType:
    return NodeType(_slots(sockets), _slots(widgets), _slots(outputs), seed)


NATIVE = {
    "LoadImage": _native("", "image:COMBO upload:IMAGEUPLOAD", "IMAGE:IMAGE MASK:MASK"),
    "LoadAudio": _native("", "audio:COMBO audioUI:AUDIO_UI upload:AUDIOUPLOAD", "AUDIO:AUDIO"),
    "LoadVideo": _native("", "file:COMBO upload:IMAGEUPLOAD", "VIDEO:VIDEO"),
    "GetVideoComponents": _native(
        "video:VIDEO", "", "images:IMAGE audio:AUDIO fps:FLOAT bit_depth:INT color_space:COMBO"
    ),
    "CLIPLoader": _native("", "clip_name:COMBO type:COMBO device:COMBO?", "CLIP:CLIP"),
    "CLIPTextEncode": _native("clip:CLIP", "text:STRING", "CONDITIONING:CONDITIONING"),
    "VAELoader": _native("", "vae_name:COMBO", "VAE:VAE"),
    "VAEDecode": _native("samples:LATENT vae:VAE", "", "IMAGE:IMAGE"),
    "RandomNoise": _native("", "noise_seed:INT", "NOISE:NOISE", "noise_seed"),
    "KSamplerSelect": _native("", "sampler_name:COMBO", "SAMPLER:SAMPLER"),
    "SamplerCustomAdvanced": _native(
        "noise:NOISE guider:GUIDER sampler:SAMPLER sigmas:SIGMAS latent_image:LATENT",
        "",
        "output:LATENT denoised_output:LATENT",
    ),
    "SaveVideo": _native(
        "video:VIDEO",
        "filename_prefix:STRING format:COMFY_DYNAMICCOMBO_V3 format.codec:COMFY_DYNAMICCOMBO_V3 "
        "codec:COMFY_DYNAMICCOMBO_V3?",
        "video:VIDEO",
    ),
    "PreviewImage": _native("images:IMAGE", "", "images:IMAGE"),
    "ImageFromBatch": _native("image:IMAGE", "batch_index:INT length:INT", "IMAGE:IMAGE"),
    "CreateVideo": _native("images:IMAGE audio:AUDIO?", "fps:FLOAT bit_depth:INT?", "VIDEO:VIDEO"),
}
# what the page keeps for a node that is set up with nothing but its first widgets
NATIVE_VALUES = {
    "LoadImage": {"upload": "image"},
    "LoadVideo": {"upload": "image"},
    "LoadAudio": {"audioUI": None, "upload": None},
    "CLIPLoader": {"device": "default"},
    "SaveVideo": {"format": "mp4", "format.codec": "auto", "codec": "auto"},
    "CreateVideo": {"bit_depth": 8},
}


def node_types() -> dict[str, NodeType]:
    """Ours as in the golden `/object_info`, and the native ones that the workflows use."""
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))
    return NATIVE | {name: _from_info(info) for name, info in golden.items()}


def _from_info(info: dict) -> NodeType:
    sockets, widgets, defaults, seed = [], [], {}, ""
    for kind in ("required", "optional"):
        for name in info["input_order"].get(kind, []):
            type_, *options = info["input"][kind][name]
            options = options[0] if options else {}
            slot = Slot(name, "COMBO" if isinstance(type_, list) else type_, kind == "optional")
            if slot.type not in WIDGETS or options.get("forceInput"):
                sockets.append(slot)
                continue
            widgets.append(slot)
            if "default" in options:
                defaults[name] = options["default"]
            elif slot.type == "COMBO" and options.get("options"):
                defaults[name] = options["options"][0]
            if name == "seed":  # the page controls every number of this name
                seed = name
    outputs = tuple(Slot(*pair) for pair in zip(info["output_name"], info["output"]))
    tells = "unique_id" in info["input"].get("hidden", {})
    lists = frozenset(i for i, is_list in enumerate(info["output_is_list"]) if is_list)
    return NodeType(tuple(sockets), tuple(widgets), outputs, seed, defaults, lists, tells)


@dataclass
class Node:
    id: int
    type: str
    title: str | None
    x: int
    y: int
    width: int
    height: int
    values: dict
    links: dict  # input name -> (source, slot)
    models: list


class Graph:
    """Groups stand side by side, the nodes of a column of a group below one another.

    `add` takes widget values and links (`node, slot`) by input name and returns the node.
    """

    def __init__(self) -> None:
        self.types = node_types()
        self.nodes: list[Node] = []
        self.groups: list[dict] = []
        self._x = self._y = self._width = self._bottom = self._right = 0

    def note(self, text: str, height: int, width: int = 400) -> None:
        """The artist's note, left of everything."""
        node = Node(1, "MarkdownNote", "Read me", 0, TITLE, width, height, {"text": text}, {}, [])
        self.nodes.append(node)
        self._right = width

    @contextmanager
    def group(self, title: str, colour: str, width: int = 300) -> Iterator[None]:
        """A titled box right of the last; `column` goes on to its right."""
        left = self._right + GROUP_GAP
        self._x, self._y, self._width, self._bottom = left + PAD, GROUP_TITLE, width, 0
        yield
        box = [left, 0, self._x + self._width + PAD - left, self._bottom + PAD]
        self._right = left + box[2]
        self.groups.append(
            {
                "id": len(self.groups) + 1,
                "title": title,
                "bounding": box,
                "color": COLOURS[colour],
                "font_size": 24,
                "flags": {},
            }
        )

    def column(self, width: int = 300) -> None:
        """The next nodes of this group stand right of those before."""
        self._x, self._y, self._width = self._x + self._width + COLUMN_GAP, GROUP_TITLE, width

    def add(
        self, type_: str, title: str | None = None, extra: int = 0, models: list | None = None, **inputs
    ) -> Node:
        """`extra`: pixels for a text box or a preview under the widgets."""
        kind = self.types[type_]
        links = {name: value for name, value in inputs.items() if isinstance(value, tuple)}
        values = kind.defaults | NATIVE_VALUES.get(type_, {})
        values |= {name: value for name, value in inputs.items() if name not in links}
        unknown = set(values) - {slot.name for slot in kind.widgets}
        unknown |= set(links) - {slot.name for slot in kind.sockets + kind.widgets}
        if unknown:
            raise KeyError(f"{type_} has no input {sorted(unknown)}")
        height = kind.height() + extra
        node = Node(
            len(self.nodes) + 1,
            type_,
            title,
            self._x,
            self._y + TITLE,
            self._width,
            height,
            values,
            links,
            models or [],
        )
        self._y += TITLE + height
        self._bottom = max(self._bottom, self._y)
        self._y += GAP
        self.nodes.append(node)
        return node

    def ui(self) -> dict:
        """The workflow as the page saves it (schema 0.4)."""
        links, uses = [], {}
        for node in self.nodes:
            kind = self.types.get(node.type)
            for at, slot in enumerate(_inputs(kind)):
                if slot.name not in node.links:
                    continue
                source, output = node.links[slot.name]
                number = len(links) + 1
                type_ = self.types[source.type].outputs[output].type
                links.append([number, source.id, output, node.id, at, type_])
                uses.setdefault((source.id, output), []).append(number)
        incoming = {(target, at): number for number, _, _, target, at, _ in links}
        return {
            "id": "00000000-0000-0000-0000-000000000000",
            "revision": 0,
            "last_node_id": len(self.nodes),
            "last_link_id": len(links),
            "nodes": [self._ui_node(order, node, incoming, uses) for order, node in enumerate(self.nodes)],
            "links": links,
            "groups": self.groups,
            "config": {},
            "extra": {"ds": {"scale": 0.6, "offset": [40, 60]}},
            "version": 0.4,
        }

    def _ui_node(self, order: int, node: Node, incoming: dict, uses: dict) -> dict:
        kind = self.types.get(node.type)
        saved = {
            "id": node.id,
            "type": node.type,
            "pos": [node.x, node.y],
            "size": [node.width, node.height],
            "flags": {},
            "order": order,
            "mode": 0,
            "inputs": [],
            "outputs": [],
        }
        if node.title:
            saved["title"] = node.title
        if kind is None:  # a note
            return saved | {
                "properties": {},
                "widgets_values": list(node.values.values()),
                "color": "#432",
                "bgcolor": "#653",
            }
        for at, slot in enumerate(_inputs(kind)):
            entry = {"localized_name": LABELS.get(slot.name, slot.name), "name": slot.name}
            if slot.optional:
                entry["shape"] = 7
            entry["type"] = slot.type
            if slot in kind.widgets:
                entry["widget"] = {"name": slot.name}
            saved["inputs"].append(entry | {"link": incoming.get((node.id, at))})
        for at, slot in enumerate(kind.outputs):
            entry = {"localized_name": slot.name, "name": slot.name}
            if at in kind.lists:
                entry["shape"] = 6
            entry["type"] = slot.type
            saved["outputs"].append(entry | {"links": uses.get((node.id, at))})
        saved["properties"] = {"Node name for S&R": node.type}
        if node.models:
            saved["properties"]["models"] = node.models
        if kind.widgets:
            saved["widgets_values"] = self._widget_values(node, kind)
        return saved

    def _widget_values(self, node: Node, kind: NodeType) -> list:
        values = []
        for slot in kind.widgets:
            values.append(node.values.get(slot.name))
            if slot.name == kind.seed:
                values.append("fixed")
        return values

    def api(self) -> dict:
        """The prompt that the page would send."""
        prompt = {}
        for node in self.nodes:
            kind = self.types.get(node.type)
            if kind is None:
                continue
            inputs = {
                slot.name: node.values[slot.name]
                for slot in kind.widgets
                if slot.name in node.values and slot.type not in NOT_SENT and slot.name not in node.links
            }
            inputs |= {name: [str(source.id), slot] for name, (source, slot) in node.links.items()}
            prompt[str(node.id)] = {"class_type": node.type, "inputs": inputs}
        return prompt


def _inputs(kind: NodeType | None) -> tuple[Slot, ...]:
    return kind.sockets + kind.widgets if kind else ()
