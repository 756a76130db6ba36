"""What happens to the RTSP camera and to the network on the way to it."""

from plant_site import PASSWORDS
from schedule import Kind
from torment import Torment

COMES_BACK_S = 12.0
"""A camera is there again within this."""


class _Street(Torment):
    """Something with the RTSP camera."""

    camera = "street"
    detect_s = 6.0
    recover_s = COMES_BACK_S

    def settled(self) -> None:
        self.line.street.start()  # whatever became of the fault


class CameraFrozen(_Street):
    kind = Kind("camera frozen (SIGSTOP)", 5, 15, COMES_BACK_S)

    def begin(self) -> None:
        self.line.street.camera.freeze()

    def end(self) -> None:
        self.line.street.camera.thaw()


class CameraKilled(_Street):
    kind = Kind("camera killed", 2, 12, COMES_BACK_S)

    def begin(self) -> None:
        self.line.street.kill()

    def end(self) -> None:
        self.line.street.start()


class _OtherCamera(_Street):
    """Killed, and at once another one in its place; at the end the usual one again."""

    clip: str

    def begin(self) -> None:
        self.line.street.replace(self.clip)

    def end(self) -> None:
        self.line.street.replace()


class OtherSize(_OtherCamera):
    kind = Kind("camera restarted, other resolution", 5, 12, COMES_BACK_S)
    clip = "other_size"


class OtherRate(_OtherCamera):
    kind = Kind("camera restarted, other frame rate", 5, 12, COMES_BACK_S)
    clip = "other_rate"


class OtherCodec(_OtherCamera):
    kind = Kind("camera restarted, other codec", 5, 12, COMES_BACK_S)
    clip = "other_codec"


class _Link(_Street):
    """Something with the network."""

    mode = "open"

    def begin(self) -> None:
        self.line.street.link.set_mode(self.mode)

    def end(self) -> None:
        self.line.street.link.set_mode("open")


class HalfOpen(_Link):
    kind = Kind("TCP half open", 5, 15, COMES_BACK_S)
    mode = "held"

    def end(self) -> None:
        self.line.street.link.cut()
        super().end()


class Stall(_Link):
    kind = Kind("network stalls, then a burst", 2, 2.7, COMES_BACK_S)
    mode = "held"
    detect_s = None


class Mute(_Link):
    kind = Kind("accepts and never answers", 4, 15, COMES_BACK_S)
    mode = "mute"


class Refused(_Link):
    kind = Kind("connection refused", 4, 25, COMES_BACK_S)
    mode = "refused"


class Lossy(_Link):
    kind = Kind("RTP lost and cut short", 2, 12, COMES_BACK_S)
    mode = "lossy"

    def sign(self, now: float, topic: str, message: dict) -> bool:
        return topic == "verdict/street/part/" and message["reason"] == "corrupt" and not message["replayed"]


class Password(_Street):
    kind = Kind("password changed", 4, 15, settle_s=38)
    recover_s = 40.0  # AUTH_RETRY_S: a camera is not asked more often, it might lock us out

    def begin(self) -> None:
        self.line.street.replace(password=PASSWORDS[1])

    def end(self) -> None:
        self.line.site.write_password(PASSWORDS[1])

    def settled(self) -> None:
        self.line.site.write_password(PASSWORDS[0])
        self.line.street.replace()
