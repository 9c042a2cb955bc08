"""The templates open legibly, belong to these nodes and explain themselves; every node has help and names."""

from __future__ import annotations

import json
from itertools import combinations, pairwise
from pathlib import Path

import pytest
from build_workflows import MODES, OTHERS, TITLES, blueprints, english, text, workflows
from help_pages import help_pages
from PIL import Image
from workflow_graph import FACE, GOLDEN, OUTSIDE, node_types

ROOT = Path(__file__).parents[1]
WORKFLOWS = sorted((ROOT / "workflows").glob("*.json"))
OURS = json.loads(GOLDEN.read_text(encoding="utf-8"))
NAMES = [*MODES, *OTHERS, "advanced", "face_mask", "several_takes", "upscaled", "who_speaks"]
TWINS = {title: name for name, title in TITLES.items()}
TITLE = 30
PICTURE_BYTES = 400_000
FIT, PADDING = 0.75, 10  # the share of the window that the page fits a template into, and around it
LEGIBLE = 8 / 14  # below this zoom the page draws no text: MinFontSizeForLOD / NODE_TEXT_SIZE
SMALL = (1366, 768)


def read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture(params=WORKFLOWS, ids=lambda path: path.stem)
def path(request) -> Path:
    return request.param


def is_whole(path: Path) -> bool:
    """Whether each stage is a node of the template."""
    return path.stem.endswith("all stages, to rewire")


def graphs(content: dict) -> list[dict]:
    """The workflow and its subgraphs, links as the workflow writes them."""
    inner = [dict(subgraph) for subgraph in content.get("definitions", {}).get("subgraphs", [])]
    for subgraph in inner:
        subgraph["links"] = [list(link.values()) for link in subgraph["links"]]
    return [content, *inner]


def types_of(content: dict) -> dict:
    """Input and output types by node type, those of the subgraphs too."""
    types = {name: [slot.type for slot in kind.outputs] for name, kind in node_types().items()}
    subgraphs = content.get("definitions", {}).get("subgraphs", [])
    return types | {subgraph["id"]: [slot["type"] for slot in subgraph["outputs"]] for subgraph in subgraphs}


def notes(content: dict) -> list[dict]:
    return [node for node in content["nodes"] if node["type"] == "MarkdownNote"]


def test_there_is_one_for_every_mode_with_and_without_weights():
    wanted = {prefix + name for prefix in ("", "embedded_") for name in NAMES}
    assert {TWINS[path.stem] for path in WORKFLOWS} == wanted
    assert {path.stem for path in (ROOT / "workflows" / "api").glob("*.json")} == wanted


def test_the_first_by_name_runs_without_a_download():
    assert TWINS[WORKFLOWS[0].stem] == "embedded_joint"


def test_names_of_templates_and_blueprints_are_file_names_everywhere():
    for name in (*TITLES.values(), *blueprints()):
        assert not set(name) & set('<>:"/\\|?*#%')
        assert name.isascii()


@pytest.mark.parametrize("name", workflows())
def test_the_files_are_what_the_builder_writes(name):
    graph = workflows()[name]
    path = ROOT / "workflows" / f"{TITLES[name]}.json"
    assert path.read_text(encoding="utf-8") == text(graph.ui())
    assert (ROOT / "workflows" / "api" / f"{name}.json").read_text(encoding="utf-8") == text(graph.api())


def test_the_blueprints_are_what_the_builder_writes():
    files = {path.stem: path.read_text(encoding="utf-8") for path in (ROOT / "subgraphs").glob("*.json")}
    assert files == {name: text(content) for name, content in blueprints().items()}


def test_a_blueprint_is_one_node_with_the_subgraph_of_its_name():
    for name, content in blueprints().items():
        (node,), (subgraph,) = content["nodes"], content["definitions"]["subgraphs"]
        assert node["type"] == subgraph["id"]
        assert subgraph["name"] == name
        assert [slot["name"] for slot in node["inputs"]] == [slot["name"] for slot in subgraph["inputs"]]


