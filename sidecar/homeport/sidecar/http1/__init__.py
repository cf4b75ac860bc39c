"""HTTP/1.1 on plain asyncio protocols: framing, the two ends of the proxy, and the exchange between them."""
