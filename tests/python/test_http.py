"""Programs that know nothing of keynet but the address of a proxy: `http://` URLs and SOCKS5 (docs/http.md)."""

from __future__ import annotations

import contextlib
import http.server
import os
import pathlib
import shutil
import socket
import subprocess
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest

import keynet
from support import SERVICE, sync_pair

BIG = os.urandom(1 << 20)


class Page(http.server.SimpleHTTPRequestHandler):
    """Files, an echo for POST, and events that come one by one."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if self.path != "/events":
            return super().do_GET()
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for number in range(3):
            text = f"data: {number}\n\n".encode()
            self.wfile.write(b"%x\r\n%s\r\n" % (len(text), text))
            self.wfile.flush()
            # the next one comes when the client has had this one
            assert self.server.seen.acquire(timeout=60)  # type: ignore[attr-defined]
        self.wfile.write(b"0\r\n\r\n")
        return None

    def do_POST(self) -> None:
        assert self.headers["Proxy-Authorization"] is None
        assert self.headers["Host"].endswith(f".keynet:{SERVICE}")
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            body = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


class Server(http.server.ThreadingHTTPServer):
    def __init__(self, folder: pathlib.Path) -> None:
        self.folder, self.seen = folder, threading.Semaphore(0)
        super().__init__(("127.0.0.1", 0), Page)

    def finish_request(self, request: object, client_address: object) -> None:
        Page(request, client_address, self, directory=str(self.folder))  # type: ignore[arg-type]


class Site:
    """A service behind a node, and the way to it: `url` with a node's name in it, by way of the proxies."""

    def __init__(self, server: Server, near: keynet.sync.Proxy, far: keynet.sync.Proxy) -> None:
        self.folder, self.seen = server.folder, server.seen
        self.url = f"http://{far.node_id}.keynet:{SERVICE}"
        self.proxy = near.forward_url
        self.socks = self.proxy.replace("http://", "socks5h://")
        self.proxies = {"http": self.proxy}
        self.environment = {**os.environ, "http_proxy": self.proxy, "https_proxy": self.proxy}


@pytest.fixture
def site(alice: keynet.Identity, bob: keynet.Identity, tmp_path: pathlib.Path) -> Iterator[Site]:
    (tmp_path / "page.txt").write_text("a page\n")
    (tmp_path / "big").write_bytes(BIG)
    with Server(tmp_path) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with sync_pair(alice, bob, f"127.0.0.1:{server.server_address[1]}") as (near, far):
            yield Site(server, near, far)
        server.shutdown()


def test_urllib(site: Site) -> None:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler(site.proxies))
    with opener.open(f"{site.url}/page.txt", timeout=60) as answer:
        assert answer.read() == b"a page\n"
        assert answer.headers["Via"] == "1.1 keynet"
    with pytest.raises(urllib.error.HTTPError) as refused:
        opener.open("http://example.com/", timeout=60)
    refused.value.close()
    assert refused.value.code == 400
    assert "no_proxy" in refused.value.reason
    with pytest.raises(urllib.error.HTTPError) as refused:
        opener.open(site.url.replace(str(SERVICE), "1"), timeout=60)
    assert refused.value.code == 404
    assert b"service not found" in refused.value.read()
    refused.value.close()


@pytest.mark.parametrize("way", ["http", "socks5"])
def test_requests(site: Site, way: str) -> None:
    requests = pytest.importorskip("requests")
    with requests.Session() as session:
        session.proxies = {"http": site.proxy if way == "http" else site.socks}
        assert session.get(f"{site.url}/page.txt", timeout=60).text == "a page\n"
        assert session.get(f"{site.url}/big", timeout=60).content == BIG
        assert session.post(site.url, data=BIG, timeout=60).content == BIG
        assert session.post(site.url, data=iter([b"in ", b"chunks"]), timeout=60).content == b"in chunks"
        assert session.head(f"{site.url}/page.txt", timeout=60).headers["Content-Length"] == "7"
        assert session.get(f"{site.url}/nothing", timeout=60).status_code == 404


def test_a_stream_of_events_comes_one_by_one(site: Site) -> None:
    httpx = pytest.importorskip("httpx")
    with httpx.Client(proxy=site.proxy, timeout=60) as client, client.stream("GET", f"{site.url}/events") as answer:
        got = []
        for line in answer.iter_lines():
            if line:
                got.append(line)
                site.seen.release()
    assert got == ["data: 0", "data: 1", "data: 2"]


@pytest.mark.parametrize("way", ["http", "socks5"])
async def test_httpx(site: Site, way: str) -> None:
    httpx = pytest.importorskip("httpx")
    async with httpx.AsyncClient(proxy=site.proxy if way == "http" else site.socks, timeout=60) as client:
        assert (await client.get(f"{site.url}/page.txt")).text == "a page\n"
        assert (await client.post(site.url, content=BIG)).content == BIG


