"""Files that are replaced as a whole: a reader finds the old content or the new one, never a part of it."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path, suffix: str = ".part") -> Iterator[Path]:
    """A temporary path beside `path`, moved onto it at the end of the block and deleted after an error.

    `suffix`: of the temporary name, where a library chooses the format by it.
    """
    temporary = path.with_name(f".{uuid.uuid4().hex}{suffix}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Replaces a UTF-8 text file."""
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8")
