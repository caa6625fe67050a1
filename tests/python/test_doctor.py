"""`keynet doctor`: what it foretells, what it makes of findings, and the command itself."""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
import pathlib
import shutil
import subprocess
import sys
from typing import Any

import pytest
from lab import KINDS, seen
from pairs import Case, expected

import keynet
from keynet import _keynet
from keynet._nat import PEERS, PORT_RESTRICTED, Outlook, outlook, prospects
from keynet.cli import ExitCode
from keynet.cli._doctor import Findings, Visit, judge, words
from keynet.demo.run import Process
from keynet.errors import _from_core

NODE = keynet.NodeId("vb1" + "j6cp" * 12 + "j0")
NOW = datetime.datetime(2030, 1, 1, tzinfo=datetime.timezone.utc)
PING = keynet.PingReport("192.0.2.7:1", NODE, 0.01, 0.02, 0.03, "TLSv1.3", "suite", "group", False)


def behind(kind: str) -> keynet.NatBehaviour:
    """What a node behind a middlebox of the laboratory finds out."""
    of = seen(kind)
    ports = "uniform" if of.ports == "random" else of.ports
    return keynet.NatBehaviour("", of.mapping, of.filtering, ports, not of.udp, None, None)


@pytest.mark.parametrize("b", KINDS)
@pytest.mark.parametrize("a", KINDS)
def test_it_foretells_what_the_laboratory_expects(a: str, b: str) -> None:
    wanted = expected(Case(a, b))
    found = outlook(behind(a), behind(b))
    assert outlook(behind(b), behind(a)) is found
    if wanted.outcome is None:
        return
    how = {"plainly": Outlook.DIRECT, "by prediction": Outlook.PREDICTION, "by search": Outlook.SEARCH}
    failed = {
        "udp_blocked": Outlook.UDP_BLOCKED,
        "peer_offline": Outlook.UDP_BLOCKED,
        "both_symmetric": Outlook.BOTH_SYMMETRIC,
    }
    assert found is (how[wanted.how] if wanted.outcome == "direct" else failed[wanted.outcome])


def test_a_forwarded_port_is_as_good_as_no_nat() -> None:
    works = {one.peer: one.outlook for one in prospects(behind("symmetric"), forwarded=True)}
    assert works.pop("network that blocks UDP") is Outlook.UDP_BLOCKED
    assert set(works.values()) == {Outlook.DIRECT}


def test_what_is_not_known_is_not_foretold() -> None:
    unknown = keynet.NatBehaviour("", "unknown", "unknown", "unknown", False, None, None)
    works = {one.peer: one.outlook for one in prospects(unknown)}
    assert works["no NAT, or full-cone NAT"] is Outlook.DIRECT
    assert works[PORT_RESTRICTED] is Outlook.UNKNOWN


def discovered(**changes: Any) -> dict[str, Any]:
    return {
        "summary": "NAT unknown, mapping unknown, filtering unknown, ports unknown",
        "mapping": "unknown",
        "filtering": "unknown",
        "ports": "unknown",
        "ports_detail": None,
        "udp_blocked": False,
        "translated": None,
        "external": None,
        "nested": None,
        "servers": [],
        "gateways": [],
        "took": 0.1,
        "addresses": [{"interface": "eth0", "address": "192.168.1.2", "prefix": 24, "kind": "network"}],
        **changes,
    }


def nat(mapping: str = "endpoint-independent", ports: str = "preserved") -> dict[str, Any]:
    strict = "address-and-port-dependent"
    return discovered(
        summary=f"NAT, mapping {mapping}, filtering {strict}, ports {ports}",
        mapping=mapping,
        filtering=strict,
        ports=ports,
        translated=True,
        external="203.0.113.1",
    )


def relay(transport: str | None = "tls", *, introduction: bool = False, error: str | None = None) -> keynet.RelayStatus:
    failure = None if error is None else _from_core("relay_refused", "relay", None, None, error)
    socket = 32768 if error is None else None
    return keynet.RelayStatus("203.0.113.9", socket, transport, None, (), 0.02, introduction, 0, 0, 0, 0, failure)


def status(
    *, mapped: str | None = None, blocked: bool = False, relays: tuple[keynet.RelayStatus, ...] = ()
) -> keynet.Status:
    addresses = () if mapped is None else (keynet.Candidate("port-mapped", mapped),)
    behaviour = keynet.NatBehaviour("UDP is blocked", "unknown", "unknown", "unknown", True, None, None)
    return keynet.Status(NODE, "[::]:1", "127.0.0.1:2", addresses, behaviour if blocked else None, (), relays, ())


