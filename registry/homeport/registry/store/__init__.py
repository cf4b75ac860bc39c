"""The narrow waist: one revisioned key-value store with leases, transactions and watches, and its backends."""
