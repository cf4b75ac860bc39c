"""The Consul HTTP API as one table of endpoints: `table/` says what there is, the others how it is answered."""
