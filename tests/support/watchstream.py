"""A Watch stream over gRPC, for tests against any etcd v3 server."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from typing import Any

import grpc

from kvnode.proto import rpc_pb2

OPTIONS = [
    ("grpc.initial_reconnect_backoff_ms", 20),
    # also how long an attempt may take
    ("grpc.min_reconnect_backoff_ms", 5000),
    ("grpc.max_reconnect_backoff_ms", 100),
    ("grpc.max_receive_message_length", -1),
    ("grpc.use_local_subchannel_pool", 1),
]
Ended = grpc.RpcError
"""What `WatchStream.get` raises once the stream has ended; it has code() and details()."""


def dial(endpoint: str, *options: tuple[str, int]) -> grpc.Channel:
    return grpc.insecure_channel(endpoint, [*OPTIONS, *options])


class Kv:
    """The KV service of a channel."""

    def __init__(self, channel: grpc.Channel) -> None:
        def unary(name: str, response: Any) -> Any:
            return channel.unary_unary(
                f"/etcdserverpb.KV/{name}",
                request_serializer=lambda m: m.SerializeToString(),
                response_deserializer=response.FromString,
            )

        self.put_call = unary("Put", rpc_pb2.PutResponse)
        self.range_call = unary("Range", rpc_pb2.RangeResponse)
        self.delete_call = unary("DeleteRange", rpc_pb2.DeleteRangeResponse)
        self.txn_call = unary("Txn", rpc_pb2.TxnResponse)
        self.compact_call = unary("Compact", rpc_pb2.CompactionResponse)

    def put(self, key: bytes, value: bytes, timeout: float = 20) -> int:
        """The revision it made."""
        request = rpc_pb2.PutRequest(key=key, value=value)
        return int(self.put_call(request, timeout=timeout, wait_for_ready=True).header.revision)

    def delete(self, key: bytes, end: bytes = b"") -> rpc_pb2.DeleteRangeResponse:
        request = rpc_pb2.DeleteRangeRequest(key=key, range_end=end)
        response: rpc_pb2.DeleteRangeResponse = self.delete_call(request, timeout=20)
        return response

    def txn(self, *puts: tuple[bytes, bytes | None]) -> rpc_pb2.TxnResponse:
        """Puts (key, value) and deletes (key, None) in one revision."""
        request = rpc_pb2.TxnRequest()
        for key, value in puts:
            if value is None:
                request.success.add().request_delete_range.key = key
            else:
                put = request.success.add().request_put
                put.key, put.value = key, value
        response: rpc_pb2.TxnResponse = self.txn_call(request, timeout=20)
        return response

    def compact(self, revision: int) -> None:
        self.compact_call(rpc_pb2.CompactionRequest(revision=revision), timeout=20)

    def count(self, key: bytes, end: bytes) -> int:
        request = rpc_pb2.RangeRequest(key=key, range_end=end, count_only=True)
        return int(self.range_call(request, timeout=20).count)


class WatchStream:
    """One call of Watch. Responses are read by a thread, as a client does that keeps up."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._requests: queue.SimpleQueue[rpc_pb2.WatchRequest | None] = queue.SimpleQueue()
        self._responses: queue.SimpleQueue[Any] = queue.SimpleQueue()
        method = channel.stream_stream(
            "/etcdserverpb.Watch/Watch",
            request_serializer=lambda m: m.SerializeToString(),
            response_deserializer=rpc_pb2.WatchResponse.FromString,
        )
        self._call = method(iter(self._requests.get, None), wait_for_ready=True)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        try:
            for response in self._call:
                self._responses.put(response)
        except grpc.RpcError as error:
            self._responses.put(error)
        else:
            self._responses.put(RuntimeError("the stream ended with OK"))

    def send(self, request: rpc_pb2.WatchRequest) -> None:
        self._requests.put(request)

    def create(self, **fields: Any) -> None:
        self.send(rpc_pb2.WatchRequest(create_request=rpc_pb2.WatchCreateRequest(**fields)))

    def cancel(self, watch_id: int) -> None:
        request = rpc_pb2.WatchCancelRequest(watch_id=watch_id)
        self.send(rpc_pb2.WatchRequest(cancel_request=request))

    def ask_progress(self) -> None:
        self.send(rpc_pb2.WatchRequest(progress_request=rpc_pb2.WatchProgressRequest()))

    def get(self, seconds: float) -> rpc_pb2.WatchResponse | None:
        """The next response; None when none comes in time. Raises `Ended`."""
        try:
            response = self._responses.get(timeout=seconds)
        except queue.Empty:
            return None
        if isinstance(response, Exception):
            self._responses.put(response)
            raise response
        assert isinstance(response, rpc_pb2.WatchResponse)
        return response

    def here(self) -> Iterator[rpc_pb2.WatchResponse]:
        """What has come already."""
        while (response := self.get(0.0)) is not None:
            yield response

    def close(self) -> None:
        self._call.cancel()
        self._requests.put(None)
        self._reader.join(10)
