"""Both distributions build as wheel, editable and source distribution, and what is installed works on its own.

The environments are made with the standard library's venv and see the packages of this one through a path file, so that
no test needs a registry: the builds run without isolation, the installations without dependencies.
"""

from __future__ import annotations

import os
import shutil
import site
import subprocess
import sys
import tarfile
import venv
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROJECTS = {"remit-sdk": ROOT / "agents_sdk", "remit-broker": ROOT}
WHERE = """import remit, remit_broker, remit_schemas
for module in (remit, remit_broker, remit_schemas):
    print(module.__file__)"""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


def run(*command: object, cwd: Path) -> str:
    """Standard output; on failure the test fails with everything the command said."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


class Environment:
    """An empty environment in which the dependencies can be imported, but none of our own packages."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        venv.create(folder, with_pip=False, symlinks=True)
        self.python = folder / "bin" / "python"
        self.packages = folder / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
        (self.packages / "dependencies.pth").write_text("\n".join(self._dependencies()) + "\n")

    def _dependencies(self) -> list[str]:
        """This environment's folder of packages, by links to all but our own distributions and their path files."""
        links = self.folder / "dependencies"
        links.mkdir()
        for folder in site.getsitepackages():
            for entry in Path(folder).iterdir():
                if not entry.name.startswith(("remit", "_remit")) and entry.suffix != ".pth":
                    (links / entry.name).symlink_to(entry)
        return [str(links)]

    def install(self, *what: object) -> None:
        # The pip of this environment installs into the other one: faster than a pip of its own.
        run(
            self.python,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--no-deps",
            "--no-index",
            "--no-build-isolation",
            *what,
            cwd=self.folder,
        )

    def ask(self, code: str, cwd: Path | None = None) -> str:
        return run(self.python, "-c", code, cwd=cwd or self.folder)


@pytest.fixture
def environment(tmp_path: Path) -> Environment:
    return Environment(tmp_path / "environment")


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what is needed to build, so that a build leaves nothing in the real one."""
    copy = tmp_path_factory.mktemp("checkout")
    ignore = shutil.ignore_patterns("__pycache__", "dist", "build", ".venv", ".*_cache")
    for name in ("broker", "agents_sdk", "schemas"):
        shutil.copytree(ROOT / name, copy / name, ignore=ignore)
    for name in ("pyproject.toml", "README.md", "CHANGELOG.md", "LICENSE"):
        shutil.copy(ROOT / name, copy / name)
    return copy


@pytest.fixture(scope="module")
def built(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`python -m build` of both: a source distribution, and the wheel built from it and not from the checkout."""
    out = tmp_path_factory.mktemp("dist")
    for project in (checkout / "agents_sdk", checkout):
        run(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, project, cwd=out)
    return out


def only(folder: Path, pattern: str) -> Path:
    found = list(folder.glob(pattern))
    assert len(found) == 1, (pattern, sorted(folder.iterdir()))
    return found[0]


