"""Workflows that were saved with version 0.1.0 still load: the page finds every node, socket and value."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from workflow_graph import node_types

OLD = Path(__file__).parent / "old_workflows"
INFO = json.loads((OLD.parent / "object_info.json").read_text(encoding="utf-8"))


def ours() -> list:
    """(workflow, node) of every node of this pack, as the page saved it."""
    saved = {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in sorted(OLD.glob("*.json"))}
    return [
        pytest.param(node, id=f"{name}-{node['type']}-{node['id']}")
        for name, content in saved.items()
        for node in content["nodes"]
        if node["type"].startswith("UniAVGen")
    ]


@pytest.fixture(params=ours())
def node(request) -> dict:
    return request.param


def widget_values(node: dict) -> dict:
    """Saved values by the names of their widgets; the page saves them in order, after a seed its control."""
    names = [slot["widget"]["name"] for slot in node["inputs"] if "widget" in slot]
    if "seed" in names:
        names.insert(names.index("seed") + 1, "control_after_generate")
    values = node.get("widgets_values", [])
    assert len(names) == len(values)
    return dict(zip(names, values))


def test_every_node_of_that_version_is_in_one_of_its_workflows():
    assert len({param.values[0]["type"] for param in ours()}) == 20


def test_every_link_finds_its_input_and_output(node):
    now = node_types()[node["type"]]
    types = {slot.name: slot.type for slot in (*now.sockets, *now.widgets)}
    for slot in node["inputs"]:
        assert slot["name"] in types
        assert slot["type"] in types[slot["name"]].split(",")
    outputs = [slot["type"] for slot in node["outputs"]]
    assert outputs == [slot.type for slot in now.outputs][: len(outputs)]


def test_what_is_new_since_then_is_optional_or_has_a_default(node):
    now, had = node_types()[node["type"]], {slot["name"] for slot in node["inputs"]}
    assert all(slot.optional for slot in now.sockets if slot.name not in had)
    assert all(slot.name in now.defaults for slot in now.widgets if slot.name not in had)


def test_every_saved_value_lands_in_its_widget_and_is_allowed(node):
    now = node_types()[node["type"]]
    expected = [slot.name for slot in now.widgets]
    if now.seed:
        expected.insert(expected.index(now.seed) + 1, "control_after_generate")
    values = widget_values(node)
    assert list(values) == expected[: len(values)]
    inputs = INFO[node["type"]]["input"]
    for name, value in values.items():
        type_, options = (inputs["required"] | inputs.get("optional", {})).get(name, (None, {}))
        if type_ in ("INT", "FLOAT"):
            assert options["min"] <= value <= options["max"]
        elif type_ == "COMBO" and options.get("options"):
            assert value in options["options"]
