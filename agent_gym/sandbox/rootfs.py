"""The file system that model-written code sees: this interpreter, its standard library and the zygote, nothing else.

No site-packages (a data set installed there would show its hidden tests), no shell, no user's files. The bubblewrap
backend mounts it from a cache folder; the Docker image is the same tree as one deterministic layer.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import io
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import zoneinfo
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from agent_gym.sandbox.errors import SandboxUnavailable

__all__ = ["PYTHON", "ZYGOTE", "image_id", "image_tar", "rootfs"]

PYTHON = f"/python/bin/python{sys.version_info[0]}.{sys.version_info[1]}"
"""The interpreter, inside."""

ZYGOTE = "/sandbox/zygote.py"

_SOURCES = ("zygote.py", "wire.py", "suite.py")
_LEFT_OUT = shutil.ignore_patterns(
    "__pycache__", "site-packages", "dist-packages", "test", "tests", "idlelib", "turtledemo", "tkinter", "lib2to3",
    "ensurepip", "config-*", "*.a", "pydoc_data", "_tkinter*", "_test*", "xxlimited*",
)  # fmt: skip
_FOLDERS = ("proc", "dev", "tmp", "sys", "run", "etc")


def _interpreter() -> Path:
    """The real interpreter, not a virtual environment's link to it."""
    return Path(getattr(sys, "_base_executable", None) or sys.executable).resolve()


def _libraries(*binaries: Path) -> list[Path]:
    """The shared libraries that the binaries load, with the dynamic loader, as they are named in there."""
    found: dict[str, None] = {}
    for binary in binaries:
        listing = subprocess.run(["ldd", str(binary)], capture_output=True, text=True, check=False).stdout
        found.update(dict.fromkeys(re.findall(r"(/\S+) \(0x", listing)))
    return [Path(path) for path in found]


def _signature() -> str:
    """Changes with the interpreter and with the files of this package."""
    interpreter, here = _interpreter(), Path(__file__).parent
    parts = [str(interpreter), str(interpreter.stat().st_mtime_ns), sys.version, platform.machine()]
    parts += [(here / name).read_text(encoding="utf-8") for name in (*_SOURCES, "rootfs.py")]
    return hashlib.blake2b("\0".join(parts).encode(), digest_size=10).hexdigest()


@contextlib.contextmanager
def _cache() -> Iterator[Path]:
    """The folder for what is built once, made where it is missing.

    Raises:
        SandboxUnavailable: If it cannot be made, read or written, also by what is done in this context.
    """
    remedy = "set XDG_CACHE_HOME to a folder that can be written"
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").absolute() / "agent_gym"
    except RuntimeError:
        raise SandboxUnavailable(f"the sandbox has no home folder to keep its files in: {remedy}") from None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield folder
    except OSError as error:
        why = error.args[0][0][2] if isinstance(error, shutil.Error) else error  # the first of one for every file
        raise SandboxUnavailable(f"the sandbox cannot keep its files in {folder} ({why}): {remedy}") from error


def _build(root: Path) -> None:
    interpreter = _interpreter()
    library = root / "python" / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}"
    (root / "python" / "bin").mkdir(parents=True)
    shutil.copy(interpreter, root / PYTHON[1:])
    shutil.copytree(sysconfig.get_path("stdlib"), library, ignore=_LEFT_OUT)
    dynamic = Path(sysconfig.get_config_var("DESTSHARED") or library / "lib-dynload")
    if dynamic.is_dir():
        shutil.copytree(dynamic, library / "lib-dynload", ignore=_LEFT_OUT, dirs_exist_ok=True)
    for path in _libraries(interpreter, *sorted((library / "lib-dynload").glob("*.so"))):
        # the loader is looked up by its full path, the rest in the default folders
        target = root / str(path)[1:] if path.name.startswith("ld-") else root / "lib" / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path.resolve(), target)
    (root / "sandbox").mkdir()
    for name in _SOURCES:
        shutil.copy(Path(__file__).parent / name, root / "sandbox" / name)
    for name in _FOLDERS:
        (root / name).mkdir(exist_ok=True)
    _copy_zones(root / "usr" / "share" / "zoneinfo")
    # Bytecode without a time in it, never looked at twice; from a fresh process with a fixed hash seed, because the
    # order of set constants and the sharing of strings depend on both.
    command = ["-S", "-m", "compileall", "-q", "--invalidation-mode", "unchecked-hash", "-s", str(root), "-p", "/"]
    subprocess.run(
        [str(interpreter), *command, str(library), str(root / "sandbox")],
        env={"PYTHONHASHSEED": "0", "LC_ALL": "C.UTF-8"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=False,  # lib2to3's and test's deliberate syntax errors are no fault of ours
    )
    for path in (root, *root.rglob("*")):
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() or os.access(path, os.X_OK) else 0o644)
    (root / "tmp").chmod(0o1777)


