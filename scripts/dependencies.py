"""What keynet is made of: checks it, and writes it down.

    dependencies.py check                 licences, versions that are there twice, known vulnerabilities (`make lint`)
    dependencies.py sbom FILE             a software bill of materials, CycloneDX 1.6 in JSON (`make sbom`)
    dependencies.py advisories CHECKOUT   makes advisories.json anew from a checkout of the RustSec advisory database

The advisories are a snapshot, in `advisories.json` beside this file, with the day it was made: a check that needs a
network says nothing where there is none. It has all crates, so a new dependency is checked too. For Python packages no
such database can be had offline; at run time the package needs none but tomli before Python 3.11, and its extras are
the users' own to update.
"""

from __future__ import annotations

import collections
import hashlib
import importlib.metadata
import json
import pathlib
import re
import subprocess
import sys
import uuid
from collections.abc import Iterator
from typing import Any

ROOT = pathlib.Path(__file__).parents[1]
ADVISORIES = pathlib.Path(__file__).with_name("advisories.json")

LICENCES = {
    *(
        "MIT",
        "MIT-0",
        "Apache-2.0",
        "ISC",
        "BSD-2-Clause",
        "BSD-3-Clause",
        "CC0-1.0",
        "Unlicense",
        "Unicode-3.0",
        "Zlib",
    ),
    "Apache-2.0 WITH LLVM-exception",
}
"""None of them asks more of who passes keynet on than to keep the notices."""

TWICE = {
    "base64": "pem (of rcgen) has 0.23, tonic 0.22",
    "cpufeatures": "sha1 and sha2 0.10 (of stun-types) have the older",
    "getrandom": "ring, which is never built, has 0.2; rand 0.9 (of stun-types) has 0.3",
    "r-efi": "never built: UEFI, of both getrandom",
    "rand": "stun-types has 0.9",
    "rand_core": "as rand",
    "syn": "procedural macros, when it is built only",
    "untrusted": "aws-lc-rs has 0.7, rustls-webpki 0.9",
    "windows-sys": "ring, which is never built, has 0.52",
}
"""Crates that are there in several versions, and why that cannot be helped. What is not here fails."""

IGNORED: dict[str, str] = {}
"""Advisories that do not concern keynet, with the reason."""

PYTHON = ("grpcio", "protobuf", "nats-py", "prometheus-client", "opentelemetry-api", "tomli")
"""What the extras of pyproject.toml bring along."""
PYTHON_LICENCES = re.compile(r"MIT|Apache|BSD|PSF", re.IGNORECASE)


def metadata() -> dict[str, Any]:
    """All crates of Cargo.lock, and who needs whom."""
    command = ["cargo", "metadata", "--locked", "--format-version", "1", "--features", "python"]
    answer = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE)
    found: dict[str, Any] = json.loads(answer.stdout)
    return found


def allows(expression: str) -> bool:
    """Whether an SPDX expression lets us do with licences of the list alone."""
    # "A/B" is how it was written before SPDX
    tokens = re.findall(r"\(|\)|[^\s()/]+|/", expression)
    tokens = ["OR" if token == "/" else token for token in tokens]
    place = 0

    def either() -> bool:
        nonlocal place
        found = both()
        while place < len(tokens) and tokens[place] == "OR":
            place += 1
            found = both() or found
        return found

    def both() -> bool:
        nonlocal place
        found = one()
        while place < len(tokens) and tokens[place] == "AND":
            place += 1
            found = one() and found
        return found

    def one() -> bool:
        nonlocal place
        if place >= len(tokens):
            return False
        token = tokens[place]
        place += 1
        if token == "(":
            found = either()
            place += 1
            return found
        if tokens[place : place + 1] == ["WITH"]:
            token = f"{token} WITH {tokens[place + 1]}"
            place += 2
        return token in LICENCES

    return bool(tokens) and either() and place == len(tokens)


def version(text: str) -> tuple[int, int, int, bool, str]:
    """To be compared; a pre-release comes before its release."""
    numbers, _, pre = text.strip().partition("+")[0].partition("-")
    parts = [int(part) for part in numbers.split(".")] + [0, 0]
    return parts[0], parts[1], parts[2], pre == "", pre


