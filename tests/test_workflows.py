"""The example workflows open, belong to these nodes and explain themselves; every node has help and names."""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path

import pytest
from build_workflows import MODES, english, text, workflows
from PIL import Image
from workflow_graph import GOLDEN, node_types

ROOT = Path(__file__).parents[1]
WORKFLOWS = sorted((ROOT / "workflows").glob("*.json"))
OURS = json.loads(GOLDEN.read_text(encoding="utf-8"))
NAMES = [*MODES, "advanced", "guidance_grid"]
TITLE = 30
PICTURE_BYTES = 150_000


def read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture(params=WORKFLOWS, ids=lambda path: path.stem)
def path(request) -> Path:
    return request.param


def test_there_is_one_for_every_mode_with_and_without_weights():
    wanted = {prefix + name for prefix in ("", "embedded_") for name in NAMES}
    assert {path.stem for path in WORKFLOWS} == wanted
    assert {path.stem for path in (ROOT / "workflows" / "api").glob("*.json")} == wanted


@pytest.mark.parametrize("name", workflows())
def test_the_files_are_what_the_builder_writes(name):
    graph = workflows()[name]
    assert (ROOT / "workflows" / f"{name}.json").read_text(encoding="utf-8") == text(graph.ui())
    assert (ROOT / "workflows" / "api" / f"{name}.json").read_text(encoding="utf-8") == text(graph.api())


def test_every_link_joins_sockets_that_exist_and_agree(path):
    content = read(path)
    types, nodes = node_types(), {node["id"]: node for node in content["nodes"]}
    assert content["version"] == 0.4
    assert len(nodes) == len(content["nodes"])
    for number, source, output, target, at, kind in content["links"]:
        out, into = nodes[source]["outputs"][output], nodes[target]["inputs"][at]
        assert number in out["links"]
        assert into["link"] == number
        assert kind == out["type"] == types[nodes[source]["type"]].outputs[output].type
        assert into["type"] in (kind, "*")
        assert source < target  # drawn from left to right


def test_every_socket_that_is_needed_is_connected(path):
    types = node_types()
    for node in read(path)["nodes"]:
        kind = types.get(node["type"])
        if kind is None:
            continue
        connected = {entry["name"] for entry in node["inputs"] if entry["link"] is not None}
        assert {slot.name for slot in kind.sockets if not slot.optional} <= connected


def test_the_values_of_our_nodes_stand_in_the_order_of_their_widgets(path):
    for node in read(path)["nodes"]:
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


def test_the_prompt_says_the_same_as_the_page(path):
    content, prompt = read(path), read(path.parent / "api" / path.name)
    nodes = {str(node["id"]): node for node in content["nodes"] if node["type"] != "MarkdownNote"}
    assert {key: node["type"] for key, node in nodes.items()} == {
        key: node["class_type"] for key, node in prompt.items()
    }
    links = {(str(target), at): [str(source), slot] for _, source, slot, target, at, _ in content["links"]}
    for key, node in nodes.items():
        for at, entry in enumerate(node["inputs"]):
            if (key, at) in links:
                assert prompt[key]["inputs"][entry["name"]] == links[key, at]


def test_a_note_tells_the_artist_what_to_do(path):
    notes = [node for node in read(path)["nodes"] if node["type"] == "MarkdownNote"]
    assert len(notes) == 1
    words = notes[0]["widgets_values"][0]
    assert "## What to set" in words
    assert ("small puppet model" in words) == path.stem.startswith("embedded_")
    assert ("MCG-NJU/UniAVGen" in words) == (not path.stem.startswith("embedded_"))


def box(node: dict) -> tuple[float, float, float, float]:
    (x, y), (width, height) = node["pos"], node["size"]
    return x, y - TITLE, x + width, y + height


def overlap(a: tuple, b: tuple) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def test_nodes_stand_in_groups_and_nothing_overlaps(path):
    content = read(path)
    groups = []
    for group in content["groups"]:
        x, y, width, height = group["bounding"]
        assert group["title"]
        groups.append((x, y, x + width, y + height))
    assert not any(overlap(a, b) for a, b in combinations(groups, 2))
    assert not any(overlap(box(a), box(b)) for a, b in combinations(content["nodes"], 2))
    for node in content["nodes"]:
        if node["type"] != "MarkdownNote":
            x0, y0, x1, y1 = box(node)
            assert any(g[0] <= x0 and g[1] <= y0 and x1 <= g[2] and y1 <= g[3] for g in groups)


def test_download_links_name_the_file_of_the_widget(path):
    linked = [node for node in read(path)["nodes"] if "models" in node.get("properties", {})]
    assert len(linked) == (0 if path.stem.startswith("embedded_") else 2)
    for node in linked:
        for model in node["properties"]["models"]:
            assert model["name"] in node["widgets_values"]
            assert model["url"].startswith("https://huggingface.co/")
            assert model["url"].endswith("/" + model["name"])
            assert model["directory"] in ("vae", "text_encoders")


def test_a_small_picture_shows_the_graph(path):
    picture = path.with_suffix(".jpg")
    assert picture.stat().st_size <= PICTURE_BYTES
    with Image.open(picture) as image:
        assert image.format == "JPEG"
        assert image.width >= 1000


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
