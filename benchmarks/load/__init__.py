"""Generators of load: wrk for HTTP; processes of our own for MessagePack-RPC and gRPC, which have no public one."""
