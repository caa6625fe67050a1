# protoc makes the classes at run time, with a metaclass of its own; to type checkers they are anything
from typing import Any

DESCRIPTOR: Any
HelloRequest: Any
HelloReply: Any
CountdownRequest: Any
Number: Any
SumReply: Any
