"""NAT-PMP (RFC 6886) for a box whose outside address is not public, where miniupnpd opens no port.

It opens UDP ports for as long as it runs.

python port_mapper.py OUTSIDE INSIDE
"""

from __future__ import annotations

import json
import socket
import struct
import subprocess
import sys

PORT = 5351
RULES = "table ip pmp {\n chain pre {\n  type nat hook prerouting priority dstnat\n }\n}\n"


def main(outside: str, inside: str) -> None:
    """Answers until it is ended."""
    subprocess.run(["nft", "-f", "-"], input=RULES, text=True, check=True)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind((inside, PORT))
        print(json.dumps({"event": "ready"}), flush=True)
        opened: set[tuple[str, int]] = set()
        while True:
            question, sender = server.recvfrom(1100)
            if question[:1] != b"\0":
                # RFC 6887 section 9: who asks for PCP goes back to NAT-PMP
                server.sendto(struct.pack(">BBHI", 0, 128, 1, 1), sender)
            elif question[1:2] == b"\0":
                server.sendto(struct.pack(">BBHI4s", 0, 128, 0, 1, socket.inet_aton(outside)), sender)
            elif question[1:2] == b"\1" and len(question) >= 12:
                port, wanted, life = struct.unpack(">HHI", question[4:12])
                wanted = wanted or port
                if life and (sender[0], port) not in opened:
                    opened.add((sender[0], port))
                    rule = f"iifname wan0 udp dport {wanted} dnat to {sender[0]}:{port}"
                    subprocess.run(["nft", "add", "rule", "ip", "pmp", "pre", *rule.split()], check=True)
                server.sendto(struct.pack(">BBHIHHI", 0, 129, 0, 1, port, wanted, life), sender)


if __name__ == "__main__":
    main(*sys.argv[1:])
