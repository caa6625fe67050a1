"""Explanations in words: what they say in each case, and that JSON carries them."""

from __future__ import annotations

import datetime
import json
from typing import Any

import pytest

import keynet
from keynet import _explain
from keynet._plain import plain
from keynet._status import _explanation, _status
from keynet.errors import _from_core

NODE = "vb1" + "j6cp" * 12 + "j0"
"""The base point of Ed25519: a key like any other."""
STRICT = "NAT, mapping endpoint-independent, filtering address-and-port-dependent, ports preserved"
SYMMETRIC = "NAT, mapping address-and-port-dependent, filtering address-and-port-dependent, ports uniform"


def path(address: str, **changes: Any) -> dict[str, Any]:
    base = {"address": address, "in_use": False, "proven": True, "rtt": 0.02, "heard": 1.0, "local": False, "socket": 0}
    return {**base, "relayed": False, **changes}


def meeting(**changes: Any) -> dict[str, Any]:
    return {
        "when": 1_700_000_000.0,
        "role": "dialler",
        "took": 5.0,
        "outcome": "failed",
        "relayed": False,
        "direct_only": False,
        "outlook": "direct",
        "own_nat": STRICT,
        "peer_nat": STRICT,
        "own_candidates": [{"kind": "server-reflexive", "address": "203.0.113.1:5000"}],
        "peer_candidates": [{"kind": "server-reflexive", "address": "203.0.113.2:6000"}],
        "tried": ["203.0.113.2:6000"],
        "answered": [],
        "heard": [],
        "pings": 12,
        "error": failure("punch_timeout"),
        **changes,
    }


def failure(reason: str, stage: str = "punch", detail: str = "in words") -> keynet.KeynetError:
    return _from_core(reason, stage, NODE, None, detail)


def explained(**changes: Any) -> keynet.PathExplanation:
    raw = {"node_id": NODE, "known_addresses": [], "paths": [], "connected": False, "meeting": None, "last_error": None}
    return _explanation({**raw, **changes})


USED = path("203.0.113.2:6000", in_use=True)
ANOTHER = path("203.0.113.3:6000", rtt=0.2)


@pytest.mark.parametrize(
    ("paths", "why"),
    [
        ([USED], "the only one that answered"),
        ([USED, path("203.0.113.3:6000", proven=False)], "the only one that answered"),
        (
            [path("192.168.1.2:1", in_use=True, local=True)],
            "the only one that answered, and it stays in the local network",
        ),
        ([path("192.168.1.2:1", in_use=True, local=True, rtt=0.5), ANOTHER], "it stays in the local network"),
        ([USED, ANOTHER], "of the 2 that answered it has the shortest round trip"),
        ([{**USED, "rtt": 0.3}, ANOTHER], "another is quicker just now"),
        ([{**USED, "rtt": None}, ANOTHER], "their round trips are not known yet"),
        ([{**USED, "proven": False}], "has not proved to be the node yet"),
        ([USED, {**ANOTHER, "relayed": True}], "it is direct, and the others go over relays"),
    ],
)
def test_why_this_path(paths: list[dict[str, Any]], why: str) -> None:
    text = explained(paths=paths, connected=True).text
    (line,) = [line for line in text.splitlines() if line.startswith("Why this path: ")]
    assert why in line
    assert f"is reached at {paths[0]['address']}" in text.splitlines()[0]
    assert text.count("another: ") == len(paths) - 1
    assert "What to do" not in text


