"""Files that are replaced as a whole: a reader finds the old content or the new one, never a part of it.

And how to tell that a file has been replaced.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
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


def stamps(paths: Iterable[Path]) -> list[tuple[str, int, int]]:
    """Path, size in bytes and time of the last change (ns) of every file, those in folders too.

    A file of the same name with another content is not taken for the old one; what is not there is left out.
    """
    found = chain.from_iterable(sorted(path.rglob("*")) if path.is_dir() else [path] for path in paths)
    return [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in found if path.is_file()]
