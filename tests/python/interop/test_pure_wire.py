"""The codecs of pure_python, against vectors worked out by hand or taken from RFCs."""

from __future__ import annotations

import random

import pytest
from pure_python import connect, identity, opening, packet, stun
from pure_python.packet import Packet


def test_a_state_packet_is_the_bytes_of_bep_29():
    bytes_ = bytes.fromhex("21 00 1234 01020304 05060708 00100000 fffe 0001")
    parsed = packet.decode(bytes_)
    assert parsed == Packet(packet.STATE, 0x1234, 0x01020304, 0x05060708, 1 << 20, 0xFFFE, 1)
    assert parsed.encode() == bytes_


def test_the_capability_rides_behind_extension_2():
    syn = Packet(packet.SYN, 7, 1, 0, 1 << 20, 1, 0, packet.CAPABILITIES)
    raw = syn.encode()
    assert raw[:2] == b"\x41\x02"
    assert raw[20:] == b"\x4b\x08" + bytes(8) + b"\x00\x04kn\x01\x00"
    assert packet.decode(raw) == syn
    assert syn.capable()
    assert not Packet(packet.SYN, 7, 1, 0, 1 << 20, 1, 0, packet.CAPABILITIES[:1]).capable()


def test_every_truncation_is_refused_or_parsed():
    whole = Packet(packet.SYN, 7, 1, 0, 1 << 20, 1, 0, packet.CAPABILITIES).encode()
    for end in range(len(whole)):
        assert packet.decode(whole[:end]) is None
    for first in range(256):
        parsed = packet.decode(bytes([first]) + whole[1:])
        assert (parsed is not None) == (first & 15 == 1 and first >> 4 <= 4)


def test_random_bytes_never_raise():
    rng = random.Random(1)
    for _ in range(5000):
        data = rng.randbytes(rng.randrange(80))
        parsed = packet.decode(b"\x21" + data[1:]) if data else packet.decode(data)
        if parsed:
            list(packet.acknowledged(parsed, 65530, 66000))
        if message := stun.decode(b"\x01\x01" + data):
            stun.observed(message)
        stun.pong(data, ("192.0.2.1", 1), {})


def test_selective_acks_mean_what_bep_29_says():
    kind, body = packet.selective_ack(100, [102, 104, 110])
    assert (kind, body) == (1, bytes([0b0000_0101, 0b0000_0001, 0, 0]))


@pytest.mark.parametrize("seed", range(20))
def test_holes_are_reported_and_read_alike(seed: int):
    rng = random.Random(seed)
    ack = rng.randrange(1 << 20)
    received = sorted(rng.sample(range(ack + 2, ack + 200), rng.randrange(1, 30)))
    for extension in (packet.selective_ack(ack, received), packet.received_ranges(received, received[0])):
        p = Packet(packet.STATE, 1, 1, 0, 0, 0, ack & 0xFFFF, (extension,))
        assert sorted(packet.acknowledged(p, ack, ack + 1000)) == received
        assert all(seq < ack + 50 for seq in packet.acknowledged(p, ack, ack + 50))


def test_the_range_with_the_news_comes_first():
    _, body = packet.received_ranges([12, 13, 20, 21, 40], 12)
    assert body == bytes.fromhex("000c000e 00280029 00140016")


def test_xor_mapped_address_is_that_of_rfc_5769():
    transaction = bytes.fromhex("b7e7a701bc34d686fa87dfae")
    v4 = bytes.fromhex("0101 000c 2112a442") + transaction + bytes.fromhex("0020 0008 0001 a147 e112a643")
    assert stun.observed(stun.decode(v4)) == ("192.0.2.1", 32853)
    v6 = bytes.fromhex("0101 0018 2112a442") + transaction
    v6 += bytes.fromhex("0020 0014 0002 a147 0113a9faa5d3f179bc25f4b5bed2b9d9")
    assert stun.observed(stun.decode(v6)) == ("2001:db8:1234:5678:11:2233:4455:6677", 32853)


@pytest.mark.parametrize("source", [("192.0.2.1", 5), ("2001:db8::1", 65535), ("::ffff:192.0.2.1", 5)])
@pytest.mark.parametrize("keyed", [False, True])
def test_a_pong_tells_the_source_and_is_no_larger(source: tuple[str, int], keyed: bool):
    asked = stun.PingKeys(b"k" * 32, "a" * 32, "b" * 32)
    asking = stun.PingKeys(b"k" * 32, "b" * 32, "a" * 32)
    request = stun.ping(b"transaction!", asking if keyed else None)
    answer = stun.pong(request, source, {asked.local_name: asked})
    assert answer
    assert len(answer) <= len(request)
    assert stun.is_stun(request)
    assert stun.is_stun(answer)
    message = stun.decode(answer)
    assert stun.observed(message) == (source[0].removeprefix("::ffff:"), source[1])
    assert message.signed_with(asked.key) == keyed


