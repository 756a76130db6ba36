"""The OPC UA server: asyncua speaks the protocol, `opcua_tree` says what is there, the image what it is worth."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar

import structlog
from asyncua import Node, ua
from asyncua.common.connection import TransportLimits
from asyncua.server import EventGenerator
from asyncua.server import Server as UaServer

from inspectd import __version__
from inspectd.bridge import codes
from inspectd.bridge import opcua_tree as tree
from inspectd.bridge.line import Line
from inspectd.bridge.opcua_methods import Answer, arguments_of, bad_status, select_recipe_of, trigger_of, type_id
from inspectd.bridge.opcua_security import ReadersOnly, Security
from inspectd.bridge.process import refuse_taken
from inspectd.bridge.views import LineView, Result, RoiView
from inspectd.errors import UsageError

log = structlog.get_logger(__name__)

MAX_MESSAGE_BYTES = 4 * 1024 * 1024
SEVERITY = {"pass": 100, "no_result": 500, "fail": 700, "fail_safe": 900}

State = TypeVar("State")


class OpcUaServer:
    """Serves a line's image as variables, events and methods. Nobody may write into it."""

    def __init__(self, line: Line, host: str, port: int, security: Security | None) -> None:
        self._line = line
        self._host, self._port = host, port
        self._security = security
        self._server: UaServer | None = None
        self._namespace = 0
        self._shown: dict[str, Any] = {}  # path of a group of variables -> the view that they show
        self._was_safe: bool | None = None
        self._results: list[EventGenerator] = []
        self._ready: list[EventGenerator] = []
        self._writing = asyncio.Lock()

    async def start(self) -> str:
        """Build the tree and open the port; returns the address. Takes a second or two.

        Raises:
            UsageError: the address cannot be bound, or a certificate or key cannot be used.
        """
        refuse_taken(self._host, self._port)
        if self._security is not None:
            self._security.check()
        logging.getLogger("asyncua").setLevel(logging.WARNING)
        server = UaServer(user_manager=ReadersOnly(self._security))
        await server.init()
        server.allow_remote_admin(False)
        host = f"[{self._host}]" if ":" in self._host else self._host
        server.set_endpoint(f"opc.tcp://{host}:{self._port}/inspectd/")
        server.set_server_name("inspectd")
        server.limits = TransportLimits(max_message_size=MAX_MESSAGE_BYTES, max_chunk_count=64)
        await server.set_build_info(
            "urn:inspectd", "inspectd", "inspectd OPC UA bridge", __version__, "0", datetime.now(UTC)
        )
        server.set_identity_tokens([ua.AnonymousIdentityToken])
        if self._security is None:
            server.set_security_policy([ua.SecurityPolicyType.NoSecurity])
        else:
            await self._security.apply(server)
        self._namespace = await server.register_namespace(tree.NAMESPACE)
        self._server = server
        await self._build(server)
        await self.heard(None)
        try:
            await server.start()
        except OSError as err:
            raise UsageError(f"--bind {self._host}:{self._port}: cannot be bound; choose another") from err
        return f"opc.tcp://{host}:{self._bound_port(server)}/inspectd/"

    async def heard(self, result: Result | None) -> None:
        """Bring the variables up to date, and tell of a result and of a change of ready."""
        async with self._writing:
            if self._server is None:
                return
            # One instant for all; and no write of asyncua waits, so that no client reads half an update.
            now = time.monotonic()
            image = self._line.image
            line = image.line(now)
            await self._show(tree.ROOT, tree.LINE, line, line)
            for camera in self._line.layout.cameras:
                view = image.camera(camera.name, now)
                await self._show(tree.camera_path(camera.name), tree.CAMERA, view, view)
                for roi in camera.rois:
                    seen = image.roi(camera.name, roi.name, now)
                    await self._show(tree.roi_path(camera.name, roi.name), tree.ROI, seen, _without_age(seen))
            await self._tell_ready(line)
            if result is not None:
                await self._tell_result(result, image.roi(result.camera, result.roi, now))

    async def stop(self) -> None:
        """Close the port and every session. May be called twice."""
        server, self._server = self._server, None
        if server is not None:
            await server.stop()

    # -- the tree ---------------------------------------------------------------------------------------

    async def _build(self, server: UaServer) -> None:
        root = await self._object(server.nodes.objects, tree.ROOT, tree.ROOT)
        await self._variables(root, tree.ROOT, tree.LINE)
        await self._method(root, tree.ROOT, tree.SELECT_RECIPE, select_recipe_of(self._line))
        cameras = await self._object(root, f"{tree.ROOT}.Cameras", "Cameras")
        for camera in self._line.layout.cameras:
            path = tree.camera_path(camera.name)
            node = await self._object(cameras, path, camera.name)
            await self._variables(node, path, tree.CAMERA)
            await self._method(node, path, tree.TRIGGER, trigger_of(self._line, camera.name))
            regions = await self._object(node, f"{path}.Regions", "Regions")
            for roi in camera.rois:
                roi_path = tree.roi_path(camera.name, roi.name)
                await self._variables(await self._object(regions, roi_path, roi.name), roi_path, tree.ROI)
        self._results = await self._event_type(server, root, tree.RESULT_EVENT, tree.RESULT_FIELDS)
        self._ready = await self._event_type(server, root, tree.READY_EVENT, tree.READY_FIELDS)

    async def _object(self, parent: Node, path: str, name: str) -> Node:
        return await parent.add_object(self._id(path), ua.QualifiedName(name, self._namespace))

    async def _variables(self, parent: Node, path: str, variables: Sequence[tree.Variable[Any]]) -> None:
        for each in variables:
            kind = ua.VariantType[each.type]
            node = await parent.add_variable(
                self._id(f"{path}.{each.name}"),
                ua.QualifiedName(each.name, self._namespace),
                ua.get_default_value(kind),
                varianttype=kind,
                datatype=type_id(each.type),
            )
            await self._describe(node, each.meaning)

    async def _method(self, parent: Node, path: str, method: tree.Method, answer: Answer) -> None:
        node = await parent.add_method(
            self._id(f"{path}.{method.name}"),
            ua.QualifiedName(method.name, self._namespace),
            answer,
            arguments_of(method.inputs),
            arguments_of(method.outputs),
        )
        await self._describe(node, method.meaning)

    async def _event_type(
        self, server: UaServer, root: Node, name: str, fields: Sequence[tree.Variable[Any]]
    ) -> list[EventGenerator]:
        """A generator each for the two nodes at which clients listen: ours, and the server's."""
        kind = await server.create_custom_event_type(
            self._namespace, name, properties=[(each.name, ua.VariantType[each.type]) for each in fields]
        )
        return [await server.get_event_generator(kind, node) for node in (root.nodeid, server.nodes.server.nodeid)]

    async def _describe(self, node: Node, meaning: str) -> None:
        await node.write_attribute(ua.AttributeIds.Description, ua.DataValue(ua.Variant(ua.LocalizedText(meaning))))

    def _id(self, path: str) -> ua.NodeId:
        return ua.NodeId(ua.String(path), ua.Int16(self._namespace))

    def _bound_port(self, server: UaServer) -> int:
        listening: Any = server.bserver
        return int(listening._server.sockets[0].getsockname()[1])  # noqa: SLF001 - port 0 is any free one

    # -- what is shown ----------------------------------------------------------------------------------

    async def _show(self, path: str, variables: Sequence[tree.Variable[State]], view: State, shown: object) -> None:
        """Write the group of variables below `path`, all with one time, unless it shows just that already."""
        if self._shown.get(path) == shown:
            return
        self._shown[path] = shown
        assert self._server is not None
        bad = None
        if isinstance(view, RoiView) and view.verdict == codes.FAIL_SAFE:
            bad = bad_status(tree.BAD[view.reason])
        time_: Any = datetime.now(UTC)
        for each in variables:
            if bad is not None and each.guarded:
                value = ua.DataValue(ua.Variant(None), bad, SourceTimestamp=time_)
            else:
                value = ua.DataValue(ua.Variant(each.value(view), ua.VariantType[each.type]), SourceTimestamp=time_)
            await self._server.write_attribute_value(self._id(f"{path}.{each.name}"), value)

    async def _tell_result(self, message: Result, view: RoiView) -> None:
        state = tree.ResultOf(message, view)
        shown = next(code.name for code in codes.VERDICTS if code.number == view.verdict)
        for generator in self._results:
            _fill(generator, tree.RESULT_FIELDS, state)
            generator.event.Severity = SEVERITY[shown]
            await generator.trigger(message=f"{message.camera}/{message.roi}: {shown}")

    async def _tell_ready(self, line: LineView) -> None:
        if line.safe == self._was_safe:
            return
        self._was_safe = line.safe
        for generator in self._ready:
            _fill(generator, tree.READY_FIELDS, line)
            generator.event.Severity = SEVERITY["pass" if line.safe else "fail_safe"]
            await generator.trigger(message="ready" if line.safe else f"not ready: {line.reason.name}")


def _fill(generator: EventGenerator, fields: Sequence[tree.Variable[State]], state: State) -> None:
    for each in fields:
        setattr(generator.event, each.name, each.value(state))


def _without_age(view: RoiView) -> tuple[object, ...]:
    """What a region shows: the age is no variable, and must not make everything new."""
    return view.verdict, view.reason, view.result, view.label, view.count, view.seq
