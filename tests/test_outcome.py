"""A child's reply is a stranger's: malformed ones are refused as such, on the wire and after parsing.

Long because it is mostly a table of malformed replies.
"""

import contextlib
import copy
import json
import math
import socket
import struct
import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fuzzrope.outcome import Access, Gradients, Launch, Outcome, Output, Raised, ReplyError, from_reply
from fuzzrope.run import wire

OUTPUT = {
    "type": "Tensor",
    "dtype": "float32",
    "shape": [2, 3],
    "strides": [3, 1],
    "device": "cuda",
    "has_data": True,
    "shares": [["q", 8]],
    "origin": "allocated at file.py:7: torch.empty(2, 3)",
}
REPLY = {
    "status": "returned",
    "detail": "",
    "container": "tuple",
    "outputs": [OUTPUT],
    "reused": [0],
    "gradients": {
        "requires": [True, False],
        "tensors": [OUTPUT, None],
        "raised": {"type": "E", "message": "no", "where": ""},
    },
    "raised": {"type": "ValueError", "message": "no", "where": "file.py:3 in f"},
    "accesses": [{"what": "load", "kernel": "k", "line": "x = tl.load(p)", "message": "out of bounds", "lanes": 4}],
    "launches": [{"kernel": "k", "grid": [1, 2, 3], "constants": [["BLOCK", 16]]}],
    "tampered": ["torch.allclose"],
    "after": ["q", "k"],
    "seconds": 0.5,
    "blobs": [],
}
BLOBS = [b"output", b"gradient", b"after q", b"after k"]

PATHS = [
    *((key,) for key in REPLY if key != "blobs"),
    ("outputs", 0),
    *(("outputs", 0, key) for key in OUTPUT),
    ("outputs", 0, "shares", 0),
    ("outputs", 0, "shares", 0, 0),
    ("outputs", 0, "shares", 0, 1),
    *(("gradients", key) for key in REPLY["gradients"]),
    *(("gradients", "tensors", 0, key) for key in OUTPUT),
    *(("raised", key) for key in REPLY["raised"]),
    ("accesses", 0),
    *(("accesses", 0, key) for key in REPLY["accesses"][0]),
    ("launches", 0),
    *(("launches", 0, key) for key in REPLY["launches"][0]),
    ("launches", 0, "constants", 0),
    ("launches", 0, "constants", 0, 1),
    ("tampered", 0),
    ("after", 0),
]


def changed(path, value):
    data = copy.deepcopy(REPLY)
    place = data
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return data


def without(path):
    data = copy.deepcopy(REPLY)
    place = data
    for key in path[:-1]:
        place = place[key]
    del place[path[-1]]
    return data


def test_a_reply_is_read_whole():
    assert from_reply(REPLY, BLOBS) == Outcome(
        status="returned",
        container="tuple",
        outputs=(Output("Tensor", "float32", (2, 3), (3, 1), "cuda", b"output", (("q", 8),), OUTPUT["origin"]),),
        reused=(0,),
        gradients=Gradients(
            (True, False),
            (Output("Tensor", "float32", (2, 3), (3, 1), "cuda", b"gradient", (("q", 8),), OUTPUT["origin"]), None),
            Raised("E", "no"),
        ),
        raised=Raised("ValueError", "no", "file.py:3 in f"),
        accesses=(Access("load", "k", "x = tl.load(p)", "out of bounds", 4),),
        launches=(Launch("k", (1, 2, 3), (("BLOCK", 16),)),),
        tampered=("torch.allclose",),
        after=(("q", b"after q"), ("k", b"after k")),
        seconds=0.5,
    )


