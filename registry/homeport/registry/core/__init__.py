"""The registry's decisions: store, leases, watches, catalogue, health. No loop, clock, randomness or I/O in here."""
