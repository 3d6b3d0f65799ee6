"""Limits on containers as an OCI configuration's ``linux.resources``."""

from __future__ import annotations

from typing import Any

from ctd.runtime.interfaces import Resources

#: In microseconds: the time that a CPU quota is for.
CPU_PERIOD = 100_000


def linux_resources(limits: Resources) -> dict[str, Any]:
    """What *limits* say, and nothing on what they do not: also what an update takes."""
    memory = _given(limit=limits.memory, swap=limits.memory_swap)
    cpu = _given(shares=limits.cpu_shares, cpus=limits.cpuset_cpus)
    if limits.cpus is not None:
        cpu.update(quota=round(limits.cpus * CPU_PERIOD), period=CPU_PERIOD)
    pids = _given(limit=limits.pids)
    return {
        name: value for name, value in (("memory", memory), ("cpu", cpu), ("pids", pids)) if value
    }


def _given(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}
