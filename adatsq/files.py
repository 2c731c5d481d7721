"""Files that are whole: written at once or not at all, and known again by their sha256."""

import hashlib
import json
import os
from pathlib import Path


def write_text(path: str | Path, text: str) -> Path:
    """Write `text` to a temporary neighbour of `path`, then rename.

    OSError that names `path` if it cannot be written (a full disk, say): an older `path` is then as it was.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_text(text, encoding="utf-8")
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise OSError(f"could not write {path}, nothing was changed: {error}") from error
    return path


def sha256(file: Path) -> str:
    """Of a file's bytes."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while chunk := stream.read(2**22):
            digest.update(chunk)
    return digest.hexdigest()


def checksum(content: dict) -> str:
    """sha256 of what JSON would hold, whatever the order of its fields."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