def test_pings_that_must_not_be_answered():
    keys = stun.PingKeys(b"k" * 32, "a" * 32, "a" * 32)
    keyed = stun.ping(b"transaction!", keys)
    assert stun.pong(keyed, ("192.0.2.1", 5), {}) is None
    assert stun.pong(keyed, ("192.0.2.1", 5), {"a" * 32: keys._replace(key=b"x" * 32)}) is None
    bare = bytes.fromhex("0001 0000 2112a442") + b"transaction!"
    assert stun.pong(bare, ("192.0.2.1", 5), {}) is None, "no room for an answer that is not larger"


def test_node_text():
    # RFC 4648 section 10 in base32hex, by way of the definition: 32 zero bytes are 52 zeros
    assert identity.node_text(bytes(32)) == "v" + "0" * 52
    assert identity.node_text(b"\xff" * 32) == "v" + "v" * 51 + "g"
    rng = random.Random(1)
    for _ in range(100):
        key = rng.randbytes(32)
        assert identity.node_key(identity.node_text(key)) == key
        assert identity.node_key(identity.node_text(key).upper()) == key
    for bad in (
        "",
        "v",
        "v" + "v" * 52,
        "v" + "w" * 52,
        "x" + "0" * 52,
        "v" + "0" * 51 + "=",
        "v" + "0" * 53,
    ):
        with pytest.raises(ValueError, match="node id"):
            identity.node_key(bad)


async def test_messages_come_byte_by_byte():
    node = identity.node_text(bytes(range(32)))
    raw = opening.encode_open(50051, node)
    assert raw == b"\x00\x26" + b"\x01\xc3\x83" + b"\x01\x00\x20" + bytes(range(32))
    rest = list(raw)

    async def read(limit: int) -> bytes:
        return bytes([rest.pop(0)]) if rest else b""

    assert opening.decode_open(await opening.read_message(read)) == (50051, bytes(range(32)).hex())
    with pytest.raises(opening.Refused, match="ended"):
        await opening.read_message(read)


def test_answers():
    opening.check_answer(b"\x02")
    opening.check_answer(b"\x02\x63\x00\x01x")  # an unknown option
    for answer, reason in ((b"\x03\x00\x50no", "access_denied"), (b"\x03\xff\xff", "protocol_violation")):
        with pytest.raises(opening.Refused) as refused:
            opening.check_answer(answer)
        assert refused.value.reason == reason
    for bad in (b"\x02\x01", b"\x02\x01\x00\x05x", b"\x02\x07\x00\x00\x07\x00\x00", b"\x09", b"\x03\x00"):
        with pytest.raises(opening.Refused) as refused:
            opening.check_answer(bad)
        assert refused.value.reason == "protocol_violation"


NODE = "v" + "0" * 52
AUTH = b"Proxy-Authorization: Basic dTpw\r\n"


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (f"{NODE}.keynet:7", (NODE, 7, None)),
        (f"{NODE.upper()}.KEYNET:65535", (NODE, 65535, None)),
        (f"192.0.2.1:4433/?nodeId={NODE}", (NODE, 0, ("192.0.2.1", 4433))),
        (f"[2001:db8::1]:1/?nodeId={NODE}&service=9", (NODE, 9, ("2001:db8::1", 1))),
        (f"example.org:1/?nodeId=%76{'0' * 52}", (NODE, 0, ("example.org", 1))),
    ],
)
def test_targets(target: str, expected: tuple):
    head = f"CONNECT {target} HTTP/1.1\r\n".encode() + AUTH + b"\r\n"
    assert connect.parse(head, ("u", "p")) == expected


@pytest.mark.parametrize(
    ("head", "reason"),
    [
        (b"", "bad_request"),
        (b"CONNECT x\r\n" + AUTH, "bad_request"),
        (b"CONNECT x HTTP/2\r\n" + AUTH, "bad_request"),
        (b"CONNECT x HTTP/1.1\r\n", "credentials_required"),
        (b"CONNECT x HTTP/1.1\r\nProxy-Authorization: Basic dTpx\r\n", "credentials_required"),
        (b"GET x HTTP/1.1\r\n" + AUTH, "method_not_allowed"),
        (b"CONNECT x HTTP/1.1\r\n" + AUTH, "bad_target"),
        (b"CONNECT " + NODE.encode() + b".keynet:65536 HTTP/1.1\r\n" + AUTH, "bad_target"),
        (b"CONNECT \xff.keynet:1 HTTP/1.1\r\n" + AUTH, "bad_target"),
        (b"CONNECT a:1/?nodeId=x HTTP/1.1\r\n" + AUTH, "bad_target"),
    ],
)
def test_bad_heads(head: bytes, reason: str):
    with pytest.raises(opening.Refused) as refused:
        connect.parse(head + b"\r\n", ("u", "p"))
    assert refused.value.reason == reason
    assert connect.refusal(reason, 'a "quoted"\r\ntext').startswith(
        f"HTTP/1.1 {opening.REASONS[reason][1]} {reason}".encode()
    )


def test_reasons_are_those_of_the_core():
    from pathlib import Path

    source = (Path(__file__).resolve().parents[3] / "rust/src/error.rs").read_text()
    for name, (code, status, kind) in opening.REASONS.items():
        assert f'= {code}, "{name}", ' in source, name
        line = next(line for line in source.splitlines() if f'= {code}, "{name}", ' in line)
        assert f' {status}, "{kind}"' in line, name
