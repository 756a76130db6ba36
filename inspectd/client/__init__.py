"""The other end of the line: verdicts as they are published, none lost in silence, and the control socket.

    from inspectd.client import Client, Received

    with Client(fail_safe=set_gate) as client:
        for event in client:
            ...

docs/client.md explains it with a complete example. Needs neither torch, OpenVINO nor OpenCV.
"""

from inspectd.client.aio import AsyncClient
from inspectd.client.commands import ControlRefused, ControlTimeout
from inspectd.client.connection import Keys
from inspectd.client.control import Control
from inspectd.client.events import Event, Health, Lost, Received, Restarted, Unreadable
from inspectd.client.sync import Client
from inspectd.verdict.control_schema import ReplayPage, TriggerAccepted
from inspectd.verdict.schema import CameraStatus, Heartbeat, Message, Part, Verdict

__all__ = [
    "AsyncClient",
    "CameraStatus",
    "Client",
    "Control",
    "ControlRefused",
    "ControlTimeout",
    "Event",
    "Health",
    "Heartbeat",
    "Keys",
    "Lost",
    "Message",
    "Part",
    "Received",
    "ReplayPage",
    "Restarted",
    "TriggerAccepted",
    "Unreadable",
    "Verdict",
]
