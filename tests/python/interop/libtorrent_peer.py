"""Runs libtorrent, uTP only, with the first pieces of a file; a program of its own: two uTPs share no process.

`libtorrent_peer.py DIRECTORY ADDRESS SIZE HAVE [HOST PORT]`: listens on ADDRESS (any port), has HAVE pieces, dials
HOST PORT if given. Prints a line of JSON when it listens, when a peer is there and the file is whole, and when
the peer has gone; ends when its standard input does.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from pathlib import Path

import libtorrent as lt
from bittorrent import PIECE, content, metainfo

SETTINGS = {
    "enable_outgoing_tcp": False,
    "enable_incoming_tcp": False,
    "enable_outgoing_utp": True,
    "enable_incoming_utp": True,
    "enable_dht": False,
    "enable_lsd": False,
    "enable_upnp": False,
    "enable_natpmp": False,
    "out_enc_policy": int(lt.enc_policy.disabled),
    "in_enc_policy": int(lt.enc_policy.disabled),
    "allow_multiple_connections_per_ip": True,
    # by default a seed ends a connection to another: then it would be a race who is first
    "close_redundant_connections": False,
    # a piece that waits for lost packets is on its way all the same
    "request_timeout": 120,
    # by default a packet that is lost three times ends the connection, without a word to us: at 5 % one in 8,000 is
    "utp_num_resends": 12,
    "utp_syn_resends": 8,
    "utp_fin_resends": 8,
    "alert_mask": int(
        lt.alert.category_t.error_notification
        | lt.alert.category_t.status_notification
        | lt.alert.category_t.connect_notification
    ),
    "user_agent": "interop",
}
# peer_info::utp_socket of libtorrent's C++, bit 17, which its Python lacks: the one after i2p_socket
UTP_SOCKET = lt.peer_info.i2p_socket << 1


def start(directory: Path, address: str, size: int, have: int) -> tuple[lt.session, lt.torrent_handle, int]:
    data = content(size)
    directory.mkdir(parents=True)
    (directory / "blob").write_bytes(data[: have * PIECE].ljust(size, b"\0"))
    host = f"[{address}]" if ":" in address else address
    session = lt.session({**SETTINGS, "listen_interfaces": f"{host}:0"})
    parameters = lt.load_torrent_buffer(metainfo(data)[0])
    parameters.save_path = str(directory)
    parameters.flags &= ~(lt.torrent_flags.auto_managed | lt.torrent_flags.paused)
    handle = session.add_torrent(parameters)
    deadline = time.monotonic() + 20
    port = 0
    while time.monotonic() < deadline:
        for alert in session.pop_alerts():
            if isinstance(alert, lt.listen_succeeded_alert) and "[uTP]" in alert.message():
                port = alert.port
        status = handle.status()
        if port and status.state not in (status.checking_files, status.checking_resume_data):
            return session, handle, port
        time.sleep(0.02)
    raise TimeoutError("libtorrent does not listen")


def main() -> None:
    directory, address, size, have, *peer = sys.argv[1:]
    session, handle, port = start(Path(directory), address, int(size), int(have))
    say(port=port, have=handle.status().num_pieces)
    ended = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), ended.set()), daemon=True).start()
    if peer:
        handle.connect_peer((peer[0], int(peer[1])))
    utp: set[bool] = set()
    reported = False
    while not ended.wait(0.02):
        utp.update(bool(p.flags & UTP_SOCKET) for p in handle.get_peer_info())
        if handle.status().is_seeding and utp and not reported:
            reported = True
            say(complete=True, utp=sorted(utp))
        for alert in session.pop_alerts():
            if isinstance(alert, lt.peer_disconnected_alert) and reported:
                say(ended=alert.error.message())
    session.pause()
    del session


def say(**facts: object) -> None:
    print(json.dumps(facts), flush=True)


if __name__ == "__main__":
    main()
