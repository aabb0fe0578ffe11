"""What a release is made of: the source distribution, the wheel, the page on the index, the site.

Without what builds the site (the extra docs) its tests are skipped, unless AGENT_GYM_REQUIRE_DOCS=1."""

import ast
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
import zlib
from html.parser import HTMLParser
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import pytest

import agent_gym
from agent_gym.cli import main

ROOT = Path(__file__).parents[1]
REFERENCE = ROOT / "docs" / "reference"
FOLDERS = (".ci", "agent_gym", "agent_gym_verifiers", "benchmarks", "cleanrl_llm", "docs", "tests")


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
    """The source distribution, unpacked, and the wheel that is made from it."""
    if not find_spec("build") or not find_spec("setuptools") or int(version("setuptools").split(".")[0]) < 77:
        pytest.skip("to build without isolation needs build and setuptools 77")
    tmp = tmp_path_factory.mktemp("packages")
    source = tmp / "source"  # a copy, because setuptools writes into the tree
    source.mkdir()
    for file in ROOT.iterdir():
        if file.is_file() and file.name != ".git":
            shutil.copy(file, source)
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__"))
    done = subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", tmp, source], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    (archive,) = tmp.glob("agent_gym-*.tar.gz")
    with tarfile.open(archive) as opened:
        opened.extractall(tmp, filter="data")
    (unpacked,) = tmp.glob("agent_gym-*/")
    (wheel,) = tmp.glob("agent_gym-*-py3-none-any.whl")
    return unpacked, wheel