def visit(error: str | None = None, stage: str = "punch") -> Visit:
    failure = None if error is None else _from_core(error, stage, NODE, "192.0.2.7:1", "in words")
    ping = PING if error is None else None
    return Visit(NODE, "192.0.2.7:1", ping, failure, error is None, "203.0.113.1:9", None)


UNRESOLVED = _from_core("unreachable", "setup", None, None, "in words")
LOST, FOUND = (visit("punch_timeout"),), (visit(),)
# not by UDP, but over the relay beside it
RELAYED = (dataclasses.replace(visit("peer_offline", "rendezvous"), registered=True, observed=None),)
PROXY_SAID = "203.0.113.9:443 by tls through the HTTP proxy: the HTTP proxy 10.0.0.1:3128: 407, it wants a user"
ONE_ADDRESS = discovered(
    summary="NAT, mapping endpoint-independent or address-dependent, filtering unknown, ports preserved",
    ports="preserved",
    translated=True,
    external="203.0.113.1",
)
PUBLIC = [{"interface": "eth0", "address": "8.8.8.8", "prefix": 24, "kind": "network"}]
SYMMETRIC = "address-and-port-dependent"


@pytest.mark.parametrize(
    ("findings", "code", "said"),
    [
        (Findings(discovered(), now=NOW), ExitCode.UNDECIDED, "--stun"),
        (Findings(nat(), now=NOW), ExitCode.OK, "will be reached directly."),
        (
            Findings(nat(SYMMETRIC, "uniform"), now=NOW),
            ExitCode.OK,
            "but one behind a symmetric NAT only over a relay.",
        ),
        (
            Findings(nat(SYMMETRIC, "sequential"), now=NOW),
            ExitCode.OK,
            "symmetric NAT with random ports only over a relay.",
        ),
        (Findings(discovered(addresses=PUBLIC), now=NOW), ExitCode.OK, "an address of the internet"),
        (
            Findings(discovered(udp_blocked=True, summary="UDP is blocked"), now=NOW),
            ExitCode.UDP_BLOCKED,
            "lets no UDP through",
        ),
        (
            Findings(discovered(), LOST, status(blocked=True), True, NOW),
            ExitCode.UDP_BLOCKED,
            "UDP",
        ),
        (
            Findings(discovered(), RELAYED, status(blocked=True, relays=(relay(),)), True, NOW),
            ExitCode.OK,
            "will be reached over the relay 203.0.113.9, by tls.",
        ),
        (
            Findings(discovered(), RELAYED, status(blocked=True, relays=(relay(),)), True, NOW),
            ExitCode.OK,
            "registered over a relay",
        ),
        (
            Findings(discovered(), RELAYED, status(blocked=True, relays=(relay(introduction=True),)), True, NOW),
            ExitCode.UDP_BLOCKED,
            "leads to the rendezvous",
        ),
        (
            Findings(discovered(), LOST, status(blocked=True, relays=(relay(),)), True, NOW),
            ExitCode.UNREACHED,
            "stage punch",
        ),
        (
            Findings(discovered(), LOST, status(blocked=True, relays=(relay(error=PROXY_SAID),)), True, NOW),
            ExitCode.UDP_BLOCKED,
            "Relay 203.0.113.9: The HTTP proxy that `https_proxy` names",
        ),
        (Findings(nat(), LOST, status(), True, NOW), ExitCode.UNREACHED, "stage punch"),
        (
            Findings(nat(), (*LOST, *FOUND), status(), True, NOW),
            ExitCode.OK,
            "registered, seen there",
        ),
        # a server that does not run is not a network that blocks, and an address that differs is a NAT
        (
            Findings(discovered(udp_blocked=True), FOUND, status(), True, NOW),
            ExitCode.OK,
            "no router offers",
        ),
        # one STUN server with one address, as on one machine of docs/deploy.md
        (Findings(ONE_ADDRESS, FOUND, status(), True, NOW), ExitCode.OK, "directly, or by a search among ports."),
        (Findings(ONE_ADDRESS, FOUND, status(), True, NOW), ExitCode.OK, "a STUN server at a second IP address"),
        (Findings(ONE_ADDRESS, FOUND, status(), True, NOW), ExitCode.OK, "NAT, mapping"),
        # without netlink
        (
            Findings(discovered(addresses=[], addresses_error="not supported"), now=NOW),
            ExitCode.UNDECIDED,
            "cannot be read here (not supported)",
        ),
        (
            Findings(nat(SYMMETRIC), FOUND, status(mapped="8.8.8.8:5"), True, NOW),
            ExitCode.OK,
            "router forwards 8.8",
        ),
        (Findings(nat(), FOUND, status(mapped="100.64.0.9:5"), True, NOW), ExitCode.OK, "another NAT follows"),
        (Findings(nat(), (visit("certificate_expired", "tls"),), status(), True, NOW), ExitCode.UNREACHED, "clock"),
        (
            Findings(discovered(), now=NOW, stun_error=UNRESOLVED),
            ExitCode.UNDECIDED,
            "were not asked: ",
        ),
        (Findings(nat(), now=NOW.replace(year=1970)), ExitCode.OK, "1970-01-01"),
    ],
)
def test_the_judgement(findings: Findings, code: int, said: str) -> None:
    report = judge(findings)
    assert report.exit_code == code
    text = words(findings, report)
    assert said in text
    assert report.verdict in text
    for name in PEERS:
        assert name in text


