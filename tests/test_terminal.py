"""What a command says, where nobody looks at a terminal."""

from __future__ import annotations

import pytest

from prunepass.terminal import Say, plain

COLUMNS, ROWS = ("site", "tokens"), [["block[0].attention", "197"], ["block[10].mlp", "8"]]


def test_a_table_is_plain_text(capsys: pytest.CaptureFixture[str]) -> None:
    Say().table(COLUMNS, ROWS)
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "block[0].attention     197"
    assert lines[2] == "block[10].mlp            8"
    assert plain(COLUMNS, [["x" * 300, "1"]], [False, True])[1].endswith("  " + " " * 5 + "1")


def test_words_go_where_they_belong(capsys: pytest.CaptureFixture[str]) -> None:
    say = Say(json=True)
    say("done")
    say.table(COLUMNS, ROWS)
    found = capsys.readouterr()
    assert found.out == ""
    assert "done" in found.err
    assert "197" in found.err


def test_quiet_says_results_only(capsys: pytest.CaptureFixture[str]) -> None:
    say = Say(quiet=True)
    say("working", stage=True)
    say("done")
    with say.bar("pictures", 3) as advance:
        advance(3)
    assert capsys.readouterr().out == "done\n"
    silent = Say(quiet=True, json=True)
    silent("done")
    silent.table(COLUMNS, ROWS)
    assert capsys.readouterr() == ("", "")


def test_brackets_are_text_in_a_drawn_table(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    Say().table(COLUMNS, ROWS)
    text = capsys.readouterr().out
    assert "block[0].attention" in text
    assert "─" in text