def names(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def python_files(package: Path, prefix: str) -> set[str]:
    return {
        f"{prefix}/{path.relative_to(package).as_posix()}"
        for path in package.rglob("*.py")
        if "__pycache__" not in path.parts
    }


def test_an_ordinary_installation_holds_all_three_packages_by_itself(checkout: Path, environment: Environment):
    environment.install(checkout / "agents_sdk", checkout)
    places = environment.ask(WHERE).split()
    assert [Path(place).parent.parent for place in places] == [environment.packages] * 3
    assert (environment.folder / "bin" / "remit").exists()


def test_an_editable_installation_points_at_the_sources(checkout: Path, environment: Environment):
    environment.install("-e", checkout / "agents_sdk", "-e", checkout)
    places = [Path(place).parent for place in environment.ask(WHERE).split()]
    assert places == [
        checkout / "agents_sdk" / "remit",
        checkout / "broker" / "remit_broker",
        checkout / "schemas" / "remit_schemas",
    ]


def test_a_wheel_made_from_a_source_distribution_holds_every_module(
    built: Path, checkout: Path, environment: Environment
):
    sdk, broker = only(built, "remit_sdk-*.whl"), only(built, "remit_broker-*.whl")
    assert names(sdk) >= python_files(checkout / "agents_sdk" / "remit", "remit")
    assert names(sdk) >= python_files(checkout / "schemas" / "remit_schemas", "remit_schemas")
    assert names(broker) >= python_files(checkout / "broker" / "remit_broker", "remit_broker")
    assert {"remit/py.typed", "remit_schemas/py.typed"} <= names(sdk)
    assert "remit_broker/py.typed" in names(broker)
    environment.install(sdk, broker)
    assert len(environment.ask(WHERE).split()) == 3


def test_a_wheel_from_the_checkout_equals_the_one_from_the_source_distribution(
    checkout: Path, built: Path, tmp_path: Path
):
    for project, pattern in ((checkout / "agents_sdk", "remit_sdk-*.whl"), (checkout, "remit_broker-*.whl")):
        run(sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", tmp_path, project, cwd=tmp_path)
        assert names(only(tmp_path, pattern)) == names(only(built, pattern))


def test_a_distribution_holds_nothing_else(built: Path):
    """No second top-level name: a stray `schemas`, `tests` or hook in site-packages would shadow a user's own module."""
    tops = {name.split("/")[0] for wheel in built.glob("*.whl") for name in names(wheel)}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"remit", "remit_schemas", "remit_broker"}
    with tarfile.open(only(built, "remit_sdk-*.tar.gz")) as archive:
        inside = {name.split("/")[1] for name in archive.getnames() if "/" in name}
    assert inside <= {
        "remit",
        "remit_schemas",
        "hatch_build.py",
        "pyproject.toml",
        "README.md",
        "LICENSE",
        "PKG-INFO",
        ".gitignore",
    }


def test_every_archive_carries_the_licence(built: Path):
    for wheel in built.glob("*.whl"):
        assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names(wheel)), wheel
    for archive in built.glob("*.tar.gz"):
        with tarfile.open(archive) as tar:
            assert any(name.count("/") == 1 and name.endswith("/LICENSE") for name in tar.getnames()), archive


def test_a_project_without_its_schemas_is_refused_when_built(checkout: Path, tmp_path: Path):
    """Not at the first import of whoever installed it."""
    alone = tmp_path / "alone" / "agents_sdk"
    shutil.copytree(checkout / "agents_sdk", alone)
    command = [sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", str(tmp_path), str(alone)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "remit_schemas is neither in" in done.stdout + done.stderr


@pytest.mark.parametrize("mode", [(), ("-e",)], ids=["ordinary", "editable"])
def test_modules_of_a_users_own_break_nothing(
    checkout: Path, environment: Environment, tmp_path: Path, mode: Sequence[str]
):
    """A folder with `schemas.py`, `broker.py` and the like is where people start programs: ours must not import theirs."""
    environment.install(*(part for project in (checkout / "agents_sdk", checkout) for part in (*mode, project)))
    mine = tmp_path / "mine"
    mine.mkdir()
    taken = (
        "schemas",
        "broker",
        "agents_sdk",
        "core",
        "hop",
        "cli",
        "app",
        "edges",
        "adapters",
        "config",
        "ports",
        "tests",
        "tools",
        "hatch_build",
    )
    for name in taken:
        (mine / f"{name}.py").write_text(f"MINE = {name!r}\n")
    code = (
        "import importlib, pkgutil, remit, remit_broker, remit_schemas\n"
        "for package in (remit, remit_broker, remit_schemas):\n"
        "    for found in pkgutil.walk_packages(package.__path__, package.__name__ + '.'):\n"
        "        if not found.name.endswith('__main__'): importlib.import_module(found.name)\n"
        f"for name in {taken!r}:\n"
        "    assert importlib.import_module(name).MINE == name\n"
        "print('both')"
    )
    assert environment.ask(code, cwd=mine).split() == ["both"]


def test_versions_agree():
    import tomllib

    read = {
        name: tomllib.loads((folder / "pyproject.toml").read_text())["project"] for name, folder in PROJECTS.items()
    }
    versions = {project["version"] for project in read.values()}
    assert len(versions) == 1
    version = versions.pop()
    assert f"remit-sdk=={version}" in read["remit-broker"]["dependencies"]
    code = "import remit_broker; print(remit_broker.__version__)"
    assert run(sys.executable, "-c", code, cwd=ROOT / "broker").strip() == version
    assert f"## [{version}]" in (ROOT / "CHANGELOG.md").read_text()
