"""A graph of nodes, written as the page saves it and as the server takes it."""

from __future__ import annotations

import json
import uuid
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
QUIET = {"UniAVGenLoadModel"}  # has a line only where a file holds tensors that are not used
FACE, OUTSIDE = -10, -20  # ids of a subgraph's inputs and outputs
LINK = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")
PREVIEW = "$$canvas-image-preview"
COLOURS = {"load": "#3f789e", "give": "#8A8", "task": "#b58b2a", "sample": "#88A", "out": "#a1309b"}


@dataclass(frozen=True)
class Slot:
    name: str
    type: str
    optional: bool = False
    label: str = ""


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
    "VAEDecodeTiled": _native(
        "samples:LATENT vae:VAE",
        "tile_size:INT overlap:INT temporal_size:INT temporal_overlap:INT",
        "IMAGE:IMAGE",
    ),
    "UpscaleModelLoader": _native("", "model_name:COMBO", "UPSCALE_MODEL:UPSCALE_MODEL"),
    "ImageUpscaleWithModel": _native("upscale_model:UPSCALE_MODEL image:IMAGE", "", "IMAGE:IMAGE"),
    "ImageScaleBy": _native("image:IMAGE", "upscale_method:COMBO scale_by:FLOAT", "IMAGE:IMAGE"),
    "FrameInterpolationModelLoader": _native("", "model_name:COMBO", "INTERP_MODEL:INTERP_MODEL"),
    "FrameInterpolate": _native("interp_model:INTERP_MODEL images:IMAGE", "multiplier:INT", "IMAGE:IMAGE"),
    "RebatchImages": _native("images:IMAGE", "batch_size:INT", "IMAGE:IMAGE"),
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
    "ImageStitch": _native(
        "image1:IMAGE image2:IMAGE?",
        "direction:COMBO match_image_size:BOOLEAN spacing_width:INT spacing_color:COMBO",
        "IMAGE:IMAGE",
    ),
    "SolidMask": _native("", "value:FLOAT width:INT height:INT", "MASK:MASK"),
    "MaskComposite": _native("destination:MASK source:MASK", "x:INT y:INT operation:COMBO", "MASK:MASK"),
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
    "ImageStitch": {"direction": "right", "match_image_size": True},
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
    tells = "unique_id" in info["input"].get("hidden", {}) and info["name"] not in QUIET
    lists = frozenset(i for i, is_list in enumerate(info["output_is_list"]) if is_list)
    return NodeType(tuple(sockets), tuple(widgets), outputs, seed, defaults, lists, tells)


@dataclass(eq=False)
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
    models: list = field(default_factory=list)
    subgraph: Subgraph | None = None


Link = tuple[Node, int]


