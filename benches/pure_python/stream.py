"""One uTP connection (BEP 29, RFC 6298, RFC 8985 for the idea of time-ordered loss).

Sequence numbers are kept unwrapped inside; congestion control is slow start and AIMD.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from typing import TYPE_CHECKING

from . import packet as wire
from .packet import DATA, FIN, RESET, STATE, SYN, Packet

if TYPE_CHECKING:
    from .utp import Endpoint

Address = tuple[str, int] | tuple[str, int, int, int]

MSS = 1380  # payload bytes a packet: 1400-byte datagrams, as libutp's default of 1402
RECEIVE_BUFFER = 1 << 20
SEND_BUFFER = 1 << 18
MAX_WINDOW = 4 << 20
INITIAL_WINDOW = 10 * MSS
PLAIN_IN_FLIGHT, CAPABLE_IN_FLIGHT = 950, 32_767  # packets (UTP.md 2.4)
UNANSWERED_TIMEOUT, IDLE_TIMEOUT = 30.0, 75.0
KEEP_ALIVE, LINGER = 25.0, 1.0
MIN_RTO, INITIAL_RTO, MAX_RTO = 0.2, 1.0, 60.0
ACK_DELAY = 0.01

_CONNECTING, _ACCEPTED, _CONNECTED, _CLOSED = range(4)


class Sent:
    """A packet on its way. `at` is 0 while it is lost and waits to be sent again."""

    __slots__ = ("arrived", "at", "kind", "payload", "tries")

    def __init__(self, kind: int, payload: bytes) -> None:
        self.kind, self.payload, self.at, self.tries, self.arrived = kind, payload, 0.0, 0, False


class Stream:
    """One uTP connection.

    `read` returns b"" at the end of the peer's direction; `write` never blocks, `drain` waits for room.
    """

    def __init__(self, endpoint: Endpoint, remote: Address, receive_id: int, send_id: int, syn: Packet | None) -> None:
        now = time.monotonic()
        self.remote = remote
        self._endpoint, self._loop = endpoint, asyncio.get_running_loop()
        self.receive_id, self.send_id = receive_id & 0xFFFF, send_id & 0xFFFF
        self._state = _CONNECTING if syn is None else _ACCEPTED
        self._capable = syn is not None and endpoint.capable and syn.capable()
        self._failure: OSError | None = None
        # sending
        self._first = self._next = self._unacked = random.randrange(1, 0x10000)
        self._sent: dict[int, Sent] = {}
        self._lost: deque[int] = deque()
        self._unsent = bytearray()
        self._fin_wanted = self._fin_sent = False
        self._in_flight = 0  # payload bytes neither acknowledged nor given up
        self._window, self._threshold, self._recover = INITIAL_WINDOW, MAX_WINDOW, 0
        self._peer_window = RECEIVE_BUFFER if syn is None else syn.window or RECEIVE_BUFFER
        self._duplicates = self._probe = 0
        self._newest_arrival = 0.0  # when the most recently sent of all packets known to have arrived was sent
        self._srtt, self._rttvar, self._rto, self._backoff = 0.0, 0.0, INITIAL_RTO, 0
        # receiving
        self._ack = syn.seq if syn else 0
        self._early: dict[int, bytes] = {}
        self._early_size = self._latest = 0
        self._received = bytearray()
        self._eof: int | None = None
        self._difference = self._ack_due = self._advertised = 0
        # time
        self._progress = self._heard = self._spoke = self._waiting = now
        self._ended = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._ack_timer: asyncio.TimerHandle | None = None
        self._readable, self._writable, self.connected = (
            asyncio.Event(),
            asyncio.Event(),
            self._loop.create_future(),
        )
        self._writable.set()

    # --- the application's side ---------------------------------------------------------------------------

    async def read(self, limit: int = 1 << 16) -> bytes:
        while not self._received:
            if self.at_eof():
                return b""
            if self._failure:
                raise self._failure
            self._readable.clear()
            await self._readable.wait()
        data = bytes(memoryview(self._received)[:limit])
        del self._received[:limit]
        if self._state == _CONNECTED and self._free() - self._advertised >= RECEIVE_BUFFER // 4:
            self._send_state()
        return data

    def write(self, data: bytes) -> None:
        if self._failure:
            raise self._failure
        if self._fin_wanted:
            raise OSError("the stream's sending direction was ended")
        self._unsent += data
        if len(self._unsent) > SEND_BUFFER:
            self._writable.clear()
        self.flush(time.monotonic())

    async def drain(self) -> None:
        await self._writable.wait()
        if self._failure:
            raise self._failure

    def write_eof(self) -> None:
        if not self._failure and not self._fin_wanted:
            self._fin_wanted = True
            self.flush(time.monotonic())

    def at_eof(self) -> bool:
        return self._eof is not None and self._ack >= self._eof and not self._received

    def close(self) -> None:
        """Leaves the rest to the endpoint when both directions have ended; else the peer gets a RESET."""
        if not (self._fin_wanted and self.at_eof()):
            self.reset()

    def reset(self) -> None:
        if self._state != _CLOSED:
            self._endpoint.send(self._packet(RESET, self._next), self.remote)
            self.fail(ConnectionAbortedError("reset by this side"))

    def fail(self, error: OSError) -> None:
        if self._state == _CLOSED:
            return
        self._state, self._failure = _CLOSED, error
        self._sent.clear()
        self._unsent.clear()
        for timer in (self._timer, self._ack_timer):
            if timer:
                timer.cancel()
        self._readable.set()
        self._writable.set()
        if not self.connected.done():
            self.connected.set_exception(error)
            self.connected.exception()  # nobody may be waiting: then it is not worth a warning
        self._endpoint.forget(self)

    # --- what arrived? ------------------------------------------------------------------------------------

    def handle(self, p: Packet, now: float) -> None:
        if p.kind == RESET:
            self._handle_reset(p)
        elif p.kind == SYN:
            if self._state == _ACCEPTED or (self._state == _CONNECTED and p.seq == self._ack):
                self.send_syn_ack()
        elif self._state == _CONNECTING:
            self._handle_syn_ack(p, now)
        elif self._handle_ack(p, now):
            self._heard = now
            if self._state == _ACCEPTED:
                self._state = _CONNECTED
                self._endpoint.confirm(self)
            self._difference = now_micros() - p.timestamp & 0xFFFFFFFF if p.timestamp else 0
            if p.kind != STATE:
                self._handle_data(p)

    def _handle_reset(self, p: Packet) -> None:
        ack = wire.unwrap(p.ack, self._unacked)
        if self._unacked - 4 <= ack <= self._next:
            refused = self._state == _CONNECTING
            self.fail(
                ConnectionRefusedError("refused by the peer") if refused else ConnectionResetError("reset by the peer")
            )

    def _handle_syn_ack(self, p: Packet, now: float) -> None:
        if p.kind != STATE or p.ack != self._first & 0xFFFF or self.connected.done():
            return
        self._state, self._ack, self._unacked = _CONNECTED, p.seq - 1, self._next
        self._capable = self._endpoint.capable and p.capable()
        self._peer_window, self._heard, self._progress = p.window, now, now
        self._difference = now_micros() - p.timestamp & 0xFFFFFFFF
        self.connected.set_result(None)
        self._ack_due = 1  # a peer that speaks first may wait to hear from us

    def _handle_ack(self, p: Packet, now: float) -> bool:
        """Takes in what a packet acknowledges; False if the packet cannot be of this connection."""
        ack = wire.unwrap(p.ack, self._unacked)
        if not self._unacked - 4 <= ack < self._next:
            return False
        flight, before = self._in_flight, self._unacked
        sample = None
        while self._unacked <= ack:
            sent = self._sent.pop(self._unacked)
            sample = self._take(sent) or sample
            self._unacked += 1
        holes = False
        for seq in wire.acknowledged(p, ack, self._next) if p.extensions and self._sent else ():
            pending = self._sent.get(seq)
            if pending and not pending.arrived:
                sample = self._take(pending) or sample
                pending.arrived = holes = True
        if sample:
            self._handle_rtt(now - sample.at)
        if self._unacked > before or holes:
            self._progress, self._backoff, self._duplicates = now, 0, 0
            self._grow(flight, flight - self._in_flight)
        elif p.kind == STATE and self._sent and p.window == self._peer_window:
            self._duplicates += 1
        if p.window and not self._peer_window:
            self._progress = now
        self._peer_window = p.window
        if self._sent and (p.extensions or self._duplicates == 3):
            self._find_losses()
        return True

    def _take(self, sent: Sent) -> Sent | None:
        """Counts a packet as arrived; returns it if it is good for an RTT sample (sent once: Karn)."""
        if sent.arrived:
            return None
        if not sent.at:
            return None  # given up too early
        self._in_flight -= len(sent.payload)
        self._newest_arrival = max(self._newest_arrival, sent.at)
        return sent if sent.tries == 1 else None

    def _handle_rtt(self, rtt: float) -> None:
        if not self._srtt:
            self._srtt, self._rttvar = rtt, rtt / 2
        else:
            self._rttvar += (abs(self._srtt - rtt) - self._rttvar) / 4
            self._srtt += (rtt - self._srtt) / 8
        self._rto = min(max(self._srtt + 4 * self._rttvar, MIN_RTO), MAX_RTO)

    def _grow(self, flight: int, acked: int) -> None:
        if flight + MSS < self._window or self._unacked < self._recover:
            return  # the window was not what held us back, or we are mending a loss
        self._window += acked if self._window < self._threshold else MSS * acked // self._window
        self._window = min(self._window, MAX_WINDOW)

    def _find_losses(self) -> None:
        """A packet is lost if one sent a quarter RTT later has arrived, or three duplicate acks say so."""
        limit = self._newest_arrival - self._srtt / 4
        found = False
        for seq, sent in self._sent.items():
            if sent.at and not sent.arrived and (sent.at < limit or (self._duplicates == 3 and seq == self._unacked)):
                self._lose(seq, sent)
                found = True
            elif sent.at > limit and sent.tries == 1:
                break
        if found and self._unacked >= self._recover:
            self._threshold = self._window = max(self._window // 2, 2 * MSS)
            self._recover = self._next

    def _lose(self, seq: int, sent: Sent) -> None:
        sent.at = 0.0
        self._in_flight -= len(sent.payload)
        self._lost.append(seq)

    def _handle_data(self, p: Packet) -> None:
        seq = wire.unwrap(p.seq, self._ack)
        self._ack_due += 1
        fits = len(p.payload) <= self._free() or (
            seq == self._ack + 1 and self._early_size + len(self._received) < RECEIVE_BUFFER * 2
        )
        beyond_eof = self._eof is not None and seq > self._eof
        if seq <= self._ack or seq in self._early or beyond_eof or not fits or seq > self._ack + CAPABLE_IN_FLIGHT:
            self._ack_due += 2  # the peer knows less than we do: tell it now
            return
        if p.kind == FIN:
            self._eof = seq
        self._early[seq] = p.payload if p.kind == DATA else b""
        self._early_size += len(self._early[seq])
        self._latest = seq
        while (ready := self._early.pop(self._ack + 1, None)) is not None:
            self._ack += 1
            self._early_size -= len(ready)
            self._received += ready
        if self._early or self._eof is not None:
            self._ack_due += 2
        if self._received or self.at_eof():
            self._readable.set()

    # --- what to send? ------------------------------------------------------------------------------------

    def flush(self, now: float) -> None:
        """Sends what windows allow, then an acknowledgement if one is due and nothing carried it."""
        if self._state == _CONNECTED:
            self._send_lost(now)
            self._send_new(now)
            if self._ack_due >= 2:
                self._send_state()
            elif self._ack_due and not self._ack_timer:
                self._ack_timer = self._loop.call_later(ACK_DELAY, self._send_state)
            self._schedule(now)

    def _send_lost(self, now: float) -> None:
        while self._lost and self._in_flight < self._window:
            seq = self._lost.popleft()
            sent = self._sent.get(seq)
            if sent and not sent.at and not sent.arrived:
                self._transmit(seq, sent, now)

    def _send_new(self, now: float) -> None:
        cap = self._unacked + (CAPABLE_IN_FLIGHT if self._capable else PLAIN_IN_FLIGHT)
        while self._unsent and self._next < cap:
            room = min(self._window, self._peer_window) - self._in_flight
            size = min(len(self._unsent), MSS)
            if size > room and not self._probe:
                if self._in_flight or room <= 0:
                    break
                size = room
            self._probe = 0
            self._send_next(Sent(DATA, bytes(memoryview(self._unsent)[:size])), now)
            del self._unsent[:size]
        if not self._unsent and self._fin_wanted and not self._fin_sent:
            self._fin_sent = True
            self._send_next(Sent(FIN, b""), now)
        if len(self._unsent) <= SEND_BUFFER:
            self._writable.set()

    def _send_next(self, sent: Sent, now: float) -> None:
        if not self._sent:
            self._progress = self._waiting = now
        self._sent[self._next] = sent
        self._next += 1
        self._transmit(self._next - 1, sent, now)

    def _transmit(self, seq: int, sent: Sent, now: float) -> None:
        sent.at = now
        sent.tries += 1
        self._in_flight += len(sent.payload)
        if not self._early:
            self._acknowledged()
        self._endpoint.send(self._packet(sent.kind, seq, sent.payload), self.remote)

    def _send_state(self) -> None:
        extensions: tuple[wire.Extension, ...] = ()
        if self._early:
            report = (
                wire.received_ranges(list(self._early), self._latest)
                if self._capable
                else wire.selective_ack(self._ack, self._early)
            )
            extensions = (report,)
        self._acknowledged()
        self._endpoint.send(self._packet(STATE, self._next)._replace(extensions=extensions), self.remote)

    def send_syn(self) -> None:
        self._next = self._first + 1
        extensions = wire.CAPABILITIES if self._endpoint.capable else ()
        syn = Packet(SYN, self.receive_id, now_micros(), 0, RECEIVE_BUFFER, self._first, 0, extensions)
        self._endpoint.send(syn, self.remote)

    def send_syn_ack(self) -> None:
        """Always with the first sequence number, which it does not consume (UTP.md 2.3)."""
        answer = self._packet(STATE, self._first)._replace(extensions=wire.CAPABILITIES if self._capable else ())
        self._endpoint.send(answer, self.remote)

    def _packet(self, kind: int, seq: int, payload: bytes = b"") -> Packet:
        self._advertised = self._free()
        return Packet(
            kind,
            self.send_id,
            now_micros(),
            self._difference,
            self._advertised,
            seq,
            self._ack & 0xFFFF,
            (),
            payload,
        )

    def _acknowledged(self) -> None:
        self._ack_due, self._spoke = 0, time.monotonic()
        if self._ack_timer:
            self._ack_timer.cancel()
            self._ack_timer = None

    def _free(self) -> int:
        return max(RECEIVE_BUFFER - len(self._received) - self._early_size, 0)

    # --- when? --------------------------------------------------------------------------------------------

    def _deadline(self) -> float:
        if self._sent or self._unsent:
            return self._progress + min(self._rto * (1 << self._backoff), MAX_RTO)
        if self._fin_sent and self._eof is not None and self._ack >= self._eof:
            self._ended = self._ended or time.monotonic()
            return self._ended + LINGER
        return min(self._spoke + KEEP_ALIVE, self._heard + IDLE_TIMEOUT)

    def _schedule(self, now: float) -> None:
        deadline = self._deadline()
        if self._timer and self._timer.when() <= deadline:
            return  # it looks again when it fires
        if self._timer:
            self._timer.cancel()
        self._timer = self._loop.call_at(deadline, self._handle_timer)

    def _handle_timer(self) -> None:
        now = time.monotonic()
        self._timer = None
        if now < self._deadline() - 1e-3:
            self._schedule(now)
        elif self._sent or self._unsent:
            self._handle_timeout(now)
        elif self._ended:
            self.fail(ConnectionAbortedError("the stream has ended"))
        elif now - self._heard >= IDLE_TIMEOUT:
            self.fail(TimeoutError(f"nothing heard from the peer for {IDLE_TIMEOUT:.0f} s"))
        else:
            self._send_state()
            self._schedule(now)

    def _handle_timeout(self, now: float) -> None:
        if now - max(self._heard, self._waiting) > UNANSWERED_TIMEOUT:
            self.fail(TimeoutError(f"no answer for {UNANSWERED_TIMEOUT:.0f} s"))
            return
        self._backoff = min(self._backoff + 1, 8)
        self._progress = now
        outstanding = [(seq, sent) for seq, sent in self._sent.items() if sent.at and not sent.arrived]
        for seq, sent in outstanding:
            self._lose(seq, sent)
        if outstanding:
            self._lost = deque(sorted(self._lost))
            self._threshold, self._window = max(self._window // 2, 2 * MSS), 2 * MSS
            self._recover = self._next
        elif not self._sent:
            self._probe = 1  # the peer's window is shut: one packet asks whether it still is
        self.flush(now)


def now_micros() -> int:
    """The sender's clock for packets; 0 would mean that there is none."""
    return time.monotonic_ns() // 1000 & 0xFFFFFFFF or 1