def test_what_an_artist_gives_is_on_the_face_of_the_subgraph():
    for name, content in blueprints().items():
        names = {slot["name"] for slot in content["nodes"][0]["inputs"]}
        assert {"words", "caption", "seed", "s_v", "s_a"} <= names, name
        assert names & {"image", "video"}


def test_every_link_joins_sockets_that_exist_and_agree(path):
    content = read(path)
    types = types_of(content)
    for graph in graphs(content):
        nodes = {node["id"]: node for node in graph["nodes"]}
        assert len(nodes) == len(graph["nodes"])
        for number, source, output, target, at, kind in graph["links"]:
            if source == FACE:
                out, given = graph["inputs"][output], graph["inputs"][output]["type"]
            else:
                out, given = nodes[source]["outputs"][output], types[nodes[source]["type"]][output]
            into = graph["outputs"][at] if target == OUTSIDE else nodes[target]["inputs"][at]
            assert number in out.get("links", out.get("linkIds"))
            assert number == into.get("link") or number in into.get("linkIds", ())
            assert kind == out["type"] == given
            assert into["type"] == "*" or set(kind.split(",")) <= set(into["type"].split(","))


def test_no_two_nodes_of_a_workflow_share_an_id(path):
    ids = [node["id"] for graph in graphs(read(path)) for node in graph["nodes"]]
    assert len(set(ids)) == len(ids)


def test_every_socket_that_is_needed_is_connected(path):
    content, types = read(path), node_types()
    for graph in graphs(content):
        for node in graph["nodes"]:
            connected = {entry["name"] for entry in node["inputs"] if entry["link"] is not None}
            if node["type"] in types:
                needed = {slot.name for slot in types[node["type"]].sockets if not slot.optional}
            else:
                needed = {entry["name"] for entry in node["inputs"] if "widget" not in entry}
            assert needed <= connected


def test_the_values_of_our_nodes_stand_in_the_order_of_their_widgets(path):
    for node in (node for graph in graphs(read(path)) for node in graph["nodes"]):
        if node["type"] not in OURS:
            continue
        values = iter(node.get("widgets_values", []))
        info = OURS[node["type"]]["input"]
        specs = {**info.get("required", {}), **info.get("optional", {})}
        for entry in node["inputs"]:
            if "widget" not in entry:
                continue
            value, (kind, options) = next(values), specs[entry["name"]]
            if kind in ("INT", "FLOAT"):
                assert options["min"] <= value <= options["max"]
            elif options.get("options"):
                assert value in options["options"]
            else:
                assert isinstance(value, str)
            if entry["name"] == "seed":
                assert next(values) == "fixed"
        assert next(values, None) is None


def test_the_values_on_the_face_are_those_inside(path):
    content = read(path)
    subgraphs = {subgraph["id"]: subgraph for subgraph in graphs(content)[1:]}
    for host in content["nodes"]:
        if host["type"] not in subgraphs:
            continue
        subgraph = subgraphs[host["type"]]
        faces = [entry["name"] for entry in host["inputs"] if "widget" in entry]
        values = dict(zip(faces, host.get("widgets_values", []), strict=True))
        prompt = read(path.parent / "api" / f"{TWINS[path.stem]}.json")
        for _, source, slot, target, at, _ in subgraph["links"]:
            name = subgraph["inputs"][slot]["name"] if source == FACE else ""
            if name in values:
                node = next(node for node in subgraph["nodes"] if node["id"] == target)
                sent = prompt[f"{host['id']}:{target}"]["inputs"][node["inputs"][at]["name"]]
                assert sent == values[name]
                assert values[name] in node["widgets_values"]


