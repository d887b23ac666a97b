"""prunepass: a compiler that puts training-free token reduction inside exported vision models."""

from prunepass.capture import capture

__all__ = ["capture"]
