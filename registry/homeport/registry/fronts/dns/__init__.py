"""The DNS front: services, nodes and addresses as names, over UDP and TCP; docs/dns.md is its contract."""