@pytest.mark.parametrize(
    ("changes", "advice"),
    [
        ({"last_error": failure("peer_offline", "rendezvous")}, "keynet status"),
        ({"last_error": failure("rendezvous_unreachable", "rendezvous")}, "keynet doctor --rendezvous"),
        ({"last_error": failure("rendezvous_busy", "rendezvous")}, "second rendezvous"),
        ({"last_error": failure("udp_blocked")}, "firewall"),
        (
            {"meeting": meeting(error=failure("both_symmetric"), outlook="both_symmetric")},
            "Give one of the nodes a relay",
        ),
        ({"last_error": failure("relay_unreachable", "relay")}, "TCP or TLS"),
        ({"last_error": failure("relay_refused", "relay")}, "password of the relay"),
        (
            {
                "last_error": failure(
                    "udp_blocked", detail="no relay was reached: the HTTP proxy proxy:8080: 407, it wants"
                )
            },
            "password that it wants into `https_proxy`",
        ),
        (
            {
                "last_error": failure(
                    "udp_blocked", detail="no relay was reached: the HTTP proxy proxy:8080: 502 Bad Gateway"
                )
            },
            "Use a relay over TLS",
        ),
        ({"meeting": meeting(heard=["203.0.113.2:6000"])}, "Let UDP pass there"),
        ({"meeting": meeting(outlook="search")}, "Dial again, as a search finds"),
        ({"meeting": meeting(outlook="prediction")}, "Dial again: others may use the same NAT"),
        ({"meeting": meeting(peer_candidates=[{"kind": "server-reflexive", "address": "203.0.113.1:7"}])}, "lan=True"),
        ({"meeting": meeting()}, "keynet doctor"),
        ({"meeting": meeting(own_nat="UDP is blocked")}, "this network's firewall"),
        ({"meeting": meeting(peer_nat="UDP is blocked")}, "Whoever runs the other node"),
        ({"last_error": failure("access_denied", "open")}, keynet.Reason.ACCESS_DENIED.advice[1:]),
        ({}, "Give both nodes the same rendezvous"),
    ],
)
def test_what_to_do(changes: dict[str, Any], advice: str) -> None:
    explanation = explained(**changes)
    (line,) = [line for line in explanation.text.splitlines() if line.startswith("What to do: ")]
    assert advice in line
    assert (explanation.cause is None) == (not changes)


def test_every_reason_has_words() -> None:
    for reason in keynet.Reason:
        text = explained(last_error=failure(reason)).text
        assert reason.replace("_", " ") in text
        assert text.splitlines()[-1].startswith("What to do: ")
        assert text.endswith(".")


def test_a_relayed_path_is_told_as_one() -> None:
    relayed = path("203.0.113.99:49152", in_use=True, relayed=True)
    explanation = explained(paths=[relayed], connected=True, meeting=meeting(relayed=True, outcome="met", error=None))
    first, why, *rest = explanation.text.splitlines()
    assert not any("since" in line for line in rest), "nothing is known of when"
    assert "is reached over a relay, at 203.0.113.99:49152" in first
    assert "a relay carries everything" in why
    assert any("over a relay, when they met" in line for line in rest)
    refused = explained(meeting=meeting(direct_only=True, error=failure("both_symmetric")))
    assert "direct_only" in refused.text


@pytest.mark.parametrize(
    ("socket", "transport", "own_nat", "said"),
    [
        (0, "udp", STRICT, "the other node's, at 203.0.113.99."),
        (32768, "udp", STRICT, "this node's, relay.example.org, by udp (round trip 30.0 ms)."),
        (32768, "tls", STRICT, "this node's, relay.example.org, by tls (round trip 30.0 ms)."),
        (32768, "tls", "UDP is blocked", "by tls (round trip 30.0 ms), as no UDP passes here."),
    ],
)
def test_which_relay_it_is(socket: int, transport: str, own_nat: str, said: str) -> None:
    own = {"relay": "relay.example.org", "socket": 32768, "transport": transport, "proxy": None}
    numbers = {"bytes_in": 0, "bytes_out": 0, "dropped": 0, "peers": 1, "rtt": 0.03}
    explanation = explained(
        paths=[path("203.0.113.99:49152", in_use=True, relayed=True, socket=socket)],
        connected=True,
        meeting=meeting(relayed=True, outcome="met", error=None, own_nat=own_nat),
        relays=[{**own, **numbers, "addresses": ["203.0.113.9:5"], "introduction": False, "error": None}],
    )
    (line,) = [line for line in explanation.text.splitlines() if line.startswith("Which relay: ")]
    assert line.endswith(said)
    assert (explanation.relay is None) == (socket == 0)
    assert _explanation(json.loads(json.dumps(explanation, default=plain))).text == explanation.text
    assert "Which relay" not in explained(paths=[USED], connected=True).text


