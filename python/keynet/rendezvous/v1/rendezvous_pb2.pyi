from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Cause(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CAUSE_UNSPECIFIED: _ClassVar[Cause]
    CAUSE_OFFLINE: _ClassVar[Cause]
    CAUSE_RATE_LIMITED: _ClassVar[Cause]
    CAUSE_RECEIVER_BUSY: _ClassVar[Cause]
    CAUSE_INVALID: _ClassVar[Cause]
    CAUSE_UNAVAILABLE: _ClassVar[Cause]
CAUSE_UNSPECIFIED: Cause
CAUSE_OFFLINE: Cause
CAUSE_RATE_LIMITED: Cause
CAUSE_RECEIVER_BUSY: Cause
CAUSE_INVALID: Cause
CAUSE_UNAVAILABLE: Cause

class NodeMessage(_message.Message):
    __slots__ = ("hello", "signal", "refresh", "uses")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    SIGNAL_FIELD_NUMBER: _ClassVar[int]
    REFRESH_FIELD_NUMBER: _ClassVar[int]
    USES_FIELD_NUMBER: _ClassVar[int]
    hello: Hello
    signal: Signal
    refresh: Refresh
    uses: Uses
    def __init__(self, hello: _Optional[_Union[Hello, _Mapping]] = ..., signal: _Optional[_Union[Signal, _Mapping]] = ..., refresh: _Optional[_Union[Refresh, _Mapping]] = ..., uses: _Optional[_Union[Uses, _Mapping]] = ...) -> None: ...

class RendezvousMessage(_message.Message):
    __slots__ = ("welcome", "signal", "undelivered", "relays", "going", "observed")
    WELCOME_FIELD_NUMBER: _ClassVar[int]
    SIGNAL_FIELD_NUMBER: _ClassVar[int]
    UNDELIVERED_FIELD_NUMBER: _ClassVar[int]
    RELAYS_FIELD_NUMBER: _ClassVar[int]
    GOING_FIELD_NUMBER: _ClassVar[int]
    OBSERVED_FIELD_NUMBER: _ClassVar[int]
    welcome: Welcome
    signal: Signal
    undelivered: Undelivered
    relays: Relays
    going: Going
    observed: str
    def __init__(self, welcome: _Optional[_Union[Welcome, _Mapping]] = ..., signal: _Optional[_Union[Signal, _Mapping]] = ..., undelivered: _Optional[_Union[Undelivered, _Mapping]] = ..., relays: _Optional[_Union[Relays, _Mapping]] = ..., going: _Optional[_Union[Going, _Mapping]] = ..., observed: _Optional[str] = ...) -> None: ...

class Hello(_message.Message):
    __slots__ = ("agent",)
    AGENT_FIELD_NUMBER: _ClassVar[int]
    agent: str
    def __init__(self, agent: _Optional[str] = ...) -> None: ...

class Refresh(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Uses(_message.Message):
    __slots__ = ("relays",)
    RELAYS_FIELD_NUMBER: _ClassVar[int]
    relays: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, relays: _Optional[_Iterable[str]] = ...) -> None: ...

class Welcome(_message.Message):
    __slots__ = ("observed", "refresh_seconds", "stun", "unix_milliseconds")
    OBSERVED_FIELD_NUMBER: _ClassVar[int]
    REFRESH_SECONDS_FIELD_NUMBER: _ClassVar[int]
    STUN_FIELD_NUMBER: _ClassVar[int]
    UNIX_MILLISECONDS_FIELD_NUMBER: _ClassVar[int]
    observed: str
    refresh_seconds: int
    stun: _containers.RepeatedScalarFieldContainer[str]
    unix_milliseconds: int
    def __init__(self, observed: _Optional[str] = ..., refresh_seconds: _Optional[int] = ..., stun: _Optional[_Iterable[str]] = ..., unix_milliseconds: _Optional[int] = ...) -> None: ...

class Relays(_message.Message):
    __slots__ = ("relays",)
    RELAYS_FIELD_NUMBER: _ClassVar[int]
    relays: _containers.RepeatedCompositeFieldContainer[Relay]
    def __init__(self, relays: _Optional[_Iterable[_Union[Relay, _Mapping]]] = ...) -> None: ...

class Going(_message.Message):
    __slots__ = ("spread",)
    SPREAD_FIELD_NUMBER: _ClassVar[int]
    spread: int
    def __init__(self, spread: _Optional[int] = ...) -> None: ...

class Relay(_message.Message):
    __slots__ = ("uris", "username", "password", "seconds", "weight")
    URIS_FIELD_NUMBER: _ClassVar[int]
    USERNAME_FIELD_NUMBER: _ClassVar[int]
    PASSWORD_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    uris: _containers.RepeatedScalarFieldContainer[str]
    username: str
    password: str
    seconds: int
    weight: int
    def __init__(self, uris: _Optional[_Iterable[str]] = ..., username: _Optional[str] = ..., password: _Optional[str] = ..., seconds: _Optional[int] = ..., weight: _Optional[int] = ...) -> None: ...

class Signal(_message.Message):
    __slots__ = ("node", "exchange", "body", "observed")
    NODE_FIELD_NUMBER: _ClassVar[int]
    EXCHANGE_FIELD_NUMBER: _ClassVar[int]
    BODY_FIELD_NUMBER: _ClassVar[int]
    OBSERVED_FIELD_NUMBER: _ClassVar[int]
    node: bytes
    exchange: bytes
    body: bytes
    observed: str
    def __init__(self, node: _Optional[bytes] = ..., exchange: _Optional[bytes] = ..., body: _Optional[bytes] = ..., observed: _Optional[str] = ...) -> None: ...

class Undelivered(_message.Message):
    __slots__ = ("node", "exchange", "cause", "detail")
    NODE_FIELD_NUMBER: _ClassVar[int]
    EXCHANGE_FIELD_NUMBER: _ClassVar[int]
    CAUSE_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    node: bytes
    exchange: bytes
    cause: Cause
    detail: str
    def __init__(self, node: _Optional[bytes] = ..., exchange: _Optional[bytes] = ..., cause: _Optional[_Union[Cause, str]] = ..., detail: _Optional[str] = ...) -> None: ...
