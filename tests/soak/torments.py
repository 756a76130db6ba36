"""All faults of a soak."""

from camera_torments import (
    CameraFrozen,
    CameraKilled,
    HalfOpen,
    Lossy,
    Mute,
    OtherCodec,
    OtherRate,
    OtherSize,
    Password,
    Refused,
    Stall,
)
from client_torments import (
    ControlGarbage,
    Crowd,
    HttpGarbage,
    Replays,
    SubscriberStops,
    SubscriberStorm,
)
from line_torments import (
    BrokenReload,
    Challenge,
    DaemonStopped,
    EvidenceFull,
    EvidenceReadOnly,
    Hangup,
    Recipe,
    Reload,
    WrongRecipe,
)
from torment import Torment

ALL: tuple[type[Torment], ...] = (
    CameraFrozen,
    CameraKilled,
    OtherSize,
    OtherRate,
    OtherCodec,
    HalfOpen,
    Stall,
    Mute,
    Refused,
    Lossy,
    Password,
    SubscriberStops,
    SubscriberStorm,
    Crowd,
    ControlGarbage,
    HttpGarbage,
    Replays,
    DaemonStopped,
    EvidenceFull,
    EvidenceReadOnly,
    Reload,
    Hangup,
    BrokenReload,
    Recipe,
    WrongRecipe,
    Challenge,
)
BY_NAME = {torment.kind.name: torment for torment in ALL}