class Graph:
    """Groups stand side by side, the nodes of a column of a group below one another.

    `add` takes widget values and links (`node, slot`) by input name and returns the node. `first` is the id
    of the first node; the page wants ids that no subgraph of the workflow has too.
    """

    def __init__(self, first: int = 1) -> None:
        self.types = node_types()
        self.first = first
        self.nodes: list[Node] = []
        self.groups: list[dict] = []
        self.routes: dict[tuple[int, str], list[tuple[int, int]]] = {}
        self._x = self._y = self._width = self._bottom = self._right = 0

    def place(self, x: int, y: int = 0, width: int = 300) -> None:
        """The next nodes stand from here downwards, in no group."""
        self._x, self._y, self._width = x, y, width

    def narrow(self, width: int) -> None:
        """The next nodes of this column have another width."""
        self._width = width

    @contextmanager
    def group(self, title: str, colour: str, width: int = 300) -> Iterator[None]:
        """A titled box right of the last; `column` goes on to its right."""
        left = self._right + GROUP_GAP
        self._x, self._y, self._width, self._bottom = left + PAD, GROUP_TITLE, width, 0
        yield
        box = [left, 0, self._x + self._width + PAD - left, self._bottom + PAD]
        self._right = left + box[2]
        self._title(title, colour, box)

    def column(self, width: int = 300) -> None:
        """The next nodes of this group stand right of those before."""
        self._x, self._y, self._width = self._x + self._width + COLUMN_GAP, GROUP_TITLE, width

    def bottom(self) -> int:
        return max(node.y + node.height for node in self.nodes)

    def box(self, title: str, colour: str, *columns: int, top: int = 0) -> None:
        """A titled box around the nodes that stand at these x and not above `top`."""
        nodes = [node for node in self.nodes if node.x in columns and node.y > top]
        x, y = min(node.x for node in nodes) - PAD, top - GROUP_TITLE + PAD
        right, bottom = (max(n.x + n.width for n in nodes), max(n.y + n.height for n in nodes))
        self._title(title, colour, [x, y, right + PAD - x, bottom + PAD - y])

    def _title(self, title: str, colour: str, box: list[int]) -> None:
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

    def note(self, text: str, height: int, title: str = "Read me") -> Node:
        """The artist's note."""
        return self._stand("MarkdownNote", title, height, {"text": text}, {})

    def add(
        self, type_: str, title: str | None = None, extra: int = 0, models: list | None = None, **inputs
    ) -> Node:
        """`extra`: pixels for a text box or a preview under the widgets."""
        kind = self.types[type_]
        links = {name: value for name, value in inputs.items() if isinstance(value, tuple)}
        values = kind.defaults | NATIVE_VALUES.get(type_, {})
        values |= {name: value for name, value in inputs.items() if name not in links}
        for name, (source, slot) in links.items():
            if source.id == FACE and source.subgraph.faces[slot].value is not None:
                values[name] = source.subgraph.faces[slot].value
        unknown = set(values) - {slot.name for slot in kind.widgets}
        unknown |= set(links) - {slot.name for slot in kind.sockets + kind.widgets}
        if unknown:
            raise KeyError(f"{type_} has no input {sorted(unknown)}")
        node = self._stand(type_, title, kind.height() + extra, values, links)
        node.models = models or []
        return node

    def add_subgraph(self, subgraph: Subgraph, height: int, title: str | None = None, **inputs) -> Node:
        """A node that stands for `subgraph`."""
        links = {name: value for name, value in inputs.items() if isinstance(value, tuple)}
        values = {face.name: face.value for face in subgraph.faces if face.value is not None}
        values |= {name: value for name, value in inputs.items() if name not in links}
        self.types = self.types | {subgraph.id: subgraph.kind()}
        node = self._stand(subgraph.id, title or subgraph.name, height, values, links)
        node.subgraph = subgraph
        return node

    def route(self, node: Node, name: str, *points: tuple[int, int]) -> None:
        """The link into this input passes through these points."""
        self.routes[node.id, name] = list(points)

    def _stand(self, type_: str, title: str | None, height: int, values: dict, links: dict) -> Node:
        number = self.first + len(self.nodes)
        node = Node(number, type_, title, self._x, self._y + TITLE, self._width, height, values, links)
        self._y += TITLE + height
        self._bottom = max(self._bottom, self._y)
        self._y += GAP
        self.nodes.append(node)
        return node

    def subgraphs(self) -> list[Subgraph]:
        return list(dict.fromkeys(node.subgraph for node in self.nodes if node.subgraph is not None))

    def _links(self) -> list[dict]:
        """Every link, numbered from 1 in the order of the inputs."""
        links = []
        for node in self.nodes:
            for at, slot in enumerate(_inputs(self.types.get(node.type))):
                if slot.name in node.links:
                    source, output = node.links[slot.name]
                    type_ = slot.type if source.id == FACE else self.types[source.type].outputs[output].type
                    links.append(_link(len(links) + 1, source.id, output, node.id, at, type_))
                    links[-1]["route"] = self.routes.get((node.id, slot.name), [])
        return links

    def ui(self) -> dict:
        """The workflow as the page saves it (schema 0.4). It has no saved view, so that the page fits it."""
        links = self._links()
        content = {
            "id": _uuid("workflow", *(node.type for node in self.nodes), *map(str, self.nodes[0].values)),
            "revision": 0,
            "last_node_id": self.nodes[-1].id,
            "last_link_id": len(links),
            "nodes": self._ui_nodes(links),
            "links": [[*(link[key] for key in LINK)] for link in links],
            "groups": self.groups,
            "config": {},
            "extra": _reroutes(links),
            "version": 0.4,
        }
        if subgraphs := self.subgraphs():
            content["definitions"] = {"subgraphs": [subgraph.definition() for subgraph in subgraphs]}
        return content

    def _ui_nodes(self, links: list[dict]) -> list[dict]:
        incoming = {(link["target_id"], link["target_slot"]): link["id"] for link in links}
        uses: dict = {}
        for link in links:
            uses.setdefault((link["origin_id"], link["origin_slot"]), []).append(link["id"])
        return [self._ui_node(order, node, incoming, uses) for order, node in enumerate(self.nodes)]

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
            if slot.label:
                entry["label"] = slot.label
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
        saved["properties"] = {} if node.subgraph else {"Node name for S&R": node.type}
        if node.subgraph and node.subgraph.preview:
            saved["properties"]["previewExposures"] = [
                {
                    "name": PREVIEW,
                    "sourceNodeId": str(node.subgraph.preview.id),
                    "sourcePreviewName": PREVIEW,
                }
            ]
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
        """The prompt that the page would send: nodes of a subgraph have the id `outer:inner`."""
        return self._prompt("", {})

    def _prompt(self, prefix: str, given: dict) -> dict:
        """`given`: what stands outside for each input of this subgraph, a value or a link."""
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
            for name, link in node.links.items():
                value = _sent(link, prefix, given)
                if value is not None:
                    inputs[name] = value
            if node.subgraph:
                prompt |= node.subgraph._prompt(f"{prefix}{node.id}:", inputs)
            else:
                prompt[f"{prefix}{node.id}"] = {"class_type": node.type, "inputs": inputs}
        return prompt


