"""What the proxy decides, without a loop, a clock or a socket: routes, endpoints, retries and bounds."""
