# SPDX-License-Identifier: GPL-3.0-or-later
"""The message classes of kyrodb.proto, in a descriptor pool of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

PROTO_FILE = Path(__file__).resolve().parent.parent / "kyrodb.proto"
SERVICE = "kyrodb.v1.KyroDBService"


def compile_descriptors(target: Path) -> Path:
    """Compile the .proto file into a descriptor set: once per start of a lab, so that its processes need not."""
    from grpc_tools import protoc

    arguments = ["protoc", f"-I{PROTO_FILE.parent}", f"--descriptor_set_out={target}", PROTO_FILE.name]
    if protoc.main(arguments) != 0:
        raise RuntimeError(f"protoc could not compile {PROTO_FILE}")
    return target


class Protocol:
    """Message classes by name and (request, response) classes by method.

    A private pool: other code in the same process may register its own idea of kyrodb.v1 in the default one.
    """

    def __init__(self, descriptor_set: Path) -> None:
        files = descriptor_pb2.FileDescriptorSet.FromString(descriptor_set.read_bytes())
        pool = descriptor_pool.DescriptorPool()
        for file in files.file:
            pool.Add(file)
        self.messages: dict[str, Any] = {
            message.name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{file.package}.{message.name}"))
            for file in files.file
            for message in file.message_type
        }
        service = pool.FindServiceByName(SERVICE)
        self.methods: dict[str, tuple[Any, Any]] = {
            method.name: (self.messages[method.input_type.name], self.messages[method.output_type.name])
            for method in service.methods
        }

    def stub(self, channel: Any, method: str) -> Any:
        """The callable for one method of the service on a (synchronous or asyncio) channel."""
        _request, response = self.methods[method]
        return channel.unary_unary(
            f"/{SERVICE}/{method}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=response.FromString,
        )
