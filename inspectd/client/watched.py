"""What both clients know of the line at any moment; from any thread, and without waiting."""

from __future__ import annotations

from inspectd.client.link import Link


class Watched:
    """The state of the line, as the client's thread sees it."""

    _link: Link

    @property
    def reason(self) -> str | None:
        """Why the line must not run, as `fail_safe` was told; None while it may."""
        return self._link.reason

    @property
    def alive(self) -> bool:
        """Whether a heartbeat was heard within the last 0.9 s."""
        return self._link.alive

    @property
    def safe_to_run(self) -> bool:
        """Whether the daemon is there and says that it is ready."""
        return self._link.alive and self._link.reason is None

    @property
    def unreadable(self) -> int:
        """How many messages came that are none."""
        return self._link.unreadable
