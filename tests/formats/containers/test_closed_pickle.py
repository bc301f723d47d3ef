"""A pickle is read as data: what is outside of its closed list is refused, and nothing is run."""

import collections
import pickle
import struct
import time

import pytest

from forensics.errors import ForensicsError
from forensics.formats.containers.closed_pickle import ClosedList, Record, read_pickle, record

PLAIN = ClosedList("plain values")
WITH_CALLS = ClosedList(
    "a test's pickle",
    values={"torch.float32": "float32"},
    calls={"collections.OrderedDict": lambda pairs=(): dict(pairs), "a.Thing": record("Thing")},
)


def refusal(data, allowed=PLAIN):
    with pytest.raises(ForensicsError) as e:
        read_pickle(data, allowed, "evil.pt")
    assert e.value.kind == "data" and "\n" not in str(e.value)
    return str(e.value)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_plain_values_come_back_as_they_are(protocol):
    document = {
        "a": [1, -5, 2**40, 2**100, 1.5, None, True, False],
        "b": ("ä\n", b"\x00\xff", {}, [], ()),
        "c": {1: {"deep": (1, (2, (3, ())))}},
    }
    if protocol > 2:  # bytes and sets of protocol 2 are calls
        assert read_pickle(pickle.dumps(document, protocol), PLAIN, "x") == document
    document["b"] = ("ä\n", {}, [], ())
    assert read_pickle(pickle.dumps(document, protocol), PLAIN, "x") == document
    shared = ["once"]
    again = read_pickle(pickle.dumps([shared, shared], protocol), PLAIN, "x")
    assert again == [["once"], ["once"]] and again[0] is again[1]


def test_sets_of_plain_values_are_sets():
    assert read_pickle(pickle.dumps({1, "a"}, 4), PLAIN, "x") == {1, "a"}
    assert read_pickle(pickle.dumps(frozenset({1, "a"}), 4), PLAIN, "x") == frozenset({1, "a"})


