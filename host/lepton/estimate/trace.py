"""Timelines of lists for Perfetto, in the JSON of Chrome's trace events."""

from collections.abc import Sequence
from typing import Any

from lepton_hw.activity import UNITS, Activity
from lepton_hw.commands import FIELDS, Command


def timeline(
    commands: Sequence[Command],
    activities: Sequence[Activity],
    *,
    clock: float,
    labels: Sequence[str] | None = None,
) -> dict[str, Any]:
    """The trace events of a list on a core of ``clock`` MHz: a track for each unit; times are in microseconds.

    ``labels`` say of each command what it is for, or nothing; they are part of the names of its events.
    """
    events: list[dict[str, Any]] = [
        {"ph": "M", "name": "process_name", "pid": 0, "tid": 0, "args": {"name": "lepton"}},
    ]
    for number, unit in enumerate(UNITS):
        events.append({"ph": "M", "name": "thread_name", "pid": 0, "tid": number, "args": {"name": unit}})
        events.append({"ph": "M", "name": "thread_sort_index", "pid": 0, "tid": number, "args": {"sort_index": number}})
    for activity in activities:
        command = commands[activity.command]
        label = labels[activity.command] if labels else ""
        events.append(
            {
                "ph": "X",
                "name": f"{command.opcode.name} {label}".rstrip(),
                "cat": activity.unit,
                "pid": 0,
                "tid": UNITS.index(activity.unit),
                "ts": activity.begin / clock,
                "dur": (activity.end - activity.begin) / clock,
                "args": {
                    "command": activity.command,
                    "cycles": activity.end - activity.begin,
                    **({"label": label} if label else {}),
                    **_fields(command),
                },
            }
        )
    return {"displayTimeUnit": "ns", "traceEvents": events}


def _fields(command: Command) -> dict[str, str]:
    values = {field.name: getattr(command, field.name) for field in FIELDS[command.opcode] if field.name != "opcode"}
    return {name: str(value) for name, value in values.items() if value != 0}
