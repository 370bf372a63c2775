"""Joules from a directory like the kernel's."""

from pathlib import Path

import pytest

from distsage.train.collectives import Collectives
from distsage.train.energy import Energy
from distsage.train.usage import Usage


@pytest.fixture
def powercap(tmp_path: Path) -> Path:
    """Two packages, one with its cores and memory, and the whole platform."""
    for zone, name in {
        "intel-rapl:0": "package-0",
        "intel-rapl:0:0": "core",
        "intel-rapl:0:1": "dram",
        "intel-rapl:1": "package-1",
        "intel-rapl:2": "psys",
    }.items():
        (tmp_path / zone).mkdir()
        (tmp_path / zone / "name").write_text(f"{name}\n")
        (tmp_path / zone / "max_energy_range_uj").write_text("9000000\n")
        (tmp_path / zone / "energy_uj").write_text("1000000\n")
    return tmp_path


def test_packages_and_memory_count_once(powercap: Path) -> None:
    energy = Energy(powercap)
    assert energy.joules() == 0.0
    for zone, microjoules in {"0": 3_000_000, "0:0": 2_000_000, "0:1": 1_500_000}.items():
        (powercap / f"intel-rapl:{zone}" / "energy_uj").write_text(f"{microjoules}\n")
    (powercap / "intel-rapl:2" / "energy_uj").write_text("8000000\n")
    assert energy.joules() == pytest.approx(2.5)
    assert energy.joules() == pytest.approx(2.5)


def test_a_counter_goes_round(powercap: Path) -> None:
    energy = Energy(powercap)
    (powercap / "intel-rapl:0" / "energy_uj").write_text("8000000\n")
    assert energy.joules() == pytest.approx(7.0)
    (powercap / "intel-rapl:0" / "energy_uj").write_text("500000\n")
    assert energy.joules() == pytest.approx(8.5)


def test_where_the_kernel_does_not_tell(powercap: Path, tmp_path: Path) -> None:
    assert Energy(tmp_path / "none").joules() is None
    (powercap / "intel-rapl:1" / "energy_uj").unlink()  # or it may not be read
    assert Energy(powercap).joules() is None
    energy = Energy(powercap)
    assert energy.joules() is None


def test_the_records_have_the_joules_of_an_epoch(powercap: Path, tmp_path: Path) -> None:
    usage = Usage(Collectives(), powercap=powercap)
    for microjoules, joules in ((3_000_000, 2.0), (3_500_000, 0.5)):
        (powercap / "intel-rapl:1" / "energy_uj").write_text(f"{microjoules}\n")
        (host,) = usage.of_epoch([0.1])["hosts"]
        assert host["energy_joules"] == joules
    nowhere = Usage(Collectives(), powercap=tmp_path / "none")
    assert nowhere.of_epoch([0.1])["hosts"][0]["energy_joules"] is None
