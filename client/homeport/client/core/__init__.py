"""The pure half of the contract: models, errors, messages, and every decision a client takes."""
