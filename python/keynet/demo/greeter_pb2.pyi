from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Optional as _Optional

DESCRIPTOR: _descriptor.FileDescriptor

class HelloRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class HelloReply(_message.Message):
    __slots__ = ("message", "caller")
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    CALLER_FIELD_NUMBER: _ClassVar[int]
    message: str
    caller: str
    def __init__(self, message: _Optional[str] = ..., caller: _Optional[str] = ...) -> None: ...

class CountdownRequest(_message.Message):
    __slots__ = ("count", "payload_size")
    COUNT_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_SIZE_FIELD_NUMBER: _ClassVar[int]
    count: int
    payload_size: int
    def __init__(self, count: _Optional[int] = ..., payload_size: _Optional[int] = ...) -> None: ...

class Number(_message.Message):
    __slots__ = ("value", "payload")
    VALUE_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    value: int
    payload: bytes
    def __init__(self, value: _Optional[int] = ..., payload: _Optional[bytes] = ...) -> None: ...

class SumReply(_message.Message):
    __slots__ = ("sum", "bytes")
    SUM_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    sum: int
    bytes: int
    def __init__(self, sum: _Optional[int] = ..., bytes: _Optional[int] = ...) -> None: ...
