# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Change single values in a YAML text; comments and every other byte stay as they are.

PyYAML says where a value stands, and only those characters are replaced. The result is parsed again: where it differs
from the original in anything else than that value, it is refused.
"""

from __future__ import annotations

import json
import math
import re
import typing as t

import yaml

Path = t.Sequence[str]
Pairs = list[tuple[yaml.Node, yaml.Node]]

_BREAK = re.compile(r"\r\n|[\r\n\x85\u2028\u2029]")
# Nothing that any version of YAML takes for another type, or ends early in braces.
_PLAIN = re.compile(r"[A-Za-z_][\w./-]*", re.ASCII)
_STRING, _NULL = "tag:yaml.org,2002:str", "tag:yaml.org,2002:null"
_INDENT = 2


class Refused(ValueError):
    """The text is not changed; the message is one sentence that does not name the file."""


class _Alias(yaml.Node):
    """What stands where `*name` does; PyYAML itself would give the node that has the anchor, and its place."""

    id = "alias"

    def __init__(self, target: yaml.Node, start: yaml.Mark, end: yaml.Mark) -> None:
        super().__init__("alias", target, start, end)


class _Loader(yaml.SafeLoader):
    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.shared: set[int] = set()

    def compose_node(self, parent: yaml.Node | None, index: t.Any) -> yaml.Node | None:
        if not self.check_event(yaml.AliasEvent):
            return super().compose_node(parent, index)
        event = self.peek_event()
        target = t.cast(yaml.Node, super().compose_node(parent, index))
        self.shared.add(id(target))
        return _Alias(target, event.start_mark, event.end_mark)


def set_values(text: str, values: t.Mapping[str, t.Any]) -> str:
    """The text with these values, by their dotted paths."""
    for path, value in values.items():
        text = _set(text, _parts(path), _plain(path, value))
    return text


def unset(text: str, paths: t.Iterable[str]) -> str:
    """The text without these keys. A mapping in which nothing else was goes as well."""
    for path in paths:
        text = _unset(text, _parts(path))
    return text


def put_back(text: str, original: str, values: t.Mapping[str, t.Any]) -> str:
    """The text with what the original has in place of these values, which were set in it since: the original itself
    where nothing else was changed.
    """
    if set_values(original, values) == text:
        return original
    data = _load(original)
    there, gone = {}, []
    for path in values:
        value = _get(data, _parts(path))
        if value is _MISSING:
            gone.append(path)
        else:
            there[path] = value
    return unset(set_values(text, there), gone)


# Finding.

_MISSING = object()


def _parts(path: str) -> list[str]:
    parts = path.split(".")
    if not all(parts):
        raise Refused(f"the path {path!r} is none; write the keys with a dot in between, such as api.cache.enabled")
    return parts


def _plain(path: str, value: t.Any) -> t.Any:
    """The value as plain Python, or Refused: values of several lines would need the style of the file."""
    value = json.loads(json.dumps(value))
    if isinstance(value, (dict, list)):
        raise Refused(f"{path} is to become a {'mapping' if isinstance(value, dict) else 'list'}; give a single value")
    return value


def _load(text: str) -> t.Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise _invalid(error) from None
    except RecursionError:
        raise Refused("it is nested too deeply") from None
    except ValueError as error:
        # Such as a day that no month has.
        raise Refused(f"it is no YAML that can be read ({error})") from None


def _invalid(error: yaml.YAMLError) -> Refused:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None)
    if isinstance(error, yaml.reader.ReaderError):
        problem = f"the character U+{error.character:04X} is not allowed, at position {error.position}"
    why = " ".join(str(problem or type(error).__name__).split())
    where = f" in line {mark.line + 1}" if mark else ""
    return Refused(f"it is no valid YAML{where}: {why}")


def _compose(text: str) -> tuple[yaml.Node | None, set[int]]:
    loader = _Loader(text)
    try:
        return loader.get_single_node(), loader.shared
    except yaml.YAMLError as error:
        raise _invalid(error) from None
    except RecursionError:
        raise Refused("it is nested too deeply") from None
    finally:
        loader.dispose()


def _get(data: t.Any, path: Path) -> t.Any:
    for part in path:
        if not isinstance(data, dict) or part not in data:
            return _MISSING
        data = data[part]
    return data


def _is_null(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and node.tag == _NULL


def _pair(mapping: yaml.MappingNode, path: Path) -> tuple[yaml.Node, yaml.Node] | None:
    """The key and the value that the last of the path names, where the mapping itself has it."""
    found = [
        (key, value)
        for key, value in mapping.value
        if isinstance(key, yaml.ScalarNode) and key.tag == _STRING and key.value == path[-1]
    ]
    if len(found) > 1:
        lines = " and ".join(str(key.start_mark.line + 1) for key, _value in found)
        raise Refused(f"it has {'.'.join(path)} more than once, in the lines {lines}; leave one of them")
    return found[0] if found else None


def _way(root: yaml.Node, shared: set[int], path: Path) -> tuple[list[yaml.MappingNode], yaml.Node]:
    """The mappings on the way, and what is at its end: the value, or the last mapping, which has not got the rest."""
    mappings: list[yaml.MappingNode] = []
    node = root
    for place in range(len(path) + 1):
        here = ".".join(path[:place]) or "its document"
        if isinstance(node, _Alias) or id(node) in shared:
            raise Refused(f"{here} is shared by an anchor (&) and an alias (*), so more than it would change")
        last = place == len(path)
        if last or _is_null(node):
            return mappings, node
        if not isinstance(node, yaml.MappingNode):
            raise Refused(
                f"{here} is a {'list' if isinstance(node, yaml.SequenceNode) else 'single value'}, no mapping"
            )
        mappings.append(node)
        pair = _pair(node, path[: place + 1])
        if pair is None:
            return mappings, node
        node = pair[1]
    raise AssertionError("unreachable")


def _end(text: str, node: yaml.Node) -> int:
    """Where the last character of a node ends; PyYAML counts comments and blank lines behind a block to it."""
    if isinstance(node, yaml.CollectionNode) and not node.flow_style and node.value:
        last = node.value[-1]
        return _end(text, last[1] if isinstance(last, tuple) else last)
    return int(node.end_mark.index)


def _line_end(text: str, at: int) -> tuple[int, str]:
    """Where the line ends after which something is inserted, with its break; that is empty at the end of the text."""
    if at and _BREAK.fullmatch(text[at - 1]):
        # A block of text, which ends with its line.
        return at, "\r\n" if text[:at].endswith("\r\n") else text[at - 1]
    found = _BREAK.search(text, at)
    return (found.end(), found[0]) if found else (len(text), "")


# Changing.


def _written(value: t.Any) -> str:
    """A single value as it is written in one line, also in braces."""
    if isinstance(value, str) and _PLAIN.fullmatch(value) and _load(value) == value:
        return value
    style = '"' if isinstance(value, str) else None
    text = yaml.safe_dump(value, default_style=style, width=math.inf, allow_unicode=False)
    return text.removesuffix("...\n").strip()


def _in_braces(path: Path, value: t.Any) -> str:
    """`value`, or {key: {key: value}} where there is a path to it."""
    text = _written(value)
    for part in reversed(path):
        text = f"{{{_written(part)}: {text}}}"
    return text


def _set(text: str, path: Path, value: t.Any) -> str:
    data = _load(text)
    if _same(_get(data, path), value):
        return text
    root, shared = _compose(text)
    if root is None or (_is_null(root) and root.start_mark.index == root.end_mark.index):
        # Comments at most.
        newline = _usual_break(text)
        at, ended = _line_end(text, len(text))
        edited = text + ("" if at == 0 or ended else newline) + _block(path, value, 0, newline) + newline
    else:
        mappings, node = _way(root, shared, path)
        if mappings and node is mappings[-1]:
            edited = _inserted(text, mappings, path[len(mappings) - 1 :], value)
        else:
            edited = _replaced(text, node, _in_braces(path[len(mappings) :], value), ".".join(path))
    return _proven(text, edited, _with(data, path, value), ".".join(path))


def _replaced(text: str, node: yaml.Node, new: str, shown: str) -> str:
    """The text with something else in place of a single value."""
    if not isinstance(node, yaml.ScalarNode):
        raise Refused(f"{shown} is a {'mapping' if isinstance(node, yaml.MappingNode) else 'list'}, no single value")
    start, end = node.start_mark.index, node.end_mark.index
    if start == end:
        # Nothing was written behind the colon.
        return f"{text[:start]} {new}{text[end:]}" if text[:start].endswith(":") else text
    old = text[start:end]
    if node.style in ("|", ">"):
        comment = re.match(r"[^\r\n]*?([ \t]+#[^\r\n]*)", old)
        new += (comment[1] if comment else "") + old[len(old.rstrip()) :]
    return text[:start] + new + text[end:]


def _block(path: Path, value: t.Any, indent: int, newline: str, step: int = _INDENT) -> str:
    """Keys below one another, and the value behind the last, without a break at the end."""
    lines = [f"{' ' * (indent + step * depth)}{_written(part)}:" for depth, part in enumerate(path)]
    return f"{newline.join(lines)} {_written(value)}"


def _inserted(text: str, mappings: t.Sequence[yaml.MappingNode], path: Path, value: t.Any) -> str:
    """The text with a new key at the end of the last of these mappings."""
    mapping = mappings[-1]
    if mapping.flow_style:
        first = f"{_written(path[0])}: {_in_braces(path[1:], value)}"
        if not mapping.value:
            at = mapping.end_mark.index - 1
            return text[:at] + first + text[at:]
        at = _end(text, mapping.value[-1][1])
        return f"{text[:at]}, {first}{text[at:]}"
    columns = [item.value[0][0].start_mark.column for item in mappings if not item.flow_style]
    step = columns[-1] - columns[-2] if len(columns) > 1 else _INDENT
    at, newline = _line_end(text, _end(text, mapping))
    lines = _block(path, value, columns[-1], newline or _usual_break(text), step)
    return f"{text[:at]}{lines}{newline}{text[at:]}" if newline else f"{text}{_usual_break(text)}{lines}"


def _usual_break(text: str) -> str:
    found = _BREAK.search(text)
    return found[0] if found else "\n"


def _unset(text: str, path: Path) -> str:
    data = _load(text)
    if _get(data, path) is _MISSING:
        return text
    root, shared = _compose(text)
    if root is None:
        return text
    mappings, _node = _way(root, shared, path)
    if len(mappings) < len(path) or _pair(mappings[-1], path) is None:
        raise Refused(f"{'.'.join(path)} comes from a merge key (<<), so it cannot be removed there")
    while len(path) > 1 and len(mappings[-1].value) == 1:
        path, mappings = path[:-1], mappings[:-1]
    edited = _removed(text, mappings[-1], t.cast("tuple[yaml.Node, yaml.Node]", _pair(mappings[-1], path)))
    return _proven(text, edited, _without(data, path), ".".join(path))


def _removed(text: str, mapping: yaml.MappingNode, pair: tuple[yaml.Node, yaml.Node]) -> str:
    pairs: Pairs = mapping.value
    place = next(index for index, item in enumerate(pairs) if item[0] is pair[0])
    start, end = pair[0].start_mark.index, _end(text, pair[1])
    if mapping.flow_style:
        if place:
            start = _end(text, pairs[place - 1][1])
        elif len(pairs) > 1:
            end = pairs[1][0].start_mark.index
        return text[:start] + text[end:]
    start -= pair[0].start_mark.column
    end, newline = _line_end(text, end)
    if not newline and start:
        # The break before it was no break at the end of the text.
        start -= 2 if text[:start].endswith("\r\n") else 1
    return text[:start] + text[end:]


# Proving.


def _with(data: t.Any, path: Path, value: t.Any) -> t.Any:
    if not path:
        return value
    data = {} if data is None else data
    return {**data, path[0]: _with(data.get(path[0]), path[1:], value)}


def _without(data: t.Any, path: Path) -> t.Any:
    if len(path) == 1:
        return {key: value for key, value in data.items() if key != path[0]}
    return {**data, path[0]: _without(data[path[0]], path[1:])}


def _proven(text: str, edited: str, wanted: t.Any, shown: str) -> str:
    """The edited text, or Refused where it says something else than it is to say."""
    try:
        found = _load(edited)
        # Nothing at all is what an empty mapping becomes.
        good = edited != text and (_same(found, wanted) or (found is None and wanted == {}))
    except (Refused, RecursionError):
        good = False
    if not good:
        raise Refused(
            f"{shown} cannot be changed without changing something else (an anchor, a merge key, or an unusual way of "
            "writing it); edit it by hand"
        )
    return edited


def _same(one: t.Any, other: t.Any) -> bool:
    """Equal, and of the same type: to YAML, true is not 1."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return len(one) == len(other) and all(key in other and _same(value, other[key]) for key, value in one.items())
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(_same, one, other))
    return one == other or (isinstance(one, float) and math.isnan(one) and math.isnan(other))