def test_tests_run_from_the_source_distribution(packages):
    """It holds every file of these folders, and there the tests of pages and of public names find what they read."""
    unpacked, _ = packages
    for folder in FOLDERS:
        files = {p.relative_to(ROOT) for p in (ROOT / folder).rglob("*") if p.is_file() and p.suffix != ".pyc"}
        assert not [str(file) for file in files if not (unpacked / file).is_file()]
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-k",
        "links_lead or public_modules or public_names",
    ]
    environment = {**os.environ, "PYTHONPATH": str(unpacked)}
    done = subprocess.run(
        [*command, "tests/test_docs.py", "tests/test_package.py", "tests/test_release.py"],
        capture_output=True, text=True, cwd=unpacked, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert not re.search("failed|error", done.stdout)


def test_wheel_holds_the_package_and_nothing_else(packages):
    _, wheel = packages
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        metadata = archive.read(next(name for name in names if name.endswith("/METADATA"))).decode()
    packed = {name for name in names if ".dist-info/" not in name}
    held = [p for p in (ROOT / "agent_gym").rglob("*") if p.name.endswith((".py", "py.typed"))]
    held.append(ROOT / "agent_gym_verifiers" / "__init__.py")
    held += [
        p
        for data in ("lm/policies/*/*", "*/*.json", "view/*.js", "view/*.css")
        for p in (ROOT / "agent_gym").glob(data)
    ]
    assert packed == {str(p.relative_to(ROOT)) for p in held}
    assert "agent_gym/py.typed" in packed
    assert "agent_gym/envs/api_agent/domains/__init__.py" in packed
    assert any(name.endswith("licenses/LICENSE") for name in names)
    required = [line for line in metadata.splitlines() if line.startswith("Requires-Dist: ") and "extra ==" not in line]
    assert {line.split()[1].split(">")[0] for line in required} == {"gymnasium", "numpy", "pydantic"}
    assert f"\nVersion: {agent_gym.__version__}\n" in metadata


def test_the_page_on_the_index_links_to_files_of_this_version(packages):
    _, wheel = packages
    with zipfile.ZipFile(wheel) as archive:
        page = archive.read(next(name for name in archive.namelist() if name.endswith("/METADATA"))).decode()
    (home,) = re.findall("^Project-URL: Repository, (.*)$", page, re.MULTILINE)
    links = re.findall(r"(!?)\[[^\]]*\]\(([^)\s]+)\)", page)
    assert len(links) > 20
    for image, target in links:
        if not target.startswith("https://") or target.startswith(home):
            head, tail = target[: len(home)], target[len(home) :]
            place = f"/{'raw' if image else 'blob'}/v{agent_gym.__version__}/"
            assert (head, tail[: len(place)]) == (home, place), target
            assert (ROOT / tail[len(place) :].split("#")[0]).is_file(), target
    pictures = [target.rsplit("/", 1)[1] for image, target in links if image]
    assert all((ROOT / "docs" / name).stat().st_size < 300_000 for name in pictures)


def test_version_and_date_are_the_same_everywhere(capsys):
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    said = re.search(r"^version: (\S+)\ndate-released: \"(\S+)\"$", citation, re.MULTILINE).groups()
    newest = re.search(r"^## (\S+) \((\S+)\)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert said == newest.groups()
    assert said[0] == agent_gym.__version__
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == f"agent-gym {said[0]}\n"


# ---- the site -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    if not find_spec("material") or not find_spec("mkdocstrings"):
        if os.environ.get("AGENT_GYM_REQUIRE_DOCS") == "1":
            pytest.fail("the site needs the extra docs")
        pytest.skip("the site needs the extra docs")
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", folder],
        capture_output=True, text=True, cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder


class _Fetched(HTMLParser):
    """What a browser loads with a page, and what the page links to."""

    def __init__(self):
        super().__init__()
        self.loaded, self.links = [], []

    def handle_starttag(self, tag, attrs):
        of = dict(attrs)
        self.loaded += [of[key] for key in ("src", "data") if of.get(key)]
        if tag == "link" and "canonical" not in of.get("rel", ""):
            self.loaded.append(of["href"])
        if tag == "a" and "href" in of:
            self.links.append(of["href"])


def test_pages_of_the_site_need_no_network_and_their_links_hold(site):
    pages = sorted(site.rglob("*.html"))
    assert len(pages) >= len(list((ROOT / "docs").rglob("*.md")))
    for page in pages:
        fetched = _Fetched()
        fetched.feed(page.read_text(encoding="utf-8"))
        assert fetched.loaded
        assert not [address for address in fetched.loaded if re.match(r"(\w+:)?//", address)], page
        for link in (*fetched.loaded, *fetched.links) if page.name != "404.html" else ():
            path = link.split("#")[0]
            if path and not re.match(r"\w+:", path):
                target = (page.parent / path).resolve()
                assert target.is_file() or (target / "index.html").is_file(), (page, link)


def test_every_public_name_is_in_the_reference(site):
    """Every name in ``__all__`` of the modules that stand there."""
    inventory = zlib.decompress((site / "objects.inv").read_bytes().split(b"\n", 4)[4]).decode()
    shown = {line.split(" ", 1)[0] for line in inventory.splitlines()}
    for module in _shown_modules():
        for name in _public_names(module):  # a function may have the name of its module
            assert shown & {f"{module}.{name}", f"{module}.{name}.{name}"}, f"{module}.{name}"


def test_public_modules_are_in_the_reference():
    """All that the pages' samples and the trainers import, and all integrations that the pages name."""
    texts = [*(ROOT / "cleanrl_llm").glob("*.py"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "docs").glob("*.py")]
    pattern = r"^(?:from|import) (agent_gym[\w.]*)|(agent_gym\.integrations\.[a-z]+)"
    used = {a or b for text in texts for a, b in re.findall(pattern, text.read_text(encoding="utf-8"), re.MULTILINE)}
    assert not used - {"agent_gym.lm", "agent_gym.integrations"} - set(_shown_modules())  # these two hold modules alone


def _shown_modules():
    text = "".join(page.read_text(encoding="utf-8") for page in REFERENCE.glob("*.md"))
    return [name for name in re.findall(r"^::: (\S+)$", text, re.MULTILINE) if _file(name)]


def _file(module):
    path = ROOT.joinpath(*module.split("."))
    return next((file for file in (path / "__init__.py", path.with_suffix(".py")) if file.is_file()), None)


def _public_names(module):
    """``__all__``, read from the text: some modules import what is not installed here."""
    for node in ast.parse(_file(module).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return ast.literal_eval(node.value)
    raise AssertionError(f"{module} has no __all__")
