"""A pickle read as data: its opcodes are followed one by one, by a closed list of names.

    read_pickle(data, ClosedList("a torch file", calls={"collections.OrderedDict": …}), "model.pt")

Nothing is imported and nothing of the stream is called: where it asks for a name, the list gives
a plain value or a function of ours to stand in its place. A name, an opcode or a shape of data
outside of the list is refused. Objects are Records, and everything else is dicts, lists, tuples,
text and numbers. Every opcode makes at most one of these, so memory is bounded by their number;
what is built may hold itself, so who walks it bounds its depth.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from forensics.errors import ForensicsError
from forensics.visible import visible

LARGEST_PICKLE = 1 << 28  # bytes; the metadata of a checkpoint of 100,000 tensors takes a tenth
MOST_OPCODES = 30_000_000  # the metadata of 85,000 chunks (13B over 64 ranks) takes 6 million
LONGEST_INTEGER = 64  # bytes; a random number generator's state has 16
NEWEST_PROTOCOL = 5
SHOWN = 80  # characters of a refused name in its sentence


@dataclass(eq=False)
class Record:
    """An instance of a class of the closed list: its name, what it was made from, its fields."""

    kind: str
    arguments: tuple[Any, ...] = ()
    state: Any = None

    def field(self, name: str) -> Any:
        """Return one field of its state; None where it has none of that name."""
        return self.state.get(name) if isinstance(self.state, dict) else None


@dataclass(frozen=True)
class ClosedList:
    """The names that a container's pickle may hold, as "module.name"."""

    title: str  # what is read, with its article
    values: Mapping[str, Any] = field(default_factory=dict)  # names that stand for a plain value
    # names that are called, and what is called in their place; a ValueError of it is a refusal
    calls: Mapping[str, Callable[..., Any]] = field(default_factory=dict)
    # what a persistent id stands for (torch's storages); None: there are none
    persistent: Callable[[Any], Any] | None = None


def record(kind: str) -> Callable[..., Record]:
    """Make the stand-in of a class: it keeps what it is called with."""
    return lambda *arguments: Record(kind, arguments)


def read_pickle(data: bytes, allowed: ClosedList, label: str) -> Any:
    """Return what a pickle describes, as plain values. `label` names it in errors.

    Errors: data, for what is not on the list, is cut short or does not hold together.
    """
    if len(data) > LARGEST_PICKLE:
        raise _refused(
            label,
            allowed,
            f"a pickle of {len(data):,} bytes",
            f"at most {LARGEST_PICKLE:,} are read",
        )
    machine = _Machine(allowed, label)
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(data)):
            if count == MOST_OPCODES:
                raise ValueError(f"more than {MOST_OPCODES:,} opcodes")
            machine.follow(opcode.name, argument)
    except ForensicsError:
        raise
    # whatever pickletools says of bytes that are no opcode, or end too early
    except (ValueError, IndexError, OverflowError, KeyError, AttributeError) as e:
        reason = visible(str(e).splitlines()[0] if str(e) else type(e).__name__)[:SHOWN]
        raise _refused(
            label, allowed, f"a pickle that does not hold together: {reason}", "is it complete?"
        ) from None
    return machine.result()


def _refused(label: str, allowed: ClosedList, found: str, hint: str) -> ForensicsError:
    return ForensicsError("data", f"{label}: wanted {allowed.title}, found {found}", hint)


@dataclass(frozen=True)
class _Name:
    """A name of the closed list as it lies on the stack."""

    dotted: str
    call: Callable[..., Any]


KEYS = (str, int, float, bytes, type(None), Record)  # whose hash is fast whatever they hold


