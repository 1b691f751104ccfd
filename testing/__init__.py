"""What workflows are tested with: a clock that can be set, and the invariants that prove AEGIS itself."""

from .clock import Clock

__all__ = ["Clock"]