def _copy_zones(target: Path) -> None:
    """The time zones of this machine, or of the package tzdata; none where there is neither."""
    folders = [Path(folder) for folder in zoneinfo.TZPATH]
    if (spec := importlib.util.find_spec("tzdata")) is not None and spec.origin is not None:
        folders.append(Path(spec.origin).parent / "zoneinfo")
    found = next((folder for folder in folders if (folder / "UTC").is_file()), None)
    if found is not None:
        unneeded = shutil.ignore_patterns("posix", "right", "*.py", "__pycache__", "*.tab", "*.zi", "localtime")
        shutil.copytree(found, target, ignore=unneeded)


@lru_cache(maxsize=1)
def rootfs() -> Path:
    """The tree as a folder, built on first use (seconds) and kept in ``$XDG_CACHE_HOME/agent_gym``.

    Raises:
        SandboxUnavailable: If it cannot be kept there.
    """
    with _cache() as cache:
        target = cache / f"rootfs-{_signature()}"
        if not target.is_dir():
            with tempfile.TemporaryDirectory(dir=cache) as work:
                root = Path(work) / "root"
                root.mkdir()
                _build(root)
                try:
                    root.rename(target)
                except OSError:
                    if not target.is_dir():  # else another process was faster
                        raise
    return target


def _layer(root: Path) -> bytes:
    """One layer, the same bytes on every build: sorted names, no times, no owners."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for path in sorted(root.rglob("*")):
            entry = tar.gettarinfo(path, str(path.relative_to(root)))
            entry.uid = entry.gid = entry.mtime = 0
            entry.uname = entry.gname = ""
            if entry.isfile():
                with path.open("rb") as file:
                    tar.addfile(entry, file)
            else:
                tar.addfile(entry)
    return buffer.getvalue()


def image_tar() -> tuple[str, bytes]:
    """The Docker image as ``docker load`` takes it, and its id: the hash of its configuration, which names the hash of
    its only layer."""
    layer = _layer(rootfs())
    machine = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
    config = json.dumps(
        {
            "architecture": machine,
            "os": "linux",
            "created": "1970-01-01T00:00:00Z",
            "config": {"Labels": {"agent_gym.sandbox": _signature()}},
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"]},
            "history": [{"created": "1970-01-01T00:00:00Z", "created_by": "agent_gym.sandbox"}],
        },
        sort_keys=True,
    ).encode()
    identity = hashlib.sha256(config).hexdigest()
    tag = f"agent_gym-sandbox:{_signature()}"
    manifest = json.dumps([{"Config": f"{identity}.json", "RepoTags": [tag], "Layers": ["layer.tar"]}]).encode()
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in ((f"{identity}.json", config), ("layer.tar", layer), ("manifest.json", manifest)):
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    with _cache() as cache:
        temporary = cache / f"image-{_signature()}.{os.getpid()}"
        temporary.write_text(f"sha256:{identity}", encoding="utf-8")
        temporary.rename(cache / f"image-{_signature()}")
    return f"sha256:{identity}", buffer.getvalue()


def image_id() -> str:
    """The id of the image that :func:`image_tar` makes, from the record of its last making or by making it."""
    with _cache() as cache:
        record = cache / f"image-{_signature()}"
        return record.read_text(encoding="utf-8") if record.is_file() else image_tar()[0]