@pytest.mark.parametrize("path", [path for path in PATHS if isinstance(path[-1], str)])
def test_a_missing_key_is_refused(path):
    with pytest.raises(ReplyError):
        from_reply(without(path), BLOBS)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("status",), "fine"),
        (("status",), None),
        (("status",), ["returned"]),
        (("detail",), 5),
        (("container",), b"tuple"),
        (("gradients",), []),
        (("gradients",), 5),
        (("gradients", "requires"), [1]),
        (("gradients", "requires"), [True] * 33),
        (("gradients", "tensors"), [None] * 33),
        (("gradients", "tensors"), None),
        (("gradients", "tensors", 0), 3),
        (("gradients", "tensors", 0, "shape"), "23"),
        (("gradients", "raised"), "no"),
        (("outputs",), {}),
        (("outputs",), "x"),
        (("outputs",), [OUTPUT] * 33),
        (("outputs", 0), None),
        (("outputs", 0), []),
        (("outputs", 0, "dtype"), 3),
        (("outputs", 0, "shape"), "23"),
        (("outputs", 0, "shape"), [2.0, 3]),
        (("outputs", 0, "shape"), [True, 3]),
        (("outputs", 0, "shape"), [1] * 65),
        (("outputs", 0, "strides"), None),
        (("outputs", 0, "origin"), ["file.py:7"]),
        (("outputs", 0, "shares"), [["q"]]),
        (("outputs", 0, "shares"), [["q", 1, 2]]),
        (("outputs", 0, "shares"), [[1, 2]]),
        (("outputs", 0, "shares"), [["q", None]]),
        (("outputs", 0, "shares"), [["q", math.inf]]),
        (("outputs", 0, "shares"), [["q", math.nan]]),
        (("outputs", 0, "shares"), [["q", 1]] * 1001),
        (("raised",), "ValueError"),
        (("raised",), []),
        (("raised", "type"), None),
        (("accesses",), None),
        (("accesses",), [REPLY["accesses"][0]] * 1001),
        (("accesses", 0), 5),
        (("accesses", 0, "lanes"), None),
        (("accesses", 0, "lanes"), -math.inf),
        (("launches",), {"kernel": "k"}),
        (("launches",), [REPLY["launches"][0]] * 1001),
        (("launches", 0, "grid"), [1.5]),
        (("launches", 0, "constants"), [["BLOCK"]]),
        (("launches", 0, "constants"), [["BLOCK", math.inf]]),
        (("reused",), None),
        (("reused",), [1]),
        (("reused",), [-1]),
        (("reused",), [0.5]),
        (("tampered",), None),
        (("tampered",), [None]),
        (("after",), 3),
        (("after",), ["q"] * 33),
        (("after",), [["q"]]),
        (("seconds",), None),
        (("seconds",), []),
        (("seconds",), "soon"),
        (("seconds",), 10**400),
    ],
    ids=lambda value: ".".join(map(str, value)) if isinstance(value, tuple) else "",
)
def test_a_value_of_the_wrong_form_is_refused(path, value):
    with pytest.raises(ReplyError):
        from_reply(changed(path, value), BLOBS)


def test_an_output_without_its_blob_is_refused():
    with pytest.raises(ReplyError):
        from_reply(REPLY, [])


@pytest.mark.parametrize("seconds", [math.nan, math.inf, -1.0])
def test_a_time_that_is_none_is_refused(seconds):
    with pytest.raises(ReplyError):
        from_reply(changed(("seconds",), seconds), BLOBS)


def test_texts_are_cut_and_made_printable():
    outcome = from_reply(changed(("detail",), "a\x1b[2J\ud800\n" + "b" * 10_000), BLOBS)
    assert outcome.detail.isprintable()
    assert len(outcome.detail) <= 2000


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(10**308, 10**320)
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(sorted(REPLY)),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)
BLOB_LISTS = st.lists(st.binary(max_size=4), max_size=4)


def read_or_refused(header, blobs):
    try:
        outcome = from_reply(header, blobs)
    except ReplyError:
        return
    assert isinstance(outcome, Outcome)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(PATHS), JSON, BLOB_LISTS)
def test_any_json_in_any_field_is_read_or_refused(path, value, blobs):
    read_or_refused(changed(path, value), blobs)


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(st.sampled_from(sorted(REPLY)) | st.text(max_size=5), JSON), BLOB_LISTS)
def test_any_object_is_read_or_refused(header, blobs):
    read_or_refused(header, blobs)


@pytest.fixture
def pair():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


def soon(seconds=5.0):
    return time.monotonic() + seconds


def raw_message(magic=b"frp1", header=b'{"blobs": []}', size=None, count=0):
    return struct.pack("<4sII", magic, len(header) if size is None else size, count) + header


def test_a_message_arrives_as_it_was_sent(pair):
    ours, theirs = pair
    blobs = [b"", b"\x00\xff" * 500, b"x"]
    wire.send(theirs, {"status": "returned", "text": "\ud800é"}, blobs)
    wire.send(theirs, {"second": 1})
    header, received = wire.receive(ours, soon())
    assert header["status"] == "returned"
    assert header["text"] == "\ud800é"
    assert received == blobs
    assert wire.receive(ours, soon())[0]["second"] == 1


