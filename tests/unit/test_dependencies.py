"""Everything that is installed is pinned, at the pinned version, and fits what asked for it.

An audit for known vulnerabilities needs a network (see SECURITY.md); it audits constraints.txt, so
that file must be the truth.
"""

import importlib.metadata
import tomllib

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.conftest import REPOSITORY

NOT_OURS = {"setuptools"}  # comes with the virtual environment
EXTRAS = ("dev", "space", "onnx")  # what scripts/test.sh installs


def pins() -> dict[str, Version]:
    found = {}
    for line in (REPOSITORY / "constraints.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            name, separator, version = line.partition("==")
            assert separator, f"{line}: expected name==version"
            found[str(canonicalize_name(name))] = Version(version)
    return found


def asked_for() -> list[Requirement]:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    lines = [*project["dependencies"]]
    for extra in EXTRAS:
        lines += project["optional-dependencies"][extra]
    requirements = map(Requirement, lines)
    return [r for r in requirements if canonicalize_name(r.name) != project["name"]]


def problems(requirements: list[Requirement], pinned: dict[str, Version]) -> list[str]:
    """One line for every package below ``requirements`` that is not as it should be."""
    found: set[str] = set()
    seen: set[tuple[str, str]] = set()
    waiting = [(requirement, "hb-ssl") for requirement in requirements]
    while waiting:
        requirement, by = waiting.pop()
        name = str(canonicalize_name(requirement.name))
        try:
            installed = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            found.add(f"{name}: {by} needs it, and it is not installed")
            continue
        version = Version(installed.version)
        if not requirement.specifier.contains(version, prereleases=True):
            found.add(f"{name} {version}: {by} needs {requirement.specifier}")
        if name in NOT_OURS:
            continue
        if name not in pinned:
            found.add(f"{name} {version}: not in constraints.txt")
        elif Version(version.public) != pinned[name]:
            found.add(f"{name} {version}: constraints.txt says {pinned[name]}")
        for extra in ("", *requirement.extras):
            if (name, extra) in seen:
                continue
            seen.add((name, extra))
            for below in map(Requirement, installed.requires or []):
                if below.marker is None or below.marker.evaluate({"extra": extra}):
                    waiting.append((below, name))
    return sorted(found)


def test_all_packages_are_pinned_and_fit() -> None:
    assert problems(asked_for(), pins()) == []


def test_each_problem_is_seen() -> None:
    pinned = pins()
    other = {**pinned, "numpy": Version("1.0")}
    assert [line.split(":")[1] for line in problems([Requirement("numpy")], other)] == [
        " constraints.txt says 1.0"
    ]
    del other["numpy"]
    assert "not in constraints.txt" in problems([Requirement("numpy")], other)[0]
    assert "needs <1" in problems([Requirement("numpy<1")], pinned)[0]
    assert "not installed" in problems([Requirement("hb-ssl-no-such-package")], pinned)[0]
