"""The Consul HTTP API as one table of endpoints: `table.py` says what there is, the others how it is answered."""