def matches(requirement: str, text: str) -> bool:
    """Whether a version fulfils a requirement as Cargo writes them: `>= 1.2, < 2`, `^0.3.1`, `~1.4`."""
    return all(_matches_one(one.strip(), version(text)) for one in requirement.split(","))


def _matches_one(requirement: str, found: tuple[int, int, int, bool, str]) -> bool:
    match = re.fullmatch(r"(>=|<=|>|<|=|\^|~)?\s*([0-9][0-9A-Za-z.+-]*)", requirement)
    if match is None:
        return requirement == "*"
    operator, text = match.group(1) or "^", match.group(2)
    wanted, given = version(text), len(text.partition("-")[0].split("."))
    if operator == "=":
        return found[:given] == wanted[:given] if given < 3 else found == wanted
    if operator in ("^", "~"):
        fixed = min(given, 2) if operator == "~" else next((n for n in range(3) if wanted[n] != 0), given - 1) + 1
        return found >= wanted and found[:fixed] == wanted[:fixed]
    return {">=": found >= wanted, ">": found > wanted, "<=": found <= wanted, "<": found < wanted}[operator]


def findings(found: dict[str, Any], advisories: list[dict[str, Any]]) -> Iterator[str]:
    """What is wrong with the crates, a line each."""
    versions = collections.defaultdict(set)
    by_name = collections.defaultdict(list)
    for advisory in advisories:
        by_name[advisory["package"]].append(advisory)
    for package in found["packages"]:
        name, number = package["name"], package["version"]
        versions[name].add(number)
        if not allows(package["license"] or ""):
            yield f"{name} {number}: licence {package['license']!r} is not among those that are allowed"
        for advisory in by_name[name]:
            safe = [*advisory["patched"], *advisory["unaffected"]]
            if advisory["id"] in IGNORED or any(matches(requirement, number) for requirement in safe):
                continue
            yield f"{name} {number}: {advisory['id']} ({advisory['kind']}): {advisory['title']}"
    for name, numbers in sorted(versions.items()):
        if len(numbers) > 1 and name not in TWICE:
            yield f"{name}: in versions {' and '.join(sorted(numbers))}: take one, or say why not in TWICE"
    for name in TWICE.keys() - {name for name, numbers in versions.items() if len(numbers) > 1}:
        yield f"{name}: is there once now: take it out of TWICE"
    for identifier in IGNORED.keys() - {advisory["id"] for advisory in advisories}:
        yield f"{identifier}: there is no such advisory: take it out of IGNORED"


def python_packages() -> Iterator[tuple[str, str, str]]:
    """Name, version, licence of those that are installed."""
    for name in PYTHON:
        try:
            told = importlib.metadata.metadata(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        classifiers = [one for one in told.get_all("Classifier") or [] if one.startswith("License ::")]
        licence = told.get("License-Expression") or told.get("License") or "".join(classifiers)
        yield told["Name"], told["Version"], licence.splitlines()[0][:80] if licence else ""


def check() -> int:
    """Prints what is wrong; the exit code."""
    snapshot = json.loads(ADVISORIES.read_text())
    wrong = list(findings(metadata(), snapshot["advisories"]))
    wrong += [
        f"{name} {number}: licence {licence!r}"
        for name, number, licence in python_packages()
        if not PYTHON_LICENCES.search(licence)
    ]
    for line in wrong:
        print(line)
    print(f"dependencies: {len(wrong)} findings; advisories of {snapshot['made']}")
    return 1 if wrong else 0


def shipped(found: dict[str, Any]) -> set[str]:
    """The crates that end in the extension module: no tests, no build scripts."""
    nodes = {node["id"]: node for node in found["resolve"]["nodes"]}
    waiting, seen = [found["resolve"]["root"]], set()
    while waiting:
        one = waiting.pop()
        if one in seen:
            continue
        seen.add(one)
        normal = (one for one in nodes[one]["deps"] if any(kind["kind"] is None for kind in one["dep_kinds"]))
        waiting.extend(dependency["pkg"] for dependency in normal)
    return seen


def sbom() -> dict[str, Any]:
    """CycloneDX 1.6. The same sources give the same document."""
    found = metadata()
    root, parts = found["resolve"]["root"], shipped(found)
    packages = {package["id"]: package for package in found["packages"] if package["id"] in parts}
    checksums = _checksums()
    names = {one: f"pkg:cargo/{package['name']}@{package['version']}" for one, package in packages.items()}
    components, links = [], []
    for one, package in sorted(packages.items(), key=lambda item: names[item[0]]):
        if one != root:
            components.append(_component(names[one], package["name"], package["version"], package["license"]))
            if checksum := checksums.get((package["name"], package["version"])):
                components[-1]["hashes"] = [{"alg": "SHA-256", "content": checksum}]
    for node in found["resolve"]["nodes"]:
        if node["id"] in parts:
            needs = {names[dependency] for dependency in node["dependencies"] if dependency in parts}
            links.append({"ref": names[node["id"]], "dependsOn": sorted(needs)})
    for name, number, licence in python_packages():
        component = _component(f"pkg:pypi/{name.lower()}@{number}", name, number, licence)
        # an extra, or only before Python 3.11
        components.append(component | {"scope": "optional"})
    whole = packages[root]
    subject = _component(names[root], whole["name"], whole["version"], whole["license"])
    body = {"components": components, "dependencies": sorted(links, key=lambda link: str(link["ref"]))}
    digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).digest()
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.UUID(bytes=digest[:16], version=4)}",
        "version": 1,
        "metadata": {"component": subject | {"type": "library"}},
        **body,
    }


