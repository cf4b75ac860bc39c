"""The registry: `Registry` runs in your process or behind `homeport serve`."""

from homeport.registry.registry import At, Registry

__all__ = ["At", "Registry"]