def test_what_has_just_been_tried_is_no_advice() -> None:
    def advice(relays: tuple[Any, ...]) -> str:
        findings = Findings(discovered(), LOST, status(blocked=True, relays=relays), True, NOW)
        return " ".join(judge(findings).advice)

    assert "Use a relay over TLS on port 443" in advice(())
    failed = advice((relay(error=PROXY_SAID),))
    assert "Use a relay" not in failed
    assert "none of those that were tried was reached" in failed
    assert "relay" not in advice((relay(),)), "one is in use"


def test_nothing_is_foretold_where_nothing_is_known() -> None:
    report = judge(Findings(discovered(), now=NOW))
    assert {peer.outlook for peer in report.peers} == {Outlook.UNKNOWN}
    assert "directly" not in words(Findings(discovered(), now=NOW), report)
    # an address of the internet says little when what was asked there is silent
    unseen = (dataclasses.replace(LOST[0], observed=None),)
    silent = Findings(discovered(addresses=PUBLIC), unseen, status(), True, NOW)
    assert judge(silent).nat_by == "nothing"


@pytest.mark.parametrize("reason", ["certificate_expired", "rejected_by_peer"])
def test_a_wrong_clock_is_named_and_nothing_else(reason: str) -> None:
    detail = "the peer has not accepted the certificate: CertificateExpired" if reason == "rejected_by_peer" else ""
    error = _from_core(reason, "tls", NODE, "192.0.2.7:1", detail)
    lost = dataclasses.replace(visit("punch_timeout"), error=error)
    report = judge(Findings(nat(SYMMETRIC), (lost,), status(relays=(relay(error="x"),)), True, NOW))
    assert report.clock_is_wrong
    assert report.exit_code == ExitCode.UNREACHED
    assert len(report.advice) == 1
    assert "clock" in report.advice[0]
    assert "clock is wrong" in report.verdict


@pytest.mark.parametrize("days", [-2, 2])
def test_a_clock_that_is_days_off_is_named_where_nothing_fails_by_it(days: int) -> None:
    """An identity and a rendezvous that are older than that know no wrong dates."""
    told = dataclasses.replace(visit(), clock_ahead=-days * 86_400.0)
    silent = dataclasses.replace(visit(), clock_ahead=None)
    for visits in ((told,), (told, silent), (silent, told)):
        report = judge(Findings(nat(), visits, status(), True, NOW))
        assert report.clock_is_wrong
        assert f"{NOW - datetime.timedelta(days=days):%Y-%m-%d %H:%M}" in report.verdict
        assert len(report.advice) == 1
    # one of them has a wrong clock itself, or it is a matter of minutes
    right, nearly = (dataclasses.replace(told, clock_ahead=seconds) for seconds in (0.2, 90.0))
    for others in ((told, right), (nearly,)):
        assert not judge(Findings(nat(), others, status(), True, NOW)).clock_is_wrong
    # a lie is no traceback
    for lie in (1e300, -1e300):
        assert judge(Findings(nat(), (dataclasses.replace(told, clock_ahead=lie),), status(), True, NOW)).clock_is_wrong


