"""From an address in a compiled kernel to the line of Metal text: the line table of DWARF 4 in an ELF library.

Source: the DWARF 4 standard, section 6.2. Elsewhere than on ELF systems every lookup answers None.
"""

from __future__ import annotations

import ctypes
import functools
import struct
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

_COPY, _ADVANCE_PC, _ADVANCE_LINE, _SET_FILE = 1, 2, 3, 4
_CONST_ADD_PC, _FIXED_ADVANCE_PC = 8, 9
_END_SEQUENCE, _SET_ADDRESS = 1, 2


class _SymbolInfo(ctypes.Structure):
    _fields_ = (
        ("file", ctypes.c_char_p),
        ("base", ctypes.c_void_p),
        ("name", ctypes.c_char_p),
        ("address", ctypes.c_void_p),
    )


@dataclass(slots=True)
class _Reader:
    data: bytes
    at: int = 0

    def number(self, width: int) -> int:
        value = int.from_bytes(self.data[self.at : self.at + width], "little")
        self.at += width
        return value

    def unsigned(self) -> int:
        """ULEB128."""
        value = shift = 0
        while True:
            byte = self.number(1)
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    def signed(self) -> int:
        """SLEB128."""
        start = self.at
        value = self.unsigned()
        bits = 7 * (self.at - start)
        return value - (1 << bits) if self.data[self.at - 1] & 0x40 else value

    def text(self) -> str:
        end = self.data.index(0, self.at)
        value = self.data[self.at : end].decode(errors="replace")
        self.at = end + 1
        return value


@dataclass(frozen=True, slots=True)
class LineTable:
    """Rows (address, line, file, end of a run) sorted by address."""

    rows: tuple[tuple[int, int, str, bool], ...] = ()
    addresses: list[int] = field(default_factory=list)

    def line(self, address: int, file: str) -> int | None:
        """The line of `file` that `address` belongs to: the closest one before it, for code inlined from elsewhere."""
        at = bisect_right(self.addresses, address) - 1
        while at >= 0 and not self.rows[at][3]:
            if self.rows[at][2] == file and self.rows[at][1]:
                return self.rows[at][1]
            at -= 1
        return None


def line_of(path: Path, address: int, file: str) -> int | None:
    """The line of `file` at a code address of a loaded library, or None where it cannot be told."""
    process = ctypes.CDLL(None)
    if not hasattr(process, "dladdr"):
        return None
    info = _SymbolInfo()
    if not process.dladdr(ctypes.c_void_p(address), ctypes.byref(info)) or not info.base:
        return None
    if Path((info.file or b"").decode()) != path:
        return None
    return line_table(path).line(address - info.base, file)


@functools.lru_cache(maxsize=64)
def line_table(path: Path) -> LineTable:
    """The line table of an ELF library; empty when it has none."""
    section = _section(path.read_bytes(), ".debug_line")
    rows = sorted(_rows(section), key=lambda row: (row[0], not row[3])) if section else []
    return LineTable(tuple(rows), [row[0] for row in rows])


def _section(image: bytes, name: str) -> bytes:
    if image[:5] != b"\x7fELF\x02":
        return b""
    table, width, count, names_at = struct.unpack_from("<Q", image, 40)[0], *struct.unpack_from("<HHH", image, 58)
    headers = [struct.unpack_from("<IIQQQQ", image, table + i * width) for i in range(count)]
    names = headers[names_at]
    for header in headers:
        start = names[4] + header[0]
        if image[start : image.index(0, start)].decode() == name:
            return image[header[4] : header[4] + header[5]]
    return b""


def _rows(section: bytes) -> Iterator[tuple[int, int, str, bool]]:
    reader = _Reader(section)
    while reader.at + 4 < len(section):
        end = reader.number(4) + reader.at
        if reader.number(2) == 4:
            yield from _unit(reader, end)
        reader.at = end


def _unit(reader: _Reader, end: int) -> Iterator[tuple[int, int, str, bool]]:
    """Runs one line program of version 4."""
    program = reader.number(4) + reader.at
    shortest, _, _ = reader.number(1), reader.number(1), reader.number(1)
    line_base = struct.unpack("<b", bytes([reader.number(1)]))[0]
    line_range, opcode_base = reader.number(1), reader.number(1)
    lengths = [reader.number(1) for _ in range(opcode_base - 1)]
    while reader.text():
        pass
    files = [""]
    while name := reader.text():
        reader.unsigned(), reader.unsigned(), reader.unsigned()
        files.append(name)
    reader.at = program
    address, line, file = 0, 1, 1
    while reader.at < end:
        code = reader.number(1)
        if code >= opcode_base:
            address += (code - opcode_base) // line_range * shortest
            line += line_base + (code - opcode_base) % line_range
            yield address, line, files[file], False
        elif code == 0:
            length = reader.unsigned()
            after = reader.at + length
            extended = reader.number(1)
            if extended == _SET_ADDRESS:
                address = reader.number(8)
            elif extended == _END_SEQUENCE:
                yield address, line, files[file], True
                address, line, file = 0, 1, 1
            reader.at = after
        elif code == _COPY:
            yield address, line, files[file], False
        elif code == _ADVANCE_PC:
            address += reader.unsigned() * shortest
        elif code == _ADVANCE_LINE:
            line += reader.signed()
        elif code == _SET_FILE:
            file = reader.unsigned()
        elif code == _CONST_ADD_PC:
            address += (255 - opcode_base) // line_range * shortest
        elif code == _FIXED_ADVANCE_PC:
            address += reader.number(2)
        else:
            for _ in range(lengths[code - 1]):
                reader.unsigned()