class Runs:
    """Would run a command where it is unpickled."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_a_pickle_that_runs_a_command_runs_nothing(protocol, tmp_path):
    import os
    import subprocess

    evil = tmp_path / "evil"
    for function, arguments, name in [
        (os.system, (f"touch {evil}",), "system"),
        (subprocess.Popen, (["touch", str(evil)],), "Popen"),
        (eval, (f"open({str(evil)!r}, 'w')",), "eval"),
        (getattr, ("", "upper"), "getattr"),
        (open, (str(evil), "w"), "open"),
    ]:
        said = refusal(pickle.dumps(Runs(function, *arguments), protocol), WITH_CALLS)
        assert name in said or protocol == 0, said
        assert not evil.exists()


def test_names_of_the_list_are_values_or_calls_of_ours():
    stream = pickle.dumps(collections.OrderedDict([("a", 1)]), 2)
    assert read_pickle(stream, WITH_CALLS, "x") == {"a": 1}
    thing = b"\x80\x02ca\nThing\n)\x81}X\x01\x00\x00\x00kK\x07sb."
    made = read_pickle(thing, WITH_CALLS, "x")
    assert isinstance(made, Record) and made.kind == "Thing" and made.field("k") == 7
    assert read_pickle(b"\x80\x02ctorch\nfloat32\n.", WITH_CALLS, "x") == "float32"
    # a class as a value is its name, never a thing that can be called
    assert read_pickle(b"\x80\x02(ca\nThing\nt.", WITH_CALLS, "x") == ("a.Thing",)


def test_a_name_of_the_list_called_with_what_it_does_not_take_is_refused():
    assert "other arguments" in refusal(
        b"\x80\x02ccollections\nOrderedDict\n(K\x01K\x02K\x03tR.", WITH_CALLS
    )


@pytest.mark.parametrize(
    ("stream", "says"),
    [
        (b"", "hold together"),
        (b"\x80\x02", "hold together"),
        (b"\x80\x02}", "hold together"),  # no end
        (b"\x80\x02.", "without its end"),  # nothing on the stack
        (b"\x80\x02K\x01K\x02.", "without its end"),  # two values
        (b"\x80\x02(K\x01.", "without its end"),  # an open mark
        (b"\x80\x09K\x01.", "protocol 9"),
        (b"\x80\x02h\x05.", "hold together"),  # a memo that was never written
        (b"\x80\x02q\x01.", "hold together"),  # an empty stack put into the memo
        (b"\x80\x02t.", "hold together"),  # no mark
        (b"\x80\x02\x85.", "hold together"),  # a tuple of nothing
        (b"\x80\x02K\x01R.", "hold together"),  # a call of a number
        (b"\x80\x02K\x01)R.", "no name of the list"),
        (b"\x80\x02K\x01K\x02a.", "no list"),
        (b"\x80\x02]K\x02K\x03s.", "no dictionary"),
        (b"\x80\x02}(K\x02u.", "no dictionary"),  # a key without a value
        (b"\x80\x02K\x01}b.", "no object"),
        (b"\x80\x02K\x01Q.", "persistent id"),
        (b"\x80\x02P1\n.", "opcode PERSID"),
        (b"\x80\x02\x82\x01.", "opcode EXT1"),
        (b"\x80\x02(ios\nsystem\n.", "opcode INST"),
        (b"\x80\x02(cos\nsystem\no.", "os.system"),
        (b"\x80\x022.", "opcode DUP"),
        (b"\x80\x02K\x01K\x02\x93.", "a name that is no text"),
        (b"\xff\xff\xff", "hold together"),
        (b"<html>404</html>", "hold together"),
        (b"\x80\x02X\xff\xff\xff\x7fabc.", "hold together"),  # text of 2 GiB that is not there
        (b"\x80\x04\x8e" + struct.pack("<Q", 1 << 60) + b"ab.", "hold together"),
        (b"\x80\x04\x95" + struct.pack("<Q", 1 << 62) + b"K\x01", "hold together"),
        (b"\x80\x02\x8a\xff" + b"\x7f" * 255 + b".", "an integer of"),
        (b"\x80\x02}(K\x01\x85K\x01u.", "a key that is a tuple"),
    ],
)
def test_what_does_not_hold_together_is_refused_in_one_line(stream, says):
    assert says in refusal(stream)


def test_a_stream_that_would_take_forever_is_refused_or_quick():
    began = time.process_time()
    # 2⁶⁰ leaves where it is walked, 60 tuples where it is not; as a key it would be hashed
    doubled = b"K\x01\x85q\x00" + b"".join(b"h%ch%c\x86q%c" % (n, n, n + 1) for n in range(60))
    assert "a key that is a tuple" in refusal(b"\x80\x02}(" + doubled + b"K\x01u.")
    deep = b"\x80\x02" + b"]" * 20_000 + b"a" * 19_999 + b"."
    assert read_pickle(deep, PLAIN, "x")
    itself = read_pickle(b"\x80\x02]q\x00h\x00a.", PLAIN, "x")
    assert itself[0] is itself
    assert time.process_time() - began < 30


def test_more_opcodes_than_any_checkpoint_has_are_refused(monkeypatch):
    from forensics.formats.containers import closed_pickle

    monkeypatch.setattr(closed_pickle, "MOST_OPCODES", 1000)
    assert "more than 1,000 opcodes" in refusal(b"\x80\x02" + b"}" * 2000 + b".")
    monkeypatch.setattr(closed_pickle, "LARGEST_PICKLE", 100)
    assert "at most 100" in refusal(b"\x80\x02" + b"}" * 2000 + b".")


def test_names_that_move_the_cursor_are_shown_harmless():
    said = refusal(b"\x80\x02cos\x1b[2J\nsys\x07tem\n.")
    assert "\x1b" not in said and "\x07" not in said


def test_a_stream_cut_anywhere_is_refused():
    document = {"a": [1, 2.5, ("x", None)], "b": collections.OrderedDict([("c", 3)])}
    stream = pickle.dumps(document, 2)
    assert read_pickle(stream, WITH_CALLS, "x") == document
    for end in range(len(stream)):
        refusal(stream[:end], WITH_CALLS)
