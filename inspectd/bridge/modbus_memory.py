"""The memory that a Modbus client sees: made anew for each request, so that none sees half an update.

There are no stored output registers that could be half written. What a request asks for is computed from the image in
one go, at one instant; ages and expiries are exact at that instant.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from inspectd.bridge import modbus_map as table
from inspectd.bridge.handshake import Handshake, Order
from inspectd.bridge.image import LineImage
from inspectd.bridge.layout import CameraLayout

State = TypeVar("State")


class IllegalAddressError(Exception):
    """A request reads or writes where there is nothing, or nothing to write."""


class IllegalValueError(Exception):
    """A request writes what cannot be."""


@dataclass(slots=True)
class _Camera:
    layout: CameraLayout
    handshake: Handshake
    part_number: int = 0
    deadline_ms: int = table.DEFAULT_DEADLINE_MS


@dataclass(slots=True)
class Memory:
    """Reads and writes of registers and bits. `on_order` gets what a PLC's trigger starts."""

    image: LineImage
    handshakes: Mapping[str, Handshake]
    on_order: Callable[[Order], None]
    _cameras: list[_Camera] = field(init=False)

    def __post_init__(self) -> None:
        self._cameras = [_Camera(each, self.handshakes[each.name]) for each in self.image.layout.cameras]

    def read_registers(self, address: int, count: int, now: float) -> list[int]:
        """So many registers from an address on, as they are at `now` (monotonic seconds).

        Raises:
            IllegalAddressError: some of them are not there.
        """
        values: list[int] = []
        while len(values) < count:
            block, offset = self._block(address + len(values), now)
            values += block[offset : offset + count - len(values)]
        return values

    def write_registers(self, address: int, values: Sequence[int], now: float) -> None:
        """Write registers that a PLC may write; all of them or none.

        Raises:
            IllegalAddressError: some of them may not be written.
            IllegalValueError: the trigger is neither 0 nor 1.
        """
        camera, offset = self._camera_at(address, table.CAMERA_STRIDE)
        if not values or any(offset + index not in table.WRITABLE for index in range(len(values))):
            raise IllegalAddressError
        written = dict(enumerate(values, offset))
        if written.get(table.TRIGGER, 0) not in (0, 1):
            raise IllegalValueError
        high = written.get(table.PART_NUMBER, camera.part_number >> 16)
        low = written.get(table.PART_NUMBER + 1, camera.part_number & 0xFFFF)
        camera.part_number = high << 16 | low
        camera.deadline_ms = written.get(table.DEADLINE, camera.deadline_ms)
        if table.TRIGGER in written:
            self._trigger(camera, written[table.TRIGGER] == 1, now)

    def read_bits(self, address: int, count: int, now: float) -> list[bool]:
        """So many coils or discrete inputs from an address on; those between the used ones are False.

        Raises:
            IllegalAddressError: some of them are behind the last camera's.
        """
        if address + count > table.bit_address(len(self._cameras)):
            raise IllegalAddressError
        line = table.LineState(self.image.line(now), self.image.layout)
        bits = {bit.offset: bit.value(line) for bit in table.LINE_BITS}
        for number, camera in enumerate(self._cameras):
            base = table.bit_address(number)
            if base < address + count and address < base + table.CAMERA_BITS:
                state = self._camera_state(camera, now)
                bits |= {base + bit.offset: bit.value(state) for bit in table.CAMERA_BIT_TABLE}
        return [bits.get(each, False) for each in range(address, address + count)]

    def write_bits(self, address: int, values: Sequence[bool], now: float) -> None:
        """Write triggers; all or none.

        Raises:
            IllegalAddressError: one of the bits is not a trigger.
        """
        triggers = []
        for index, value in enumerate(values):
            camera, offset = self._camera_at(address + index, table.CAMERA_BITS)
            if offset != table.TRIGGER_BIT:
                raise IllegalAddressError
            triggers.append((camera, value))
        for camera, value in triggers:
            self._trigger(camera, value, now)

    def _trigger(self, camera: _Camera, value: bool, now: float) -> None:
        order = camera.handshake.write(value, part_number=camera.part_number, deadline_ms=camera.deadline_ms, now=now)
        if order is None:
            return
        if self.image.line(now).safe:
            self.on_order(order)
        else:
            camera.handshake.unsafe()

    def _camera_at(self, address: int, stride: int) -> tuple[_Camera, int]:
        number, offset = divmod(address, stride)
        if not 1 <= number <= len(self._cameras):
            raise IllegalAddressError
        return self._cameras[number - 1], offset

    def _block(self, address: int, now: float) -> tuple[list[int], int]:
        """The block that an address is in, and where in it."""
        if 0 <= address < table.LINE_SIZE:
            line = table.LineState(self.image.line(now), self.image.layout)
            return _rendered(table.LINE, line, table.LINE_SIZE), address
        camera, offset = self._camera_at(address, table.CAMERA_STRIDE)
        index, offset = divmod(offset, table.ROI_STRIDE)
        if index == 0:
            return _rendered(table.CAMERA, self._camera_state(camera, now), table.ROI_STRIDE), offset
        if index > len(camera.layout.rois):
            raise IllegalAddressError
        view = self.image.roi(camera.layout.name, camera.layout.rois[index - 1].name, now)
        state = table.RoiState(self.image.line(now), view, camera.handshake)
        return _rendered(table.ROI, state, table.ROI_STRIDE), offset

    def _camera_state(self, camera: _Camera, now: float) -> table.CameraState:
        line = self.image.line(now)
        if not line.safe:
            camera.handshake.unsafe()
        return table.CameraState(
            line=line,
            view=self.image.camera(camera.layout.name, now),
            signals=camera.handshake.signals(now),
            handshake=camera.handshake,
            part_number=camera.part_number,
            deadline_ms=camera.deadline_ms,
            rois=len(camera.layout.rois),
        )


def _rendered(registers: Sequence[table.Register[State]], state: State, size: int) -> list[int]:
    words = [0] * size
    for register in registers:
        value = register.value(state)
        if register.words == 2:
            words[register.offset], words[register.offset + 1] = value >> 16, value & 0xFFFF
        else:
            words[register.offset] = value
    return words
