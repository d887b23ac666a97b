"""Where the real weights and pictures lie, on machines that have them."""

import os
from pathlib import Path


def shared_data() -> Path | None:
    """The folder with `weights/` and `images/`: PRUNEPASS_DATA, or ../shared/data beside the
    repository; None where it does not exist."""
    named = os.environ.get("PRUNEPASS_DATA")
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(named) if named else beside
    return folder if folder.is_dir() else None