@dataclass(frozen=True)
class Face:
    """An input on the face of a subgraph. `value`: where it is a widget; `label`: what the page shows."""

    name: str
    value: object = None
    label: str = ""


class Subgraph(Graph):
    """A graph in a node. `preview`: the node inside whose preview is shown on its face."""

    def __init__(self, name: str, first: int, category: str, description: str, aliases: list[str]) -> None:
        super().__init__(first)
        self.id = _uuid("subgraph", name)
        self.name, self.category, self.description, self.aliases = name, category, description, aliases
        self.faces: list[Face] = []
        self.outputs: list[tuple[str, Link]] = []
        self.preview: Node | None = None
        self._face = Node(FACE, "", None, 0, 0, 0, 0, {}, {}, subgraph=self)

    def face(self, name: str, value: object = None, label: str = "") -> Link:
        """A new input on the face, or the one of this name; sockets come before widgets."""
        names = [face.name for face in self.faces]
        if name in names:
            return self._face, names.index(name)
        self.faces.append(Face(name, value, label))
        return self._face, len(self.faces) - 1

    def give(self, name: str, link: Link) -> None:
        """A new output."""
        self.outputs.append((name, link))

    def kind(self) -> NodeType:
        slots = []
        for at, face in enumerate(self.faces):
            ends = (FACE, at)
            first = next(link for link in self._links() if (link["origin_id"], link["origin_slot"]) == ends)
            target = next(node for node in self.nodes if node.id == first["target_id"])
            slot = _inputs(self.types[target.type])[first["target_slot"]]
            slots.append(Slot(face.name, slot.type, slot.optional, face.label))
        widgets = [slot for slot, face in zip(slots, self.faces) if face.value is not None]
        sockets = [slot for slot, face in zip(slots, self.faces) if face.value is None]
        if slots != sockets + widgets:
            raise ValueError(f"{self.name}: sockets come before widgets")
        outputs = [
            Slot(name, self.types[source.type].outputs[at].type) for name, (source, at) in self.outputs
        ]
        return NodeType(tuple(sockets), tuple(widgets), tuple(outputs))

    def definition(self) -> dict:
        links, kind = self._links(), self.kind()
        for at, (_, (source, slot)) in enumerate(self.outputs):
            type_ = kind.outputs[at].type
            links.append(_link(len(links) + 1, source.id, slot, OUTSIDE, at, type_) | {"route": []})
        left = min(node.x for node in self.nodes) - 320
        right = max(node.x + node.width for node in self.nodes) + 160
        ins = self._slots(kind.sockets + kind.widgets, links, "origin", FACE, left + 180)
        outs = self._slots(kind.outputs, links, "target", OUTSIDE, right + 20)
        return {
            "id": self.id,
            "version": 1,
            "state": {
                "lastGroupId": len(self.groups),
                "lastNodeId": self.nodes[-1].id,
                "lastLinkId": len(links),
                "lastRerouteId": 0,
            },
            "revision": 0,
            "config": {},
            "name": self.name,
            "inputNode": {"id": FACE, "bounding": [left, 0, 200, 40 + 20 * len(ins)]},
            "outputNode": {"id": OUTSIDE, "bounding": [right, 0, 120, 40 + 20 * len(outs)]},
            "inputs": ins,
            "outputs": outs,
            "widgets": [],
            "nodes": self._ui_nodes(links),
            "groups": self.groups,
            "links": [{key: link[key] for key in LINK} for link in links],
            "extra": {},
            "category": self.category,
            "description": self.description,
        }

    def _slots(self, slots: tuple[Slot, ...], links: list[dict], end: str, number: int, x: int) -> list[dict]:
        entries = []
        for at, slot in enumerate(slots):
            here = [link["id"] for link in links if (link[f"{end}_id"], link[f"{end}_slot"]) == (number, at)]
            entry = {
                "id": _uuid("slot", self.name, end, slot.name),
                "name": slot.name,
                "type": slot.type,
                "linkIds": here,
                "localized_name": slot.name,
                "pos": [x, 20 + 20 * at],
            }
            entries.append(entry | ({"label": slot.label} if slot.label else {}))
        return entries

    def blueprint(self, height: int, width: int = 360) -> dict:
        """The file that the host serves: a workflow of this one node."""
        graph = Graph()
        graph.place(0, 0, width)
        graph.add_subgraph(self, height)
        content = graph.ui()
        content["extra"] = {"BlueprintDescription": self.description, "BlueprintSearchAliases": self.aliases}
        return content


