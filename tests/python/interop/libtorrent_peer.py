"""Runs libtorrent, uTP only, with the first half of a file; a program of its own: two uTPs share no process.

`libtorrent_peer.py DIRECTORY ADDRESS PIECES [HOST PORT]`: listens on ADDRESS (any port), dials HOST PORT if
given. Prints one line of JSON when it listens, one more when it has the whole file; ends when its standard
input does.
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
    "alert_mask": int(lt.alert.category_t.error_notification | lt.alert.category_t.status_notification),
    "user_agent": "interop",
}
# peer_info::utp_socket of libtorrent's C++, bit 17, which its Python lacks: the one after i2p_socket
UTP_SOCKET = lt.peer_info.i2p_socket << 1


def start(directory: Path, address: str, pieces: int) -> tuple[lt.session, lt.torrent_handle, int]:
    data = content(pieces)
    half = pieces // 2 * PIECE
    directory.mkdir(parents=True)
    (directory / "blob").write_bytes(data[:half] + bytes(len(data) - half))
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
    directory, address, pieces, *peer = sys.argv[1:]
    session, handle, port = start(Path(directory), address, int(pieces))
    print(json.dumps({"port": port, "have": handle.status().num_pieces}), flush=True)
    ended = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), ended.set()), daemon=True).start()
    if peer:
        handle.connect_peer((peer[0], int(peer[1])))
    utp: set[bool] = set()
    reported = False
    while not ended.wait(0.05):
        utp.update(bool(p.flags & UTP_SOCKET) for p in handle.get_peer_info())
        if handle.status().is_seeding and not reported:
            reported = True
            print(json.dumps({"complete": True, "utp": sorted(utp)}), flush=True)
    session.pause()
    del session


if __name__ == "__main__":
    main()