def test_a_message_larger_than_the_buffers_arrives(pair):
    ours, theirs = pair
    blob = bytes(range(256)) * 2**14
    sender = threading.Thread(target=wire.send, args=(theirs, {}, [blob]))
    sender.start()
    assert wire.receive(ours, soon(20))[1] == [blob]
    sender.join()


@pytest.mark.parametrize(
    "data",
    [
        raw_message(magic=b"GET "),
        raw_message(size=wire.MAX_HEADER + 1),
        raw_message(count=wire.MAX_BLOBS + 1),
        raw_message(header=b"{"),
        raw_message(header=b"\xff\xfe"),
        raw_message(header=b"[" * 100_000),
        raw_message(header=b"[]"),
        raw_message(header=b"null"),
        raw_message(header=b"{}"),
        raw_message(header=b'{"blobs": 3}'),
        raw_message(header=b'{"blobs": [1]}'),
        raw_message(header=b'{"blobs": []}', count=1),
        raw_message(header=b'{"blobs": [-1]}', count=1),
        raw_message(header=b'{"blobs": [1.0]}', count=1),
        raw_message(header=b'{"blobs": [true]}', count=1),
        raw_message(header=b'{"blobs": ["1"]}', count=1),
        raw_message(header=b'{"blobs": [%d]}' % (wire.MAX_BLOB + 1), count=1),
    ],
    ids=range(17),
)
def test_what_is_no_message_is_refused_before_its_body_is_read(pair, data):
    ours, theirs = pair
    theirs.sendall(data)
    with pytest.raises(wire.WireError):
        wire.receive(ours, soon())


@settings(max_examples=50, deadline=None)
@given(st.binary(max_size=40) | st.binary(max_size=40).map(lambda tail: raw_message(header=tail)))
def test_any_bytes_are_a_message_or_refused(data):
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(data)
        theirs.close()
        try:
            header, blobs = wire.receive(ours, soon())
        except (wire.WireError, wire.ClosedError):
            return
        assert isinstance(header, dict)
        assert blobs == []


@pytest.mark.parametrize("sent", [b"", b"frp1", raw_message(count=1, header=b'{"blobs": [9]}')])
def test_a_deadline_ends_the_wait(pair, sent):
    ours, theirs = pair
    theirs.sendall(sent)
    polls = []
    started = time.monotonic()
    with pytest.raises(wire.LateError):
        wire.receive(ours, started + 0.2, lambda: polls.append(1))
    assert 0.15 < time.monotonic() - started < 5
    assert polls


def test_a_sender_that_trickles_does_not_outlast_the_deadline(pair):
    ours, theirs = pair
    stop = threading.Event()

    def trickle():
        theirs.sendall(raw_message(count=1, header=b'{"blobs": [100000]}'))
        while not stop.wait(0.01):
            theirs.sendall(b"x")

    sender = threading.Thread(target=trickle)
    sender.start()
    try:
        with pytest.raises(wire.LateError):
            wire.receive(ours, soon(0.3))
    finally:
        stop.set()
        sender.join()


@pytest.mark.parametrize("sent", [b"", b"frp1", raw_message(count=1, header=b'{"blobs": [9]}') + b"half"])
def test_a_hang_up_is_noticed(pair, sent):
    ours, theirs = pair
    theirs.sendall(sent)
    theirs.close()
    with pytest.raises(wire.ClosedError):
        wire.receive(ours, soon())


def test_sending_to_nobody_is_noticed(pair):
    ours, theirs = pair
    theirs.close()
    with pytest.raises(wire.ClosedError):
        wire.send(ours, {"blob": "x" * 100})


def test_what_poll_raises_ends_the_wait(pair):
    ours, _ = pair

    def poll():
        raise LookupError

    with pytest.raises(LookupError):
        wire.receive(ours, soon(), poll)


def test_a_receive_with_a_deadline_leaves_no_timeout_for_a_later_send(pair):
    ours, theirs = pair
    wire.send(theirs, {"ready": True})
    wire.receive(ours, soon())
    done = []

    def read_late():
        time.sleep(0.3)
        with contextlib.suppress(wire.ClosedError):
            done.append(wire.receive(theirs, soon(20))[1])

    reader = threading.Thread(target=read_late)
    reader.start()
    try:
        wire.send(ours, {}, [b"x" * 2**22])
    finally:
        ours.close()
        reader.join()
    assert done == [[b"x" * 2**22]]


def test_a_header_is_json_text(pair):
    ours, theirs = pair
    wire.send(ours, {"a": [1, None]})
    text = theirs.recv(2**16)[12:]
    assert json.loads(text) == {"a": [1, None], "blobs": []}