def test_a_connected_node_has_no_cause() -> None:
    explanation = explained(paths=[USED], connected=True, meeting=meeting(outcome="met", error=None, answered=[]))
    assert explanation.cause is None
    assert "they met after 5.0 s" in str(explanation)


def test_a_meeting_is_told_from_both_sides() -> None:
    answer = {"address": "203.0.113.2:6000", "rtt": 0.03}
    text = explained(meeting=meeting(heard=["203.0.113.9:1"], answered=[answer])).text
    for part in (
        "this node asked for it",
        "203.0.113.1:5000 (server-reflexive)",
        "203.0.113.2:6000 (server-reflexive)",
    ):
        assert part in text
    for part in ("with 12 pings", "answered:   203.0.113.2:6000 (round trip 30.0 ms)", "heard from: 203.0.113.9:1"):
        assert part in text
    assert "the other node asked for it" in explained(meeting=meeting(role="invited")).text
    assert "it goes on" in explained(meeting=meeting(outcome="running", took=None, error=None)).text
    silent = meeting(peer_nat=None, peer_candidates=[], outlook=None, tried=[])
    assert "said nothing of itself" in explained(meeting=silent).text


def test_a_long_list_is_cut() -> None:
    many = [f"203.0.113.2:{port}" for port in range(1, 1001)]
    text = explained(meeting=meeting(tried=many)).text
    assert "and 992 more" in text
    assert len(text) < 3000


@pytest.mark.parametrize(
    ("summary", "said"),
    [
        ("UDP is blocked", "blocked"),
        ("no NAT, mapping endpoint-independent, filtering endpoint-independent, ports preserved", "no firewall"),
        (
            "no NAT, mapping endpoint-independent, filtering address-and-port-dependent, ports preserved",
            "a firewall that",
        ),
        ("no NAT, mapping endpoint-independent, filtering unknown, ports preserved", "no NAT"),
        (STRICT, "one port to everybody, that lets in only"),
        (SYMMETRIC, "symmetric NAT: it shows each destination another port at random"),
        (SYMMETRIC.replace("uniform", "sequential (+1 from 5002)"), "can be guessed"),
        (SYMMETRIC.replace("uniform", "block (1024 to 2047)"), "known range"),
        ("NAT, mapping unknown, filtering unknown, ports unknown", "what its NAT does is not known"),
        ("NAT unknown, mapping unknown, filtering unknown, ports unknown", "whether there is a NAT"),
        ("something of a later version", "something of a later version"),
    ],
)
def test_a_nat_in_words(summary: str, said: str) -> None:
    assert said in _explain.nat(summary)


def test_an_explanation_survives_json() -> None:
    explanation = explained(paths=[USED, ANOTHER], meeting=meeting(), last_error=failure("peer_offline"))
    again = _explanation(json.loads(json.dumps(explanation, default=plain)))
    assert again.text == explanation.text
    assert isinstance(again.last_error, keynet.PeerOffline)
    assert again.meeting is not None
    assert explanation.meeting is not None
    assert again.meeting.when == explanation.meeting.when


def test_what_a_later_version_adds_is_left_out() -> None:
    raw = {
        "node_id": NODE,
        "proxy_address": "[::]:1",
        "forward_address": "127.0.0.1:2",
        "addresses": [{"kind": "host", "address": "192.0.2.1:1", "cost": 5}],
        "nat": None,
        "rendezvous": [],
        "relays": [],
        "peers": [],
        "weather": "fine",
    }
    assert _status(raw).addresses == (keynet.Candidate("host", "192.0.2.1:1"),)