def test_a_note_tells_the_artist_what_to_do_in_five_lines(path):
    (found,) = notes(read(path))
    words = found["widgets_values"][0]
    head, *lines = words.strip().split("\n")
    assert head.startswith("### ")
    assert len(lines) <= 5
    embedded = TWINS[path.stem].startswith("embedded_")
    assert ("small puppet model" in words) == embedded
    assert ("hf download MCG-NJU/UniAVGen" in words) != embedded


def box(node: dict) -> tuple[float, float, float, float]:
    (x, y), (width, height) = node["pos"], node["size"]
    return x, y - TITLE, x + width, y + height


def overlap(a: tuple, b: tuple) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def zoom(content: dict, window: tuple[int, int]) -> float:
    """How the page fits a template into a window."""
    x0, y0, x1, y1 = (
        pick(side) for pick, side in zip((min, min, max, max), zip(*map(box, content["nodes"])))
    )
    size = x1 - x0 + 2 * PADDING, y1 - y0 + 2 * PADDING
    return min(FIT * given / wanted for given, wanted in zip(window, size))


def test_a_template_has_at_most_six_nodes_and_is_legible_on_a_small_screen(path):
    content = read(path)
    assert "ds" not in content["extra"]  # no saved view: the page fits a file as it fits a template
    assert len(content["nodes"]) <= (8 if is_whole(path) else 6)
    assert zoom(content, SMALL) > 1.3 * LEGIBLE


def test_nothing_overlaps(path):
    for graph in graphs(read(path)):
        assert not any(overlap(box(a), box(b)) for a, b in combinations(graph["nodes"], 2))
        groups = [group["bounding"] for group in graph["groups"]]
        corners = [(x, y, x + width, y + height) for x, y, width, height in groups]
        assert not any(overlap(a, b) for a, b in combinations(corners, 2))


def curve(start: tuple, end: tuple, first: bool, last: bool) -> list[tuple[float, float]]:
    """Points of a link between two places; it leaves a socket to the right and enters one from the left."""
    bend = 0.25 * ((start[0] - end[0]) ** 2 + (start[1] - end[1]) ** 2) ** 0.5
    a, d = start, end
    b = (a[0] + bend, a[1]) if first else a
    c = (d[0] - bend, d[1]) if last else d
    steps = [n / 40 for n in range(41)]
    return [
        tuple(
            (1 - t) ** 3 * w + 3 * (1 - t) ** 2 * t * x + 3 * (1 - t) * t**2 * y + t**3 * z
            for w, x, y, z in zip(a, b, c, d)
        )
        for t in steps
    ]


def test_no_link_passes_under_a_node(path):
    content = read(path)
    nodes = {node["id"]: node for node in content["nodes"]}
    points = {point["id"]: point for point in content["extra"].get("reroutes", [])}
    ends = {end["id"]: end["parentId"] for end in content["extra"].get("linkExtensions", [])}
    for number, source, output, target, at, _ in content["links"]:
        route, point = [], ends.get(number)
        while point:
            route.insert(0, tuple(points[point]["pos"]))
            point = points[point].get("parentId")
        x, y, right, _ = box(nodes[source])
        start = right, y + TITLE + 14 + 20 * output
        x, y, _, _ = box(nodes[target])
        stops = [start, *route, (x, y + TITLE + 14 + 20 * at)]
        for i, (a, b) in enumerate(pairwise(stops)):
            for px, py in curve(a, b, i == 0, i == len(stops) - 2):
                for node in content["nodes"]:
                    x0, y0, x1, y1 = box(node)
                    assert not (x0 + 2 < px < x1 - 2 and y0 < py < y1), (number, node["id"], node["type"])


def test_download_links_name_the_file_of_the_widget(path):
    nodes = [node for graph in graphs(read(path)) for node in graph["nodes"]]
    linked = [node for node in nodes if "models" in node.get("properties", {})]
    name = TWINS[path.stem]
    of_the_model = 0 if name.startswith("embedded_") else 2
    of_the_host = {"embedded_upscaled": 1, "upscaled": 2}.get(name, 0)
    assert len(linked) == of_the_model + of_the_host
    for node in linked:
        for model in node["properties"]["models"]:
            assert model["name"] in node["widgets_values"]
            assert model["url"].startswith("https://huggingface.co/")
            assert model["url"].endswith("/" + model["name"])
            assert model["directory"] in ("vae", "text_encoders", "frame_interpolation", "upscale_models")


