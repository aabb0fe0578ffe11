"""Files that are whole at every moment: written under a temporary name beside their place, then renamed."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["replacing", "write"]


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """The temporary name: what the block writes there takes the place of ``path`` when it ends. If it fails, what stood
    at ``path`` stays.

    Args:
        path: Of a file, in a folder that exists.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write(path: str | Path, data: str | bytes) -> None:
    """Write a file, text as UTF-8 with the line ends that it has.

    Raises:
        OSError: If it cannot be written.
    """
    with replacing(path) as temporary:
        temporary.write_bytes(data.encode() if isinstance(data, str) else data)