HOST = {"kind": "host", "address": "192.168.1.2:5000"}
HOST_THERE = {"kind": "host", "address": "10.73.2.2:5000"}
NO_NAT = "no NAT, mapping endpoint-independent, filtering unknown, ports preserved"
OUTSIDE = {"kind": "server-reflexive", "address": "203.0.113.1:5000"}
OTHER = {"kind": "server-reflexive", "address": "203.0.113.2:6000"}
OTHER_V6 = {"kind": "host", "address": "[2001:db8::2]:6000"}


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({"own_candidates": [HOST]}, "did not know its own public address"),
        (
            {"own_candidates": [HOST], "peer_candidates": [HOST_THERE], "own_nat": NO_NAT, "peer_nat": NO_NAT},
            "both are in private networks, this node at 192.168.1.2, the other at 10.73.2.2, without a NAT",
        ),
        ({"own_candidates": [HOST], "own_nat": NO_NAT}, "the other has a public one"),
        ({"peer_candidates": [HOST_THERE], "peer_nat": NO_NAT}, "the other node is in a private network, at 10.73.2.2"),
        ({"peer_candidates": [HOST]}, "the other node told no public address"),
        ({"own_nat": "UDP is blocked"}, "no UDP comes back in this node's network"),
        ({"peer_nat": "UDP is blocked"}, "the other node says that no UDP comes back"),
        ({"peer_candidates": [OTHER_V6]}, "IPv4 only, the other of IPv6 only"),
        ({"peer_candidates": [OUTSIDE]}, "both are behind the same NAT (203.0.113.1)"),
        ({"outlook": "search"}, "it may not have taken part"),
        (
            {"outlook": "search", "heard": ["203.0.113.2:1"], "answered": [{"address": "x:1", "rtt": 0.1}]},
            "a search among",
        ),
        ({"outlook": "prediction"}, "was guessed wrong"),
        ({"heard": ["203.0.113.2:6000"]}, "nothing that this node sends is answered"),
        ({}, "nothing in what both told of their NATs keeps them apart"),
    ],
)
def test_a_cause_is_named_only_where_the_facts_give_one(changes: dict[str, Any], cause: str) -> None:
    text = explained(meeting=meeting(**changes)).text
    (why,) = [line for line in text.splitlines() if line.startswith("Why: ")]
    assert cause in why
    assert "should have met" not in text
    outlook = next(line for line in text.splitlines() if line.startswith("  outlook:"))
    hopeless = (
        "own_nat" in changes or "peer_nat" in changes or "own_candidates" in changes or "peer_candidates" in changes
    )
    assert ("nothing goes directly" in outlook) == hopeless
    assert ("the addresses that they told each other should do" in outlook) == (
        not hopeless and "outlook" not in changes
    )


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({"own_nat": "UDP is blocked"}, "no UDP comes back in this node's network"),
        ({"outlook": "both_symmetric"}, "both NATs show each destination another port"),
        ({"own_candidates": [OUTSIDE], "peer_candidates": [OTHER_V6]}, "IPv4 only, the other of IPv6 only"),
        ({"outlook": "search"}, "did not find the right one"),
    ],
)
def test_a_relayed_pair_has_a_cause_and_an_advice(changes: dict[str, Any], cause: str) -> None:
    relayed = path("203.0.113.99:49152", in_use=True, relayed=True)
    met = meeting(relayed=True, outcome="met", error=None, **changes)
    lines = explained(paths=[relayed], connected=True, meeting=met).text.splitlines()
    (why,) = [line for line in lines if line.startswith("Why not directly: ")]
    assert cause in why
    assert sum(line.startswith("What to do for a direct path: ") for line in lines) == 1
    unknown = explained(paths=[relayed], connected=True).text
    assert "no meeting with the other node is on record" in unknown


def test_a_search_that_found_the_path_is_credited() -> None:
    used = path("203.0.113.2:7777", in_use=True)
    met = meeting(outcome="met", outlook="search", error=None, pings=812)
    assert (
        "; a search among the ports of the symmetric NAT found it, with 812 pings"
        in explained(paths=[used], connected=True, meeting=met).text
    )
    told = path("203.0.113.2:6000", in_use=True)
    assert "found it" not in explained(paths=[told], connected=True, meeting=met).text


def rendezvous(**changes: Any) -> dict[str, Any]:
    base = {"node_id": NODE, "address": "198.51.100.9:7348", "connected": True, "observed": None, "rtt": None}
    return {**base, "error": None, **changes}


