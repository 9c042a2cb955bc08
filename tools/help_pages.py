"""The tables of inputs and outputs in web/docs, from the names and tooltips in locales.

A page has a heading for inputs, if the node has any, and one for outputs; everything above them is written by
hand, everything below a heading is the table.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
LANGUAGES = ("en", "zh")


def page(node: str, language: str) -> Path:
    docs = ROOT / "web" / "docs"
    return docs / f"{node}.md" if language == "en" else docs / node / f"{language}.md"


def help_pages() -> Iterator[tuple[Path, str]]:
    """Every help page with its tables filled in."""
    for language in LANGUAGES:
        locale = ROOT / "locales" / language / "nodeDefs.json"
        for node, names in json.loads(locale.read_text(encoding="utf-8")).items():
            path = page(node, language)
            yield path, _filled(path.read_text(encoding="utf-8"), names)


def _filled(text: str, names: dict) -> str:
    inputs = [
        (f"`{key}`" if key == slot["name"] else f"{slot['name']} `{key}`", slot["tooltip"])
        for key, slot in names["inputs"].items()
    ]
    outputs = [(slot["name"], slot["tooltip"]) for slot in names["outputs"].values()]
    tables = [rows for rows in (inputs, outputs) if rows]
    above, *sections = text.split("\n## ")
    headings = [section.split("\n", 1)[0] for section in sections]
    if len(headings) != len(tables):
        raise ValueError(f"{above.splitlines()[0]}: {len(tables)} headings are needed, there are {headings}")
    parts = [
        f"## {heading}\n\n| | |\n|---|---|\n" + "".join(f"| {name} | {tip} |\n" for name, tip in rows)
        for heading, rows in zip(headings, tables)
    ]
    return f"{above}\n" + "\n".join(parts)


def write() -> None:
    for path, text in list(help_pages()):
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    write()
