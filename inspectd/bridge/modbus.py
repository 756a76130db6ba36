"""The Modbus TCP server: pymodbus knows the requests and their answers, `Memory` is what they read and write.

pymodbus's own server answers one request per segment: of two that arrive together, as after a delay in the network,
the second waits for the third, and from then on a PLC reads the past. Here every request is answered as it comes.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import structlog
from pymodbus.constants import ExcCodes
from pymodbus.exceptions import ModbusException
from pymodbus.pdu import DecodePDU, ExceptionResponse, ModbusPDU

from inspectd.bridge.line import Line
from inspectd.bridge.modbus_memory import IllegalAddressError, IllegalValueError, Memory
from inspectd.bridge.process import refuse_taken
from inspectd.bridge.views import Result
from inspectd.verdict.seldom import Seldom

log = structlog.get_logger(__name__)

BITS, REGISTERS = (1, 2, 5, 15), (3, 4, 6, 16, 22, 23)
"""The function codes that are served."""

MAX_CONNECTIONS = 64
"""One more is closed at once: PLCs hold a few, and one that forgets to close shall not take the memory."""

HEADER = struct.Struct(">HHHB")
"""Transaction, protocol (0), bytes that follow after this field, unit."""

MAX_LENGTH = 254


class ModbusServer:
    """Serves a line's image. Every unit id is answered; function codes 1 to 6, 15, 16, 22 and 23."""

    def __init__(self, line: Line, host: str, port: int) -> None:
        self._context = _Context(Memory(line.image, line.handshakes, line.order))
        self._decoder = DecodePDU(is_server=True)
        self._host, self._port = host, port
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.StreamWriter] = set()
        # What a PLC does wrong it does for ever.
        self._refused, self._strange, self._bad = Seldom(), Seldom(), Seldom()

    async def start(self) -> str:
        """Open the port; returns the address.

        Raises:
            UsageError: the address cannot be bound.
        """
        refuse_taken(self._host, self._port)
        logging.getLogger("pymodbus").setLevel(logging.CRITICAL)  # it has a line for each bad request
        self._server = await asyncio.start_server(self._connected, self._host, self._port)
        host, port = self._server.sockets[0].getsockname()[:2]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    async def heard(self, result: Result | None) -> None:
        """Nothing to do: what a request reads is made when it reads."""

    async def stop(self) -> None:
        """Close the port and every connection. May be called twice."""
        if self._server is not None:
            self._server.close()
        for writer in list(self._connections):
            writer.close()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = writer.get_extra_info("peername")
        if len(self._connections) >= MAX_CONNECTIONS:
            if (more := self._refused.due()) is not None:
                log.warning("too_many_connections", peer=peer, limit=MAX_CONNECTIONS, not_logged_since=more)
            writer.close()
            return
        _keep_alive(writer.get_extra_info("socket"))
        self._connections.add(writer)
        try:
            await self._serve(reader, writer)
        except ValueError as err:
            if (more := self._strange.due()) is not None:
                log.warning("no_modbus", peer=peer, why=str(err), not_logged_since=more)
        except (asyncio.IncompleteReadError, ConnectionError, TimeoutError):
            pass  # it has left
        finally:
            self._connections.discard(writer)
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one request after the other.

        Raises:
            ValueError: what comes is no Modbus TCP; the rest of it cannot be understood.
        """
        while True:
            transaction, protocol, length, unit = HEADER.unpack(await reader.readexactly(HEADER.size))
            if protocol != 0 or not 2 <= length <= MAX_LENGTH:
                raise ValueError(f"protocol {protocol}, length {length}")
            answer = await self._answer(await reader.readexactly(length - 1))
            writer.write(HEADER.pack(transaction, 0, len(answer) + 1, unit) + answer)
            await writer.drain()

    async def _answer(self, request: bytes) -> bytes:
        function = request[0]
        answer: ModbusPDU
        if function not in BITS + REGISTERS:
            answer = ExceptionResponse(function, ExcCodes.ILLEGAL_FUNCTION)
        else:
            try:
                answer = await self._carried_out(request)
            except (ModbusException, ValueError, IndexError, struct.error):
                if (more := self._bad.due()) is not None:
                    log.warning("bad_request", request=request[:16].hex(" "), not_logged_since=more)
                answer = ExceptionResponse(function, ExcCodes.ILLEGAL_VALUE)
        return bytes([answer.function_code]) + answer.encode()

    async def _carried_out(self, request: bytes) -> ModbusPDU:
        decoded = self._decoder.decode(request)
        if decoded is None:
            raise ValueError("not to be decoded")
        context: Any = self._context  # it has what pymodbus calls, and no more
        return await decoded.datastore_update(context, 0)


class _Context:
    """What pymodbus calls to carry out a request. Nothing in it waits, so that no request sees half of another."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory

    async def async_getValues(  # noqa: N802 - pymodbus calls it so
        self, device_id: int, func_code: int, address: int, count: int = 1
    ) -> list[int] | list[bool] | ExcCodes:
        now = time.monotonic()
        try:
            if func_code in BITS:
                return self._memory.read_bits(address, count, now)
            return self._memory.read_registers(address, count, now)
        except IllegalAddressError:
            return ExcCodes.ILLEGAL_ADDRESS

    async def async_setValues(  # noqa: N802 - pymodbus calls it so
        self, device_id: int, func_code: int, address: int, values: Sequence[int] | Sequence[bool]
    ) -> ExcCodes | None:
        now = time.monotonic()
        try:
            if func_code in BITS:
                self._memory.write_bits(address, [bool(value) for value in values], now)
            else:
                self._memory.write_registers(address, values, now)
        except IllegalAddressError:
            return ExcCodes.ILLEGAL_ADDRESS
        except IllegalValueError:
            return ExcCodes.ILLEGAL_VALUE
        return None


def _keep_alive(connection: Any) -> None:
    """A PLC whose cable was pulled is gone after a minute."""
    with suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 30)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
