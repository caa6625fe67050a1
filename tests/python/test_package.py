"""The package as a whole: what it exports, that all of it is documented, and that lists kept twice are equal."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import types

import pytest

import keynet
import keynet.errors
import keynet.grpc
import keynet.relay
import keynet.rendezvous
import keynet.sync
from keynet import _keynet

PUBLIC = [keynet, keynet.errors, keynet.sync, keynet.grpc, keynet.rendezvous, keynet.relay]


@pytest.mark.parametrize("module", PUBLIC, ids=lambda module: module.__name__)
def test_all_names_what_there_is(module: types.ModuleType) -> None:
    assert len(set(module.__all__)) == len(module.__all__)
    for name in module.__all__:
        assert hasattr(module, name), name


def test_nothing_public_is_left_out_of_all() -> None:
    modules = {info.name for info in pkgutil.iter_modules(keynet.__path__)}
    public = {name for name in vars(keynet) if not name.startswith("_")} - (modules - {"sync"})
    assert public == set(keynet.__all__) - {"__version__"}


def test_every_exception_and_event_is_at_the_top() -> None:
    assert set(keynet.errors.__all__) <= set(keynet.__all__)
    assert {event.__name__ for event in keynet.Event.__args__} <= set(keynet.__all__)


def test_importing_keynet_needs_no_grpc() -> None:
    for info in pkgutil.iter_modules(keynet.__path__):
        if info.name not in ("grpc", "rendezvous", "demo", "cli", "__main__"):
            assert "grpc" not in vars(importlib.import_module(f"keynet.{info.name}")), info.name


@pytest.mark.parametrize("module", PUBLIC, ids=lambda module: module.__name__)
def test_everything_public_is_documented(module: types.ModuleType) -> None:
    assert module.__doc__
    for name in module.__all__:
        value = getattr(module, name)
        if inspect.isclass(value):
            assert value.__doc__, name
            for member, what in vars(value).items():
                if not member.startswith("_") and (inspect.isfunction(what) or isinstance(what, property)):
                    assert what.__doc__, f"{name}.{member}"
        elif inspect.isfunction(value):
            assert value.__doc__, name


def test_the_twins_have_the_same_methods() -> None:
    def methods(cls: type) -> dict[str, inspect.Signature]:
        return {
            name: inspect.signature(method).replace(return_annotation=inspect.Signature.empty)
            for name, method in vars(cls).items()
            if not name.startswith("_") and inspect.isfunction(method)
        }

    assert methods(keynet.Proxy) == methods(keynet.sync.Proxy)


def test_limits_are_those_of_the_core() -> None:
    assert set(keynet.Limits.__annotations__) == set(_keynet.limit_names())


def test_every_limit_is_taken() -> None:
    identity = keynet.Identity.generate()
    for name in _keynet.limit_names():
        keynet.Proxy(identity, limits={name: 20})
        with pytest.raises(keynet.InvalidArgument, match=name):
            keynet.Proxy(identity, limits={name: -1})


def test_version() -> None:
    assert keynet.__version__ == _keynet.__version__
