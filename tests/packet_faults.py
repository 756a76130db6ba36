"""What may happen to the packets of a camera on their way; for `RtspProxy.meddle`."""

import random
from collections.abc import Callable, Iterable

_SENDER_REPORT = 200  # RFC 3550, 6.4.1

Meddle = Callable[[bytes, bool], Iterable[bytes]]
"""(a packet from the camera, whether it is RTCP) -> what goes on instead, each over the same channel."""


def leave(packet: bytes, control: bool) -> Iterable[bytes]:
    """Nothing happens to it."""
    return (packet,)


def lose(share: float, seed: int = 0) -> Meddle:
    """That share of the RTP packets never arrives."""
    dice = random.Random(seed)
    return lambda packet, control: (packet,) if control or dice.random() >= share else ()


def reorder(share: float, by: int, seed: int = 0) -> Meddle:
    """That share of the RTP packets is overtaken by the `by` packets behind it."""
    dice = random.Random(seed)
    held: list[list] = []  # [packets that still overtake it, packet]

    def meddle(packet: bytes, control: bool) -> Iterable[bytes]:
        if control:
            yield packet
            return
        if dice.random() < share:
            held.append([by + 1, packet])
        else:
            yield packet
        for one in held:
            one[0] -= 1
        yield from (one[1] for one in held if one[0] == 0)
        held[:] = [one for one in held if one[0]]

    return meddle


def shift_time(change: Callable[[int], int]) -> Meddle:
    """Other timestamps in the RTP packets: `change` of the 32-bit one that the camera gave (90 kHz)."""

    def meddle(packet: bytes, control: bool) -> Iterable[bytes]:
        if control:
            return (packet,)
        time = change(int.from_bytes(packet[4:8], "big")) % (1 << 32)
        return (packet[:4] + time.to_bytes(4, "big") + packet[8:],)

    return meddle


def shift_reports(seconds: float | None) -> Meddle:
    """The camera's wall clock in its sender reports is off by so much; None: it sends no reports."""

    def meddle(packet: bytes, control: bool) -> Iterable[bytes]:
        if not control or packet[1] != _SENDER_REPORT:
            return (packet,)
        if seconds is None:
            return ()
        # 64-bit NTP time: seconds since 1900 and their fraction.
        ntp = int.from_bytes(packet[8:16], "big") + round(seconds * (1 << 32))
        return (packet[:8] + ntp.to_bytes(8, "big") + packet[16:],)

    return meddle
