"""Bodies that are made to fill a set or a mapping slowly.

Python's hashes of numbers are known to everybody: all multiples of 2**61 - 1 have the hash 0, and
a set of 50,000 of them takes ten seconds to fill. Texts are safe, as their hashes differ from one
process to the next. So where a task's annotations have numbers, or UUIDs, which are numbers, as
members of a set or as keys, their hashes are looked at before the set is made.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

from msgspec import inspect

from workqueue.errors import BadPayload

MOST_ALIKE = 500
"""Different values of the same hash that are taken. By chance there are not even two."""

SHORT = 10_000
"""Bytes of a body that cannot have so many."""

LONG_NUMBER = re.compile(rb"[0-9]{19,}")
"""Shorter ones have no more than four of the same hash, as it is their remainder."""

UUID = re.compile(rb'"((?:[0-9a-fA-F]-?){32})"')

LONGEST_NUMBER = 100
"""Digits. No more are turned into a number; those with more count as alike."""

SAFE = (
    *(inspect.StrType, inspect.BytesType, inspect.BoolType, inspect.NoneType, inspect.EnumType),
    *(inspect.LiteralType, inspect.DateTimeType, inspect.DateType, inspect.TimeType),
)
"""Types whose values are few, or whose hashes are those of texts."""


def hashes_numbers(shape: type[Any]) -> bool:
    """Whether what is decoded as `shape` has sets or mappings of what may be numbers."""
    return any(map(is_exposed, types_in(inspect.type_info(shape), set())))


def is_exposed(found: inspect.Type) -> bool:
    match found:
        case inspect.SetType(item_type=member) | inspect.FrozenSetType(item_type=member):
            return not isinstance(member, SAFE)
        case inspect.DictType(key_type=key):
            return not isinstance(key, (*SAFE, inspect.AnyType))  # of any: JSON's keys are texts
    return False


def types_in(found: Any, seen: set[int]) -> Iterator[inspect.Type]:
    """`found`, and all types that it is made of. `seen` keeps it from going in circles."""
    if isinstance(found, tuple):
        for part in found:
            yield from types_in(part, seen)
    elif isinstance(found, inspect.Field):
        yield from types_in(found.type, seen)
    elif isinstance(found, inspect.Type) and id(found) not in seen:
        seen.add(id(found))
        yield found
        for name in found.__struct_fields__:
            yield from types_in(getattr(found, name), seen)


def check_collisions(body: bytes) -> None:
    """Raise BadPayload for a body with many different numbers that have the same hash."""
    texts = set(LONG_NUMBER.findall(body))
    numbers = [int(text) for text in texts if len(text) <= LONGEST_NUMBER]
    alike = [len(texts) - len(numbers), most_alike(numbers)]
    alike.append(most_alike([int(text.replace(b"-", b""), 16) for text in set(UUID.findall(body))]))
    if max(alike) > MOST_ALIKE:
        raise BadPayload(f"{max(alike)} numbers of the body have the same hash: it is made to harm")


def most_alike(numbers: list[int]) -> int:
    """How many of different numbers share a hash, at most."""
    if len(numbers) <= MOST_ALIKE:
        return 0
    return max(Counter(map(hash, numbers)).values())