def _inputs(kind: NodeType | None) -> tuple[Slot, ...]:
    return kind.sockets + kind.widgets if kind else ()


def _uuid(*names: str) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_URL, "/".join(("uniavgen", *names))))


def _link(number: int, origin: int, output: int, target: int, at: int, type_: str) -> dict:
    return dict(zip(LINK, (number, origin, output, target, at, type_)))


def _sent(link: Link, prefix: str, given: dict) -> object:
    """What a linked input is sent: a link to a node that runs, or the value on the face."""
    source, slot = link
    if source.id == FACE:
        return given.get(source.subgraph.faces[slot].name)
    while source.subgraph:
        prefix = f"{prefix}{source.id}:"
        _, (source, slot) = source.subgraph.outputs[slot]
    return [f"{prefix}{source.id}", slot]


def _reroutes(links: list[dict]) -> dict:
    """Points that links pass through, as the page keeps them."""
    points, ends = [], []
    for link in links:
        before = None
        for place in link["route"]:
            point = {"id": len(points) + 1, "pos": list(place), "linkIds": [link["id"]]}
            if before:
                point["parentId"] = before
            points.append(point)
            before = point["id"]
        if before:
            ends.append({"id": link["id"], "parentId": before})
    return {"reroutes": points, "linkExtensions": ends} if points else {}
