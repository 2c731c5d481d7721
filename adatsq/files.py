"""Writing a file so that a reader never meets half of it."""

import os
from pathlib import Path


def write_text(path: str | Path, text: str) -> Path:
    """Write `text` to a temporary neighbour of `path`, then rename: on failure an older `path` stays."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path
