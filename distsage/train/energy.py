"""Energy that a host takes, where the kernel tells it. Runs on trainer ranks.

Linux has counters of joules in /sys/class/powercap (RAPL); often only root may read them. Virtual
machines have none.
"""

import threading
from pathlib import Path

POWERCAP = Path("/sys/class/powercap")
# A counter of the least range, 65 kJ, goes round in over a minute at a kilowatt.
_LOOK_SECONDS = 30.0


class Energy:
    """Counts joules from now on; a thread looks before a counter can have gone round twice.

    Args:
        powercap: the kernel's directory.
    """

    def __init__(self, powercap: Path = POWERCAP) -> None:
        self._zones = [zone for zone in sorted(powercap.glob("intel-rapl:*")) if _counts(zone)]
        self._last = [_read(zone / "energy_uj") for zone in self._zones]
        self._joules = 0.0
        self._lock = threading.Lock()
        if self.joules() is not None:
            threading.Thread(target=self._look, name="energy", daemon=True).start()

    def joules(self) -> float | None:
        """Since the beginning; None where the kernel does not tell."""
        with self._lock:
            if not self._zones or None in self._last:
                return None
            for at, zone in enumerate(self._zones):
                now, before = _read(zone / "energy_uj"), self._last[at]
                self._last[at] = now
                if now is None or before is None:
                    return None
                if now < before:
                    before -= _read(zone / "max_energy_range_uj") or 0
                self._joules += (now - before) / 1e6
            return self._joules

    def _look(self) -> None:
        wait = threading.Event().wait
        while not wait(_LOOK_SECONDS) and self.joules() is not None:
            pass


def _counts(zone: Path) -> bool:
    """Whether a zone adds to the whole: packages, and memory, which is not in them.

    Cores are part of their package, and psys has the packages in it.
    """
    try:
        name = (zone / "name").read_text().strip()
    except OSError:
        return False
    return name.startswith("package") or name == "dram"


def _read(file: Path) -> int | None:
    try:
        return int(file.read_text())
    except (OSError, ValueError):
        return None