class _Machine:
    """The stack, the marks and the memo of one stream."""

    def __init__(self, allowed: ClosedList, label: str) -> None:
        self.allowed = allowed
        self.label = label
        self.stack: list[Any] = []
        self.marked: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.stopped = False

    def result(self) -> Any:
        """Return the one value that is left. Errors: data."""
        if not self.stopped or len(self.stack) != 1 or self.marked:
            raise _refused(self.label, self.allowed, "a pickle without its end", "is it complete?")
        return self._plain(self.stack[0])

    def follow(self, opcode: str, argument: Any) -> None:
        """Do what one opcode asks for. Errors: data."""
        if opcode in PUSHED:
            self._push_argument(argument)
        elif opcode in CONSTANTS:
            self.stack.append(CONSTANTS[opcode])
        elif opcode in EMPTY:
            self.stack.append(EMPTY[opcode]())
        elif opcode in ("BINPUT", "LONG_BINPUT"):
            self.memo[argument] = self.stack[-1]
        elif opcode in ("BINGET", "LONG_BINGET"):
            self.stack.append(self.memo[argument])
        elif opcode in ACTIONS:
            ACTIONS[opcode](self, argument)
        else:
            raise _refused(
                self.label,
                self.allowed,
                f"a pickle with the opcode {opcode}",
                "it was not followed: no trainer's checkpoint needs it",
            )

    def _push_argument(self, argument: Any) -> None:
        if isinstance(argument, int) and argument.bit_length() > 8 * LONGEST_INTEGER:
            raise ValueError(f"an integer of {argument.bit_length() // 8:,} bytes")
        self.stack.append(argument)

    def protocol(self, version: int) -> None:
        if version > NEWEST_PROTOCOL:
            raise ValueError(f"protocol {version}")

    def nothing(self, argument: Any) -> None:
        """Pass over a frame, which only says how many bytes follow."""

    def stop(self, argument: Any) -> None:
        self.stopped = True

    def memoize(self, argument: Any) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def mark(self, argument: Any) -> None:
        self.marked.append(self.stack)
        self.stack = []

    def _since_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.marked.pop()
        return items

    def tuple_since_mark(self, argument: Any) -> None:
        items = self._since_mark()
        self.stack.append(tuple(map(self._plain, items)))

    def tuple_of(self, count: int) -> None:
        if len(self.stack) < count:
            raise IndexError("an empty stack")
        self.stack[-count:] = [tuple(map(self._plain, self.stack[-count:]))]

    def append(self, argument: Any) -> None:
        self._extend([self.stack.pop()])

    def appends(self, argument: Any) -> None:
        self._extend(self._since_mark())

    def _extend(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, list):
            raise ValueError("items put into what is no list")
        target.extend(map(self._plain, items))

    def set_item(self, argument: Any) -> None:
        item = self.stack.pop()
        self._update([self.stack.pop(), item])

    def set_items(self, argument: Any) -> None:
        self._update(self._since_mark())

    def _update(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict) or len(items) % 2:
            raise ValueError("items put into what is no dictionary")
        for key, item in zip(items[::2], items[1::2]):
            target[self._key(key)] = self._plain(item)

    def add_items(self, argument: Any) -> None:
        items = self._since_mark()
        target = self.stack[-1]
        if not isinstance(target, set):
            raise ValueError("items put into what is no set")
        target.update(map(self._key, items))

    def frozen_set(self, argument: Any) -> None:
        items = self._since_mark()
        self.stack.append(frozenset(map(self._key, items)))

    def _key(self, key: Any) -> Any:
        if not isinstance(key, KEYS):
            raise ValueError(f"a key that is a {type(key).__name__}")
        return key

    def _plain(self, item: Any) -> Any:
        """Refuse a callable where a value is wanted; torch names storage kinds by their class."""
        return item.dotted if isinstance(item, _Name) else item

    def name(self, argument: str) -> None:
        module, _, attribute = argument.partition(" ")
        self._push_name(f"{module}.{attribute}")

    def stack_name(self, argument: Any) -> None:
        attribute, module = self.stack.pop(), self.stack.pop()
        if not isinstance(module, str) or not isinstance(attribute, str):
            raise ValueError("a name that is no text")
        self._push_name(f"{module}.{attribute}")

    def _push_name(self, dotted: str) -> None:
        if dotted in self.allowed.values:
            self.stack.append(self.allowed.values[dotted])
        elif dotted in self.allowed.calls:
            self.stack.append(_Name(dotted, self.allowed.calls[dotted]))
        else:
            raise _refused(
                self.label,
                self.allowed,
                f"a pickle that asks for {visible(dotted)[:SHOWN]}",
                "it was not run: only names of a closed list are read",
            )

    def call(self, argument: Any) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        if not isinstance(function, _Name) or not isinstance(arguments, tuple):
            raise ValueError("a call of what is no name of the list")
        try:
            self.stack.append(function.call(*arguments))
        except (TypeError, ValueError) as e:
            reason = str(e) if isinstance(e, ValueError) else "it takes other arguments"
            raise ValueError(f"{function.dotted}: {reason}") from None

    def build(self, argument: Any) -> None:
        """Give an object its fields; those of a plain container (an OrderedDict's) are dropped."""
        state, target = self._plain(self.stack.pop()), self.stack[-1]
        if isinstance(target, Record):
            target.state = state
        elif not isinstance(target, (dict, list, set)):
            raise ValueError("fields given to what is no object")

    def persistent(self, argument: Any) -> None:
        if self.allowed.persistent is None:
            raise _refused(
                self.label, self.allowed, "a pickle with a persistent id", "it was not followed"
            )
        self.stack.append(self.allowed.persistent(self.stack.pop()))


PUSHED = frozenset(
    (
        *("BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT"),
        *("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
        *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
    )
)
CONSTANTS: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
EMPTY: dict[str, Callable[[], Any]] = {
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_SET": set,
}
ACTIONS: dict[str, Callable[[_Machine, Any], None]] = {
    "PROTO": _Machine.protocol,
    "FRAME": _Machine.nothing,
    "STOP": _Machine.stop,
    "MEMOIZE": _Machine.memoize,
    "MARK": _Machine.mark,
    "TUPLE": _Machine.tuple_since_mark,
    "TUPLE1": lambda machine, _: machine.tuple_of(1),
    "TUPLE2": lambda machine, _: machine.tuple_of(2),
    "TUPLE3": lambda machine, _: machine.tuple_of(3),
    "APPEND": _Machine.append,
    "APPENDS": _Machine.appends,
    "SETITEM": _Machine.set_item,
    "SETITEMS": _Machine.set_items,
    "ADDITEMS": _Machine.add_items,
    "FROZENSET": _Machine.frozen_set,
    "GLOBAL": _Machine.name,
    "STACK_GLOBAL": _Machine.stack_name,
    "REDUCE": _Machine.call,
    "NEWOBJ": _Machine.call,
    "BUILD": _Machine.build,
    "BINPERSID": _Machine.persistent,
}
