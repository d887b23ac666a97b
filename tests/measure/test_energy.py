"""Energy counters, read from a folder like that of the system."""

from __future__ import annotations

from pathlib import Path

from prunepass.measure.energy import _processors, energy_meter


def counter(root: Path, name: str, joules: float) -> Path:
    folder = root / name
    folder.mkdir(exist_ok=True)
    (folder / "energy_uj").write_text(f"{round(joules * 1e6)}\n")
    (folder / "max_energy_range_uj").write_text(f"{1000 * 10**6}\n")
    return folder


def test_packages_add_up_and_run_over(tmp_path: Path) -> None:
    for name, joules in (("intel-rapl:0", 990), ("intel-rapl:1", 5), ("intel-rapl:0:0", 7)):
        counter(tmp_path, name, joules)
    meters = _processors(tmp_path)
    assert len(meters) == 2  # what is inside a package is in its counter
    counter(tmp_path, "intel-rapl:0", 20)  # from 990 over 1000 to 20
    counter(tmp_path, "intel-rapl:1", 8)
    assert sum(meter() for meter in meters) == 33
    counter(tmp_path, "intel-rapl:0", 21)
    assert sum(meter() for meter in meters) == 34


def test_a_machine_that_tells_nothing(tmp_path: Path) -> None:
    assert _processors(tmp_path) == []
    folder = counter(tmp_path, "intel-rapl:0", 1)
    (folder / "energy_uj").write_text("secret")
    assert _processors(tmp_path) == []
    meter = energy_meter(powercap=tmp_path)
    assert meter is None or meter() >= 0  # a GPU may still tell
