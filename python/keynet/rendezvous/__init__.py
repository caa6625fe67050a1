"""A rendezvous: where nodes that know only each other's key find each other (needs grpcio and protobuf).

`pip install 'pykeynet[rendezvous]'` installs what it needs.

    async with keynet.rendezvous.Server(identity, listen="[::]:7348") as server:
        print(server.address)                       # "<node id>@host:port", for `Proxy(rendezvous=[...])`

A rendezvous is itself a node. What two nodes tell each other through it is sealed for them; it sees who asks for whom,
when, and from which address.
"""

from .._extras import needed_by
from ._limits import Settings

with needed_by("keynet.rendezvous", "rendezvous"):
    from ._relays import Relay
    from ._server import SERVICE_PORT, Server, serve

__all__ = ["SERVICE_PORT", "Relay", "Server", "Settings", "serve"]