def test_offline_is_said_with_the_rendezvous_that_were_not_asked() -> None:
    offline = failure("peer_offline", "rendezvous")
    away = rendezvous(connected=False, error=failure("rendezvous_unreachable", "rendezvous", "no answer"))
    text = explained(last_error=offline, rendezvous=[rendezvous(address="198.51.100.8:1"), away]).text
    assert "It may be registered where this node is not connected now" in text
    assert f"Rendezvous {NODE}@198.51.100.9:7348: not connected; rendezvous unreachable: no answer" in text
    assert "not connected now" not in explained(last_error=offline, rendezvous=[rendezvous()]).text


# -- facts with their age ---------------------------------------------------------------------------------------------

NOW = datetime.datetime(2026, 11, 30, 12, 7, 10).astimezone()


def at(clock: str) -> float:
    """A moment of that day as the core gives it."""
    return datetime.datetime.combine(NOW.date(), datetime.time.fromisoformat(clock)).astimezone().timestamp()


def own(**changes: Any) -> dict[str, Any]:
    base = {"family": "IPv4", "known": True, "since": at("12:03:10"), "addresses": ["203.0.113.1:5000"]}
    return {**base, "confirmed": at("12:07:01"), "asked": at("12:07:01"), "servers": 3, "answers": 3, **changes}


def facts(**changes: Any) -> list[str]:
    """The lines of an explanation at `NOW`, behind the first; as JSON they are the same."""
    explanation = explained(when=NOW.timestamp(), **changes)
    assert _explanation(json.loads(json.dumps(explanation, default=plain))).text == explanation.text
    return explanation.text.splitlines()[1:]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "203.0.113.1:5000, known since 12:03:10 (4 min), last confirmed at 12:07:01 (9 s ago)."),
        (
            {"known": False, "answers": 0, "addresses": [], "confirmed": None},
            "unknown since 12:03:10 (4 min), asked 3 servers at 12:07:01 (9 s ago), no answer.",
        ),
        (
            {"known": False, "servers": 1, "answers": 0, "confirmed": at("12:02:10")},
            "unknown since 12:03:10 (4 min), asked 1 server at 12:07:01 (9 s ago), no answer; it was 203.0.113.1:5000, "
            "last confirmed at 12:02:10 (5 min ago).",
        ),
        (
            {"known": False, "servers": 0, "answers": 0, "addresses": [], "confirmed": None},
            "unknown since 12:03:10 (4 min), no server could be asked.",
        ),
        (
            {"known": False, "asked": None, "servers": 0, "answers": 0, "addresses": [], "confirmed": None},
            "unknown since 12:03:10 (4 min), no server was asked yet.",
        ),
    ],
)
def test_the_own_address_is_told_with_its_age(changes: dict[str, Any], said: str) -> None:
    (line,) = facts(own_addresses=[own(**changes)], last_error=failure("unreachable"))[:1]
    assert line == f"Own public address by IPv4: {said}"


def test_what_happened_on_another_day_has_a_date() -> None:
    text = "\n".join(facts(own_addresses=[own(since=at("12:03:10") - 3 * 86_400)]))
    day = (NOW - datetime.timedelta(days=3)).date().isoformat()
    assert f"known since {day} 12:03:10 (3 d)" in text