async def test_aiohttp(site: Site) -> None:
    aiohttp = pytest.importorskip("aiohttp")
    async with aiohttp.ClientSession() as session:
        async with session.get(f"{site.url}/page.txt", proxy=site.proxy) as answer:
            assert await answer.text() == "a page\n"
        async with session.post(site.url, proxy=site.proxy, data=BIG) as answer:
            assert await answer.read() == BIG


async def test_websockets(alice: keynet.Identity, bob: keynet.Identity) -> None:
    aiohttp = pytest.importorskip("aiohttp")
    server = pytest.importorskip("websockets.asyncio.server")

    async def echo(connection: object) -> None:
        async for message in connection:  # type: ignore[attr-defined]
            await connection.send(message)  # type: ignore[attr-defined]

    async with server.serve(echo, "127.0.0.1", 0) as serving:
        port = serving.sockets[0].getsockname()[1]
        with sync_pair(alice, bob, f"127.0.0.1:{port}") as (near, far):
            url = f"http://{far.node_id}.keynet:{SERVICE}/"
            async with (
                aiohttp.ClientSession() as session,
                session.ws_connect(url, proxy=near.forward_url) as connection,
            ):
                for message in ["hello", "x" * 100_000]:
                    await connection.send_str(message)
                    assert (await connection.receive()).data == message


def run(site: Site, *command: str) -> subprocess.CompletedProcess[bytes]:
    if shutil.which(command[0]) is None:
        pytest.skip(f"there is no {command[0]}")
    return subprocess.run(command, env=site.environment, capture_output=True, timeout=120, check=False)


def test_wget(site: Site) -> None:
    done = run(site, "wget", "-q", "-O", "-", f"{site.url}/page.txt")
    assert (done.returncode, done.stdout) == (0, b"a page\n"), done.stderr


@pytest.mark.parametrize("way", [[], ["-p"], ["--http1.0"]], ids=["url", "connect", "http1.0"])
def test_curl(site: Site, way: list[str]) -> None:
    done = run(site, "curl", "-sS", *way, f"{site.url}/page.txt", f"{site.url}/page.txt")
    assert (done.returncode, done.stdout) == (0, b"a page\n" * 2), done.stderr


def test_curl_with_socks(site: Site) -> None:
    done = run(site, "curl", "-sS", "-x", site.socks, f"{site.url}/page.txt")
    assert (done.returncode, done.stdout) == (0, b"a page\n"), done.stderr
    # an address where a name belongs, and a name that nobody has: refused, each with its code
    done = run(site, "curl", "-sS", "-x", site.socks, "http://192.0.2.1:1/")
    assert done.returncode == 97, done.stderr
    assert b"(8)" in done.stderr, done.stderr


def test_git(site: Site, tmp_path: pathlib.Path) -> None:
    if shutil.which("git") is None:
        pytest.skip("there is no git")

    def git(*arguments: str, folder: pathlib.Path) -> None:
        who = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "init.defaultBranch=main"]
        done = subprocess.run(
            ["git", *who, *arguments], cwd=folder, env=site.environment, capture_output=True, timeout=120, check=False
        )
        assert done.returncode == 0, done.stderr

    origin = tmp_path / "origin"
    origin.mkdir()
    git("init", "-q", folder=origin)
    (origin / "file").write_text("content\n")
    git("add", "file", folder=origin)
    git("commit", "-q", "-m", "first", folder=origin)
    git("clone", "-q", "--bare", str(origin), str(tmp_path / "bare.git"), folder=tmp_path)
    git("update-server-info", folder=tmp_path / "bare.git")
    git("clone", "-q", f"{site.url}/bare.git", str(tmp_path / "copy"), folder=tmp_path)
    assert (tmp_path / "copy" / "file").read_text() == "content\n"


def test_who_takes_the_port_for_a_web_server_is_told(site: Site) -> None:
    address = site.proxy.rpartition("@")[2]
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.build_opener(urllib.request.ProxyHandler({})).open(f"http://{address}/", timeout=60)
    assert refused.value.code == 400
    assert b"http_proxy" in refused.value.read()
    refused.value.close()


def test_socks_without_a_password_is_refused(site: Site) -> None:
    host, port = site.proxy.rpartition("@")[2].rsplit(":", 1)
    with contextlib.closing(socket.create_connection((host.strip("[]"), int(port)), timeout=60)) as client:
        client.sendall(b"\x05\x01\x00")
        assert client.recv(2) == b"\x05\xff"
        assert client.recv(1) == b""