def test_every_file_of_the_released_model_stands_in_the_pages_list_of_missing_models(path):
    """It lists widgets whose value ends like a model file."""
    loaders = {"UniAVGenLoadModel", "UniAVGenLoadVocoder", "CLIPLoader", "VAELoader"}
    nodes = [node for graph in graphs(read(path)) for node in graph["nodes"] if node["type"] in loaders]
    assert len(nodes) == (0 if TWINS[path.stem].startswith("embedded_") else 4)
    for node in nodes:
        assert node["widgets_values"][0].endswith(".safetensors")


def test_a_clip_stands_for_the_template(path):
    """The page asks for .jpg and takes any image: an animated WebP plays."""
    picture = path.with_suffix(".jpg")
    assert picture.stat().st_size <= PICTURE_BYTES
    with Image.open(picture) as image:
        assert image.format == "WEBP"
        assert image.width >= 256
        assert image.n_frames > 8


@pytest.mark.parametrize("name", OURS)
def test_every_node_has_a_help_page_in_english_and_chinese(name):
    docs = ROOT / "web" / "docs"
    for page in (docs / f"{name}.md", docs / name / "zh.md"):
        words = page.read_text(encoding="utf-8")
        assert words.startswith("# UniAVGen")
        for folder, kinds in (("input", ("required", "optional")), ("", ())):
            for kind in kinds:
                for key in OURS[name][folder].get(kind, {}):
                    assert f"`{key}`" in words, f"{page.name} does not explain {key}"


@pytest.mark.parametrize(("page", "filled"), list(help_pages()), ids=lambda value: getattr(value, "stem", ""))
def test_the_tables_of_a_help_page_are_the_names_and_tooltips_of_the_node(page, filled):
    """`python tools/build_workflows.py` writes them."""
    assert page.read_text(encoding="utf-8") == filled


def test_every_picture_of_a_help_page_exists():
    docs = ROOT / "web" / "docs"  # the page looks for pictures from here, in every language
    for page in docs.rglob("*.md"):
        for part in page.read_text(encoding="utf-8").split("](")[1:]:
            target = part.split(")")[0]
            assert (docs / target).is_file(), f"{page.relative_to(docs)}: {target}"


@pytest.mark.parametrize("language", ["en", "zh"])
def test_every_node_input_and_output_has_a_name_and_a_tooltip(language):
    names = read(ROOT / "locales" / language / "nodeDefs.json")
    assert set(names) == set(OURS)
    for node, info in OURS.items():
        entry = names[node]
        inputs = {key for kind in ("required", "optional") for key in info["input"].get(kind, {})}
        assert entry["display_name"]
        assert entry["description"]
        assert set(entry["inputs"]) == inputs
        assert set(entry["outputs"]) == {str(i) for i in range(len(info["output"]))}
        for slot in (*entry["inputs"].values(), *entry["outputs"].values()):
            assert slot["name"]
            assert slot["tooltip"]


def test_english_names_are_those_of_the_nodes():
    assert read(ROOT / "locales" / "en" / "nodeDefs.json") == english()


@pytest.mark.parametrize("language", ["en", "zh"])
def test_every_category_and_socket_of_ours_has_a_name(language):
    names = read(ROOT / "locales" / language / "main.json")
    categories = {part for info in OURS.values() for part in info["category"].split("/")}
    assert set(names["nodeCategories"]) == categories
    sockets = {kind for info in OURS.values() for kind in info["output"] if kind.startswith("UNIAVGEN")}
    assert set(names["dataTypes"]) == sockets
