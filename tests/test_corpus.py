import hashlib
import json
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from fuzzrope import corpus
from fuzzrope.case import Case, TensorSpec, Values
from fuzzrope.corpus import MAX_FILE, CorpusError, Saved
from fuzzrope.operations.rope_cases import probes
from fuzzrope.targets import find

CASE = probes()[0].with_tensor("q", values=Values("constant", 0, (float("inf"),)))
SAVED = Saved(
    "kernels.ModelNew",
    CASE,
    (("crash", "crash:SIGSEGV"), ("mismatch", "mismatch:q")),
    {"seed": 7, "device": "cpu", "versions": {"torch": "2.11"}, "date": "2026-01-01"},
    "a note: é, \u2028, \x1b and \\",
)


def written(tmp_path, data, name="case.json"):
    path = tmp_path / name
    path.write_text(json.dumps(data), encoding="utf-8")
    return path


def refusal(path):
    with pytest.raises(CorpusError) as caught:
        corpus.load(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert len(message.splitlines()) == 1
    return message


def test_what_is_saved_is_loaded(tmp_path):
    path = corpus.path_of(tmp_path, find(SAVED.target), "crash", CASE)
    assert path == tmp_path / "kernels.ModelNew" / f"crash-{CASE.id}.json"
    corpus.save(path, SAVED)
    assert corpus.load(path) == SAVED
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_saving_again_writes_the_same_bytes_and_replaces_what_was_there(tmp_path):
    path = tmp_path / "case.json"
    corpus.save(path, SAVED)
    first = path.read_bytes()
    corpus.save(path, replace(SAVED, note=""))
    assert corpus.load(path).note == ""
    corpus.save(path, corpus.load(path))
    corpus.save(path, SAVED)
    assert path.read_bytes() == first
    assert first.isascii()
    assert first.endswith(b"}\n")


def test_a_saved_file_carries_the_digest_of_its_own_text():
    text = corpus.dump(SAVED)
    digest = json.loads(text)["digest"]
    assert hashlib.sha256(text.replace(digest, "0" * 64).encode()).hexdigest() == digest


def test_a_case_with_a_blank_digest_inside_can_be_loaded_again(tmp_path):
    path = tmp_path / "case.json"
    saved = replace(SAVED, case=CASE.with_tensor("q", storage="0" * 64))
    corpus.save(path, saved)
    assert corpus.load(path) == saved


def test_every_recipe_can_be_saved(tmp_path):
    q = TensorSpec("float32", (1, 1, 1, 2), (2, 2, 2, 1), 0, "q", Values("listed", 0, (-0.0, float("-inf"))))
    for values in (q.values, Values("constant", 0, (0.1,)), Values("wide", 2**62)):
        case = CASE.with_tensors({"q": replace(q, values=values)})
        corpus.save(tmp_path / "case.json", replace(SAVED, case=case))
        assert corpus.load(tmp_path / "case.json").case == case


def test_a_file_that_cannot_be_written_leaves_nothing_behind(tmp_path):
    path = tmp_path / "case.json"
    corpus.save(path, SAVED)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="JSON"):
        corpus.save(path, replace(SAVED, found={"seed": float("nan")}))
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    assert path.read_bytes() == before


SAVER = """
import itertools, pathlib, sys
from fuzzrope import corpus
from fuzzrope.operations.rope_cases import probes
folder = pathlib.Path(sys.argv[1])
for i in itertools.count():
    corpus.save(folder / f"crash-{i % 5}.json", corpus.Saved("kernels.ModelNew", probes()[0], (), {}, "x" * (i % 9000)))
    if i == 5:
        print("saving", flush=True)
"""


