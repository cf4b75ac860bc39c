"""Drives kombu's Consul transport, unmodified: queues of messages kept as keys, under locks."""

from __future__ import annotations

import importlib
import sys
from typing import Any

kombu: Any = importlib.import_module("kombu")


def main() -> None:
    host, _, port = sys.argv[1].rpartition(":")
    with kombu.Connection(transport="consul", hostname=host, port=int(port)) as connection:
        queue = connection.SimpleQueue("orders")
        for number in range(5):
            queue.put({"order": number})
        assert queue.qsize() == 5, queue.qsize()
        taken = []
        for _ in range(5):
            message = queue.get(block=True, timeout=10)
            taken.append(message.payload["order"])
            message.ack()
        assert taken == [0, 1, 2, 3, 4], taken
        assert queue.qsize() == 0
        queue.put({"order": 5})
        assert queue.clear() == 1
        try:
            queue.get(block=False)
        except queue.Empty:
            pass
        else:
            raise AssertionError("an empty queue gave a message")
        queue.close()
    print("all is well")


if __name__ == "__main__":
    main()