def _component(reference: str, name: str, number: str, licence: str) -> dict[str, Any]:
    found: dict[str, Any] = {
        "type": "library",
        "bom-ref": reference,
        "name": name,
        "version": number,
        "purl": reference,
    }
    if licence:
        known = re.fullmatch(r"[A-Za-z0-9.()+ -]+", licence) and re.search(r" (OR|AND|WITH) ", licence)
        slashes = re.sub(r"\s*/\s*", " OR ", licence)
        if known or slashes != licence:
            found["licenses"] = [{"expression": slashes}]
        else:
            found["licenses"] = [{"license": {"id": licence} if licence in LICENCES else {"name": licence}}]
    return found


def _checksums() -> dict[tuple[str, str], str]:
    text = (ROOT / "Cargo.lock").read_text()
    pattern = r'name = "([^"]+)"\nversion = "([^"]+)"\nsource = "[^"]+"\nchecksum = "([0-9a-f]{64})"'
    return {(name, number): checksum for name, number, checksum in re.findall(pattern, text)}


def advisories(checkout: pathlib.Path) -> dict[str, Any]:
    """All that concerns crates, short. A bare repository will do as well."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(checkout), *arguments]
        return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout

    files = [
        line for line in git("ls-tree", "-r", "--name-only", "HEAD", "crates").splitlines() if line.endswith(".md")
    ]
    found = [one for one in (_advisory(git("show", f"HEAD:{file}")) for file in files) if one is not None]
    return {
        "source": "RustSec advisory database, CC0-1.0",
        "made": git("log", "-1", "--format=%cs").strip(),
        "advisories": sorted(found, key=lambda advisory: str(advisory["id"])),
    }


def _advisory(text: str) -> dict[str, Any] | None:
    import tomllib

    head = re.search(r"```toml\n(.*?)```(.*)", text, re.DOTALL)
    if head is None:
        return None
    told = tomllib.loads(head.group(1))
    advisory, versions = told["advisory"], told.get("versions", {})
    title = re.search(r"^# (.*)$", head.group(2), re.MULTILINE)
    # taken back by who reported it
    if "withdrawn" in advisory:
        return None
    return {
        "id": advisory["id"],
        "package": advisory["package"],
        "kind": advisory.get("informational", "vulnerability"),
        "title": title.group(1)[:120] if title else "",
        "patched": versions.get("patched", []),
        "unaffected": versions.get("unaffected", []),
    }


def main(arguments: list[str]) -> int:
    """The exit code."""
    match arguments:
        case ["check"]:
            return check()
        case ["sbom", file]:
            pathlib.Path(file).parent.mkdir(parents=True, exist_ok=True)
            pathlib.Path(file).write_text(json.dumps(sbom(), indent=1) + "\n")
            return 0
        case ["advisories", checkout]:
            lines = advisories(pathlib.Path(checkout))
            rows = ",\n".join(json.dumps(one, ensure_ascii=False) for one in lines.pop("advisories"))
            head = json.dumps(lines)[:-1]
            ADVISORIES.write_text(f'{head}, "advisories": [\n{rows}\n]}}\n')
            return 0
    print(__doc__)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
