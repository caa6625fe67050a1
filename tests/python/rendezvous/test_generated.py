"""The generated code is what the generator makes of the .proto files."""

from __future__ import annotations

import importlib.metadata
import pathlib
import re

import grpc_tools
import pytest
from grpc_tools import protoc

import keynet

PACKAGE = pathlib.Path(keynet.__file__).parent
PROTOS = ["demo/greeter.proto", "rendezvous/v1/rendezvous.proto"]


@pytest.mark.parametrize("proto", PROTOS)
def test_generated_code_is_up_to_date(proto: str, tmp_path: pathlib.Path) -> None:
    stem = PACKAGE / proto.removesuffix(".proto")
    made_by = re.search(r"GRPC_GENERATED_VERSION = '(.+)'", stem.with_name(f"{stem.name}_pb2_grpc.py").read_text())
    assert made_by is not None
    here = importlib.metadata.version("grpcio-tools")
    if here != made_by[1]:
        pytest.skip(f"grpcio-tools {here} is here, and {made_by[1]} made the committed code (`make proto`)")
    out = f"={tmp_path}"
    common = str(pathlib.Path(grpc_tools.__file__).parent / "_proto")
    flags = [f"-I{PACKAGE.parent}", f"-I{common}", f"--python_out{out}", f"--pyi_out{out}", f"--grpc_python_out{out}"]
    assert protoc.main(["protoc", *flags, f"keynet/{proto}"]) == 0
    made = sorted(path.relative_to(tmp_path / "keynet") for path in tmp_path.rglob("*.py*"))
    assert len(made) == 3
    for path in made:
        assert (tmp_path / "keynet" / path).read_text() == (PACKAGE / path).read_text(), f"{path}: run `make proto`"


def test_every_proto_is_in_the_test() -> None:
    assert sorted(str(path.relative_to(PACKAGE)) for path in PACKAGE.rglob("*.proto")) == PROTOS