def test_a_kill_at_any_moment_leaves_only_whole_files(tmp_path):
    chance = random.Random(5)
    for _ in range(3):
        command = [sys.executable, "-c", SAVER, str(tmp_path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout.readline() == b"saving\n"
            time.sleep(chance.uniform(0.0, 0.2))
            process.kill()
            assert process.wait() == -signal.SIGKILL
        paths = list(corpus.files([tmp_path]))
        assert [path.name for path in paths] == [f"crash-{i}.json" for i in range(5)]
        assert all(set(corpus.load(path).note) <= {"x"} for path in paths)


def test_every_changed_byte_is_noticed(tmp_path):
    path = tmp_path / "case.json"
    corpus.save(path, SAVED)
    whole = path.read_bytes()
    chance = random.Random(3)
    start = whole.index(b'"digest"')
    places = {*chance.sample(range(len(whole)), 160), *range(start, start + 40), 0, len(whole) - 1}
    for place in sorted(places):
        for byte in {ord(" "), ord("0"), ord("x"), ord('"'), whole[place] ^ 1, whole[place] ^ 0x80} - {whole[place]}:
            path.write_bytes(whole[:place] + bytes([byte]) + whole[place + 1 :])
            refusal(path)


def test_a_lost_or_added_byte_is_noticed(tmp_path):
    path = tmp_path / "case.json"
    corpus.save(path, SAVED)
    whole = path.read_bytes()
    for place in range(0, len(whole), 37):
        for changed in (whole[:place], whole[:place] + whole[place + 1 :], whole[:place] + b" " + whole[place:]):
            path.write_bytes(changed)
            refusal(path)


def test_a_file_written_by_hand_needs_no_digest(tmp_path):
    assert corpus.load(written(tmp_path, SAVED.to_json())) == SAVED


def test_expectations_are_sorted_when_loaded(tmp_path):
    saved = replace(SAVED, expect=tuple(reversed(SAVED.expect)))
    assert corpus.load(written(tmp_path, saved.to_json())).expect == SAVED.expect


@pytest.mark.parametrize("key", sorted(SAVED.to_json()))
def test_a_missing_key_is_refused(tmp_path, key):
    data = SAVED.to_json()
    del data[key]
    assert repr(key) in refusal(written(tmp_path, data))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"format": 2}, "format"),
        ({"format": True}, "format"),
        ({"extra": 1}, "extra"),
        ({"digest": ""}, "digest"),
        ({"digest": "0" * 64}, "digest"),
        ({"digest": 5}, "digest"),
        ({"digest": "0" * 65}, "digest"),
        ({"operation": "softmax"}, "operation"),
        ({"operation": None}, "operation"),
        ({"target": "no.such.target"}, "no.such.target"),
        ({"target": "no/such/file.py"}, "no/such/file.py"),
        ({"target": "a/\x00.py"}, "no such file"),
        ({"target": 5}, "target"),
        ({"target": "x" * 1001}, "target"),
        ({"target": "x/" * 400}, "case.json"),
        ({"target": "two\nlines"}, "two"),
        ({"found": []}, "found"),
        ({"note": None}, "note"),
        ({"note": "x" * 10_001}, "note"),
        ({"expect": []}, "expect"),
        ({"expect": {}}, "findings"),
        ({"expect": {"findings": {}}}, "findings"),
        ({"expect": {"findings": [{"kind": "crash"}]}}, "bucket"),
        ({"expect": {"findings": [{"kind": "other", "bucket": "x"}]}}, "kind"),
        ({"expect": {"findings": [{"kind": "crash", "bucket": 1}]}}, "bucket"),
        ({"expect": {"findings": [{"kind": "crash", "bucket": "x"}] * 101}}, "findings"),
        ({"case": {}}, "case"),
        ({"case": None}, "case"),
        ({"case": replace(CASE, operation="rope_qk").to_json()}, "operation"),
        ({"case": replace(CASE, tensors=tuple(reversed(CASE.tensors))).to_json()}, "order"),
        ({"case": replace(CASE, tensors=CASE.tensors[:3]).to_json()}, "order"),
        ({"case": CASE.with_tensor("q", shape=(2**36,) * 4).to_json()}, "case.tensors.q.shape"),
        ({"case": CASE.with_tensor("q", shape=(2**20, 2**10, 1, 2)).to_json()}, "case.tensors.q.shape"),
        ({"case": CASE.with_tensor("q", strides=(2**36, 1, 1, 1)).to_json()}, "case.tensors.q"),
        ({"case": CASE.with_tensor("q", strides=(-1, 1, 1, 1)).to_json()}, "case.tensors.q.strides[0]"),
        ({"case": {**CASE.to_json(), "options": 5}}, "options"),
    ],
)
def test_a_bad_field_is_refused(tmp_path, changes, said):
    assert said in refusal(written(tmp_path, {**SAVED.to_json(), **changes}))


