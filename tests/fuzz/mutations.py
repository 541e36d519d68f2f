"""What damaged and hostile files look like: changes to what a file says, and to its bytes."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from typing import Any

import yaml
from hypothesis import strategies as st

Draw = Callable[[st.SearchStrategy[Any]], Any]
Mutator = Callable[[Draw, bytes], bytes]

# Written in place of a value, and made something that json itself would not write.
_RAW = {
    "@deep@": "[" * 3000 + "]" * 3000,
    "@digits@": "9" * 5000,
    "@surrogate@": '"\\ud800"',
    "@huge@": "1e999",
}
_VALUES: list[Any] = [
    *(None, True, False, 0, -1, 1, 2, 2.0, 0.5, 1e308, 2**31, 2**63, 10**30, 20_000_000),
    *(float("nan"), float("inf"), "", "2", "x", "y" * 4000, "[/x]", "pruned[keep4]"),
    *("\x1b[31mred", "\u202eleft", "two\nlines", "../../out", "/etc/hostname", "nul\0", "é", "😀"),
    *("re:(", "-:(", r"re:(\w|\w\w|\.)+[^\w.]", "re:(?:a{60000}){60000}", "*[" * 2000),
    *([], {}, [[]], [{}], {"": None}, [1, "2", None], {"a": {"b": {"c": []}}}),
    *_RAW,
]
_CHUNKS = [
    *(b"", b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b"{", b"}", b"[" * 3000, b'"', b"\x1b[2J", b"\r"),
    *(b"NaN", b"9" * 5000, b"\xed\xa0\x80", b"\n\n", b",", b"null"),
]


def json_tree(draw: Draw, tree: Any) -> Any:
    """Change a value: replace, remove, repeat or add something somewhere in it."""
    for _ in range(draw(st.integers(1, 3))):
        tree = _changed(draw, tree, draw(st.integers(0, 6)))
    return tree


def _changed(draw: Draw, node: Any, depth: int) -> Any:
    keys = (
        list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else []
    )
    if depth and keys:
        key = keys[draw(st.integers(0, len(keys) - 1))]
        copy = dict(node) if isinstance(node, dict) else list(node)
        copy[key] = _changed(draw, copy[key], depth - 1)
        return copy
    how = draw(st.sampled_from(["replace", "replace", "remove", "add", "repeat", "empty"]))
    if isinstance(node, dict) and how in ("remove", "add", "empty"):
        if how == "add":
            return {
                **node,
                draw(st.sampled_from(["extra", "", "é", "\x1b", "layers", "-:("])): None,
            }
        left = dict(node)
        if left and how == "remove":
            del left[keys[draw(st.integers(0, len(keys) - 1))]]
            return left
        return {}
    if isinstance(node, list) and how in ("remove", "repeat", "empty"):
        return {"remove": node[:-1], "repeat": node * 2, "empty": []}[how]
    return draw(st.sampled_from(_VALUES))


def dumped(tree: Any) -> bytes:
    """Return JSON, with what json would not write in the place of its names."""
    text = json.dumps(tree)
    for name, raw in _RAW.items():
        text = text.replace(f'"{name}"', raw)
    return text.encode()


def json_file(draw: Draw, content: bytes) -> bytes:
    """Damage a JSON file."""
    if draw(st.integers(0, 4)) == 0:
        return raw_bytes(draw, content)
    return dumped(json_tree(draw, json.loads(content)))


def json_within(key: str) -> Mutator:
    """Return what damages an entry of a JSON file, most often, or else all of it."""

    def damage(draw: Draw, content: bytes) -> bytes:
        if draw(st.integers(0, 4)) == 0:
            return json_file(draw, content)
        tree = json.loads(content)
        return dumped(tree | {key: json_tree(draw, tree[key])})

    return damage


def raw_bytes(draw: Draw, content: bytes) -> bytes:
    """Damage bytes: cut them off, or put something in their place."""
    at: int = draw(st.integers(0, len(content)))
    if draw(st.booleans()):
        return content[:at]
    chunk: bytes = draw(st.sampled_from(_CHUNKS))
    return content[:at] + chunk + content[at + draw(st.integers(0, 8)) :]


def safetensors_file(draw: Draw, content: bytes) -> bytes:
    """Damage a safetensors file: its header, the length of it, or what follows."""
    length = int.from_bytes(content[:8], "little")
    header, data = content[8 : 8 + length], content[8 + length :]
    how = draw(st.sampled_from(["header", "header", "header", "shape", "length", "bytes", "data"]))
    if how == "bytes":
        return raw_bytes(draw, content)
    if how == "length":
        wrong: int = draw(st.sampled_from([0, 1, length - 1, length + 1, 2**31, 2**63, 2**64 - 1]))
        return wrong.to_bytes(8, "little") + header + data
    if how == "data":
        return content[: 8 + length] + raw_bytes(draw, data)
    tree = json.loads(header)
    if how == "shape":
        names = [name for name in tree if name != "__metadata__"]
        name = names[draw(st.integers(0, len(names) - 1))]
        shapes = [[], [0], [20_000_000, 0], [2**40, 2**40], [-1], [1.0], ["2"], [True], None]
        tree[name]["shape"] = draw(st.sampled_from(shapes))
        if draw(st.booleans()):
            tree[name]["dtype"] = draw(st.sampled_from(["BF16", "F8_E4M3", "F4", "X", 3, None]))
        if draw(st.booleans()):
            tree[name]["data_offsets"] = draw(st.sampled_from([[0, 0], [8, 4], [-4, 0], [0], []]))
    else:
        tree = json_tree(draw, tree)
    text = dumped(tree)
    return len(text).to_bytes(8, "little") + text + data


def json_lines(draw: Draw, content: bytes) -> bytes:
    """Damage a file of one JSON value a line."""
    lines = content.split(b"\n")
    at = draw(st.integers(0, max(len(lines) - 2, 0)))
    if draw(st.integers(0, 5)) == 0:
        return raw_bytes(draw, content)
    lines[at] = json_file(draw, lines[at]) if lines[at].strip() else b"{}"
    return b"\n".join(lines)


_BOMB = "a: &a [1]\n" + "".join(  # each line repeats the one before: a billion in the end
    f"{name}: &{name} [{','.join([f'*{before}'] * 9)}]\n"
    for before, name in itertools.pairwise("abcdefghij")
)
_YAML = [
    *("a: &a [*a]\n", _BOMB, "a: 2026-99-99\n", "a: !!python/object/apply:os.system [true]\n"),
    *("a: 1\na: 2\n", "? [a, b]\n: c\n", "a: " + "[" * 2000 + "]" * 2000 + "\n", "\t- a\n"),
    *("a: " + "9" * 5000 + "\n", "a: !!binary '*'\n", "a: .inf\n", "a: 0x" + "f" * 5000 + "\n"),
    *("- a\n- b\n", "just words\n", "", "a: !!int x\n", "a: !!float x\n", "a: *b\n", "<<: 3\n"),
    *("a: !!timestamp x\n", 'a: "\\ud800"\n'),
]


def yaml_file(draw: Draw, content: bytes) -> bytes:
    """Damage a YAML file."""
    how = draw(st.sampled_from(["tree", "tree", "tree", "more", "bytes"]))
    if how == "bytes":
        return raw_bytes(draw, content)
    if how == "more":
        more = draw(st.sampled_from(_YAML)).encode()
        mixed: bytes = draw(st.sampled_from([more, content + more, more + content]))
        return mixed
    tree = json_tree(draw, yaml.safe_load(content))
    text = json.dumps(tree)  # JSON is YAML
    for name, raw in _RAW.items():
        text = text.replace(f'"{name}"', raw)
    return text.encode()


def event_stream(draw: Draw, content: bytes) -> bytes:
    """Damage a stream of server-sent events."""
    events = content.split(b"\n\n")
    at = draw(st.integers(0, len(events) - 1))
    if draw(st.booleans()) or not events[at].startswith(b"data: {"):
        return raw_bytes(draw, content)
    events[at] = b"data: " + dumped(json_tree(draw, json.loads(events[at][6:])))
    return b"\n\n".join(events)
