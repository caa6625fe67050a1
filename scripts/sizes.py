"""Which files and functions are larger than the style asks for. A report: `tests/layers.rs` holds the hard limits.

Relies on the formatters: a function ends where a line has the indentation of its first line again.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

FILE_LINES = 600
FUNCTION_LINES = 60
FUNCTION = re.compile(r"^( *)(?:pub(?:\([a-z: ]+\))? )?(?:const |async |unsafe |extern \"C\" )*fn (\w+)")


def rust_functions(lines: list[str]) -> Iterator[tuple[int, str, int]]:
    """First line (from 1), name and length of each function."""
    for start, line in enumerate(lines):
        if match := FUNCTION.match(line):
            indentation, name = match.groups()
            for end in range(start, len(lines)):
                if lines[end].startswith(indentation + "}"):
                    yield start + 1, name, end - start + 1
                    break
                if end > start and lines[end].strip() and not lines[end].startswith(indentation):
                    break


def python_functions(lines: list[str]) -> Iterator[tuple[int, str, int]]:
    """First line (from 1), name and length of each function."""
    for node in ast.walk(ast.parse("\n".join(lines))):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.end_lineno is not None:
            yield node.lineno, node.name, node.end_lineno - node.lineno + 1


def without_tests(lines: list[str]) -> list[str]:
    """What stands before the tests of a Rust file."""
    for at, line in enumerate(lines):
        if line == "#[cfg(test)]" and at + 1 < len(lines) and lines[at + 1].startswith("mod tests {"):
            return lines[:at]
    return lines


def main() -> None:
    """Print what is over the limits, longest first, and one line of summary."""
    files: list[tuple[int, Path]] = []
    functions: list[tuple[int, str]] = []
    for folder in ("rust/src", "tests", "examples", "python/keynet", "benches", "scripts"):
        for path in sorted(Path(folder).rglob("*")):
            if path.suffix not in (".rs", ".py") or "_pb2" in path.name:
                continue
            lines = path.read_text(encoding="utf-8").splitlines()
            if path.suffix == ".rs":
                lines = without_tests(lines)
            files.append((len(lines), path))
            find = rust_functions if path.suffix == ".rs" else python_functions
            functions += [(length, f"{path}:{at} {name}") for at, name, length in find(lines)]
    for length, where in sorted(functions, reverse=True):
        if length > FUNCTION_LINES:
            print(f"  {length} lines (more than {FUNCTION_LINES}): {where}")
    for length, file in sorted(files, reverse=True):
        if length > FILE_LINES:
            print(f"  {length} lines (more than {FILE_LINES}): {file}")
    lengths = sorted(length for length, _ in functions)
    if lengths:
        middle, ninth = lengths[len(lengths) // 2], lengths[len(lengths) * 9 // 10]
        total = sum(length for length, _ in files)
        print(f"sizes: {len(files)} files, {total} lines; functions: median {middle}, nine in ten up to {ninth} lines")


if __name__ == "__main__":
    main()