def test_the_nat_the_rendezvous_and_the_relay_are_told_with_their_age() -> None:
    nat = {"summary": STRICT, "mapping": "endpoint-independent", "filtering": "address-dependent", "ports": "preserved"}
    nat = {**nat, "udp_blocked": False, "translated": True, "external": None, "learned": at("12:02:10")}
    lost = failure("rendezvous_unreachable", "rendezvous", "no answer")
    relay = {"relay": "relay.example.org", "socket": 32768, "transport": "tls", "proxy": None, "rtt": None}
    relay |= {"bytes_in": 0, "bytes_out": 0, "dropped": 0, "peers": 1, "introduction": False, "error": None}
    unused = {"socket": None, "addresses": [], "error": failure("relay_unreachable", "relay", "no answer")}
    lines = facts(
        nat={**nat, "elsewhere": True},
        rendezvous=[
            rendezvous(since=at("12:03:10")),
            rendezvous(connected=False, error=lost, lost=at("12:05:10"), next_try=at("12:07:12")),
        ],
        relays=[
            {**relay, "addresses": ["203.0.113.9:5"], "since": at("12:03:10")},
            {**relay, **unused, "failed": at("12:06:10"), "next_try": at("12:07:30")},
        ],
    )
    where = f"Rendezvous {NODE}@198.51.100.9:7348"
    assert lines[:5] == [
        "This node's NAT: a NAT that shows one port to everybody, that lets in only the very address and port it has "
        "sent to; found out at 12:02:10 (5 min ago), in the network before this one.",
        f"{where}: registered since 12:03:10 (4 min).",
        f"{where}: not connected, lost at 12:05:10 (2 min ago); rendezvous unreachable: no answer (stage rendezvous); "
        "tried again in 2 s.",
        "Relay relay.example.org: in use since 12:03:10 (4 min), by tls, 203.0.113.9:5.",
        "Relay relay.example.org: not in use, failed at 12:06:10 (60 s ago); relay unreachable: no answer (stage "
        "relay); tried again in 20 s.",
    ]


def test_the_path_the_peer_and_the_last_dial_are_told_with_their_age() -> None:
    used = {**USED, "chosen": at("12:03:10")}
    lines = facts(paths=[used], connected=True, heard=at("12:07:09"), last_dial={"when": at("12:03:10"), "error": None})
    assert lines[:3] == [
        "Path in use: 203.0.113.2:6000, since 12:03:10 (4 min).",
        "Last sign of life of the other node: at 12:07:09 (1 s ago).",
        "Last dial: at 12:03:10 (4 min ago); it worked.",
    ]
    error = failure("punch_timeout")
    lines = facts(last_error=error, last_dial={"when": at("12:03:10"), "error": error})
    assert lines[0] == "Last dial: at 12:03:10 (4 min ago); punch timeout: in words (stage punch)."


def test_facts_come_first_then_the_cause_then_what_to_do() -> None:
    unknown = own(known=False, answers=0, addresses=[], confirmed=None)
    lines = facts(own_addresses=[unknown], last_error=failure("punch_timeout"))
    heads = [line.partition(":")[0] for line in lines]
    assert heads == ["Own public address by IPv4", "What went wrong", "Why", "What to do"]
    assert "this node does not know its own public address now" in lines[2]
    lines = facts(own_addresses=[own()], last_error=failure("punch_timeout"))
    assert not any(line.startswith("Why: ") for line in lines), "the facts give no cause"


@pytest.mark.parametrize(
    ("size", "said"),
    [
        (
            {"carried": 1372, "unproven": False, "lost": 1380},
            "UDP payloads of 1372 bytes get through, of 1380 they do not.",
        ),
        ({"carried": 1232, "unproven": True, "lost": 1244}, "may be even smaller, and routers cut into fragments"),
    ],
)
def test_a_path_with_a_small_mtu_is_told_as_one(size: dict[str, Any], said: str) -> None:
    lines = facts(paths=[USED], connected=True, packet_size=size)
    (line,) = [line for line in lines if line.startswith("Packets: ")]
    assert said in line
    usual = facts(paths=[USED], connected=True, packet_size={"carried": 1472, "unproven": False, "lost": None})
    assert not any(line.startswith("Packets: ") for line in usual)


def test_full_packets_that_get_lost_have_an_advice_of_their_own() -> None:
    late = failure("tls_timeout", "tls", "no handshake in time: small packets get there and full ones do not, as where")
    text = explained(last_error=late).text
    assert "Raise the MTU of what is between the two" in text.splitlines()[-1]
    assert "Raise the MTU" not in explained(last_error=failure("tls_timeout", "tls", "no handshake in time")).text


def test_too_many_meetings_are_no_matter_of_max_connections() -> None:
    text = explained(last_error=failure("too_many_connections", "punch")).text
    assert "dial again in some seconds" in text
    assert "max_connections" not in text
    assert "max_connections" in explained(last_error=failure("too_many_connections", "request")).text
