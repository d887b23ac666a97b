"""Words that several commands take."""

from __future__ import annotations

import pytest

from prunepass.commands.words import batch_size
from prunepass.errors import UsageError


@pytest.mark.parametrize(("text", "size"), [("dynamic", None), ("1", 1), ("32", 32)])
def test_batch_sizes(text: str, size: int | None) -> None:
    assert batch_size(text) == size


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "", "two", "²", "1e3"])
def test_no_batch_sizes(text: str) -> None:
    with pytest.raises(UsageError, match="is no batch size"):
        batch_size(text)