# whose clock is days off: what the C library says of the time of day
CLOCK = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <sys/time.h>
#include <time.h>
static long off(void) { return atol(getenv("DAYS_OFF")) * 86400; }
int clock_gettime(clockid_t which, struct timespec *now) {
  int (*real)(clockid_t, struct timespec *) = dlsym(RTLD_NEXT, "clock_gettime");
  int done = real(which, now);
  if (which == CLOCK_REALTIME) now->tv_sec += off();
  return done;
}
time_t time(time_t *at) {
  struct timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  if (at) *at = now.tv_sec;
  return now.tv_sec;
}
int gettimeofday(struct timeval *at, void *zone) {
  struct timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  at->tv_sec = now.tv_sec, at->tv_usec = now.tv_nsec / 1000;
  return 0;
}
"""


@pytest.mark.skipif(shutil.which("cc") is None, reason="wants a C compiler")
@pytest.mark.parametrize("days", ["-2", "2"])
@pytest.mark.parametrize("age", [0, 30], ids=["certificates of today", "old certificates"])
def test_a_machine_whose_clock_is_days_off(days: str, age: int, tmp_path: pathlib.Path) -> None:
    source, library = tmp_path / "clock.c", tmp_path / "clock.so"
    source.write_text(CLOCK)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    born = datetime.datetime.now(datetime.timezone.utc) - datetime.timedelta(days=age)
    for name in ("rendezvous.pem", "node.pem"):
        keynet.Identity.generate(now=born).save(tmp_path / name)
    flags = ["--identity", str(tmp_path / "rendezvous.pem"), "--listen", "127.0.0.1:0"]
    with Process("keynet", "rendezvous", *flags, "--json") as server:
        where = server.expect("ready")["rendezvous"]
        asked = ["--rendezvous", where, "--timeout", "3"]
        own = ["--identity", str(tmp_path / "node.pem")] if age else []
        done = command(*asked, *own, "--json", LD_PRELOAD=str(library), DAYS_OFF=days)
    found = json.loads(done.stdout)["doctor"]
    assert found["clock_is_wrong"], done
    assert "clock is wrong" in found["verdict"]
    assert len(found["advice"]) == 1
    assert "clock" in found["advice"][0]


def test_a_closed_port_of_a_rendezvous_is_told_as_such() -> None:
    told = _from_core("rendezvous_unreachable", "rendezvous", NODE, None, "UDP port 1 of h is closed")
    findings = Findings(nat(), (dataclasses.replace(LOST[0], registration_error=told),), status(), True, NOW)
    text = words(findings, judge(findings))
    assert "UDP port 1 of h is closed" in text
    assert "check its address and port" in text
    assert "keynet doctor" not in text


def test_ipv6_of_the_internet() -> None:
    def with_address(address: str, kind: str = "network") -> tuple[str, ...]:
        row = {"interface": "eth0", "address": address, "prefix": 64, "kind": kind}
        return judge(Findings(discovered(addresses=[row]), now=NOW)).global_ipv6

    assert with_address("2606:4700::1") == ("2606:4700::1",)
    assert with_address("fd00::2") == with_address("fe80::1") == with_address("2606:4700::1", "virtual") == ()


# -- the command -----------------------------------------------------------------------------------------------------


def command(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    quiet = {name: value for name, value in os.environ.items() if name != "KEYNET_RENDEZVOUS"}
    return subprocess.run(
        [sys.executable, "-m", "keynet", "doctor", "--no-port-mapping", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        stdin=subprocess.DEVNULL,
        env={**quiet, **environment},
    )


def test_stun_servers_tell() -> None:
    server = _keynet.StunServer.bind(["127.0.0.1:0", "127.0.0.1:0"], None)
    try:
        flags = [flag for address in server.addresses() for flag in ("--stun", address)]
        done = command(*flags, "--json")
        assert (done.returncode, done.stderr) == (0, "")
        (said,) = [json.loads(line)["doctor"] for line in done.stdout.splitlines()]
        assert (said["nat"]["mapping"], said["nat_by"], said["exit_code"]) == ("endpoint-independent", "stun", 0)
        assert {one["peer"]: one["outlook"] for one in said["peers"]}[PORT_RESTRICTED] == "direct"
        human = command(*flags)
        assert human.returncode == 0
        assert "peers will be reached" in human.stdout
        # what it is doing is no result
        assert "asking" in human.stderr
        assert "asking" not in human.stdout
    finally:
        server.close(None)


def test_nobody_to_ask() -> None:
    done = command()
    assert done.returncode in (ExitCode.UNDECIDED, ExitCode.OK)  # this machine may have an address of the internet
    assert "rendezvous    none named" in done.stdout


@pytest.mark.parametrize(
    "arguments",
    [["--rendezvous", "nobody"], ["--rendezvous", f"{NODE}@host"], ["--rendezvous", "x@host:1"], ["--stun", "host"]],
    ids=" ".join,
)
def test_wrong_usage(arguments: list[str]) -> None:
    done = command(*arguments)
    assert (done.returncode, done.stdout) == (ExitCode.USAGE, "")
    assert "Traceback" not in done.stderr
    if arguments[0] == "--rendezvous":
        again = command(KEYNET_RENDEZVOUS=arguments[1])
        assert (again.returncode, again.stdout) == (ExitCode.USAGE, "")