def test_a_hostile_text_in_a_message_cannot_steer_a_terminal(tmp_path):
    message = refusal(written(tmp_path, {**SAVED.to_json(), "target": "\x1b[2J\ud800"}))
    assert message.isprintable()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        "5",
        '"text"',
        "[" * 100_000,
        '{"a":' * 100_000,
        "9" * 5000,
        '{"format": ' + "9" * 5000 + "}",
        "{'format': 1}",
        "{} {}",
        "\ufeff{}",
        "__import__('os')",
    ],
    ids=range(14),
)
def test_what_is_no_case_is_refused(tmp_path, text):
    path = tmp_path / "case.json"
    path.write_text(text, encoding="utf-8")
    refusal(path)


@pytest.mark.parametrize("constant", ["NaN", "Infinity", "-Infinity", "1e999"])
@pytest.mark.parametrize("key", ["seed", "scale"])
def test_numbers_that_are_no_json_are_refused(tmp_path, constant, key):
    saved = replace(SAVED, case=replace(CASE, options=(("scale", 12345),)), found={"seed": 54321})
    text = json.dumps(saved.to_json()).replace({"seed": "54321", "scale": "12345"}[key], constant)
    path = tmp_path / "case.json"
    path.write_text(text, encoding="utf-8")
    refusal(path)


def test_nesting_at_the_edge_of_the_stack_is_refused(tmp_path):
    data = json.dumps({**SAVED.to_json(), "note": "HERE"})
    for depth in (*range(850, 1000, 3), 2000, 100_000):
        path = tmp_path / "case.json"
        path.write_text(data.replace('"HERE"', "[" * depth + "]" * depth), encoding="utf-8")
        refusal(path)


def test_a_key_given_twice_is_refused(tmp_path):
    path = tmp_path / "case.json"
    for key in ('"note"', '"shape"', '"kind"'):
        text = json.dumps(SAVED.to_json()).replace(key, f"{key}: 5, {key}", 1)
        path.write_text(text, encoding="utf-8")
        assert "twice" in refusal(path)


def test_a_file_that_is_too_large_is_refused_without_reading_it_all(tmp_path):
    path = tmp_path / "case.json"
    with path.open("wb") as file:
        file.truncate(2**40)
    assert str(MAX_FILE) in refusal(path)


def test_a_file_of_the_largest_size_is_read(tmp_path):
    text = json.dumps(SAVED.to_json())
    path = tmp_path / "case.json"
    path.write_text(text.ljust(MAX_FILE), encoding="utf-8")
    assert corpus.load(path) == SAVED
    path.write_text(text.ljust(MAX_FILE + 1), encoding="utf-8")
    refusal(path)


@pytest.mark.parametrize("raw", [b"\xff\xfe{}", b'{"note": "\xe9"}', b"\x80"])
def test_a_file_that_is_not_utf8_is_refused(tmp_path, raw):
    path = tmp_path / "case.json"
    path.write_bytes(raw)
    assert "UTF-8" in refusal(path)


def test_a_path_that_cannot_be_read_is_refused(tmp_path):
    refusal(tmp_path / "missing.json")
    refusal(tmp_path)


def test_files_are_found_in_a_stable_order_without_temporary_ones(tmp_path):
    for name in ("b/y.json", "a/z.json", "a/b.json", "a/.saving-1.tmp", "a/.saving-1.json", "a/note.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    named = [p.relative_to(tmp_path).as_posix() for p in corpus.files([tmp_path])]
    assert named == ["a/b.json", "a/z.json", "b/y.json"]
    assert list(corpus.files([tmp_path / "b" / "y.json", tmp_path / "missing"])) == [
        tmp_path / "b" / "y.json",
        tmp_path / "missing",
    ]


def test_a_loaded_case_runs_nothing(tmp_path):
    """A file is data: a target in it is looked up by name or as a path, and not imported."""
    source = tmp_path / "target.py"
    source.write_text("raise SystemExit\n")
    assert corpus.load(written(tmp_path, {**SAVED.to_json(), "target": str(source)})).target == str(source)


def test_the_identity_of_a_case_is_that_of_its_file():
    assert isinstance(CASE, Case)
    assert corpus.dump(SAVED) == corpus.dump(replace(SAVED, case=Case.from_json(CASE.to_json())))
