"""Where what is made once on a machine is kept."""

from __future__ import annotations

import os
from pathlib import Path


def user_cache() -> Path:
    """This package's folder in the user's cache; it may not exist yet."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "prunepass"
