"""Scripts of saved cases: they run without fuzzrope, exit with 1 for a flaw and with 0 for an honest twin."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from fuzzrope import corpus
from fuzzrope.repro import ReproError, script
from fuzzrope.targets import Target

CORPUS = Path(__file__).parents[2] / "corpus"


def saved_of(folder, kind):
    return corpus.load(sorted((CORPUS / folder).glob(f"{kind}*.json"))[0])


def run(text, tmp_path):
    file = tmp_path / "script.py"
    file.write_text(text)
    clean = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "TRITON_INTERPRET")}
    done = subprocess.run([sys.executable, file], cwd=tmp_path, env=clean, capture_output=True, text=True, timeout=120)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("folder", "kind", "said"),
    [
        ("specimen-size-one-stride", "mismatch", "elements are wrong"),
        ("specimen-in-place", "mutation", "of the input storage"),
        ("specimen-narrow-dtype", "dtype", "eager PyTorch's is torch.float32"),
        ("specimen-nan-swallower", "nonfinite", "eager PyTorch has nan"),
        ("wild-liger", "race", "elements are wrong"),
        ("wild-liger", "mutation", "of the input storage"),
        ("specimen-size-one-stride", "nonfinite", "is 0.0, eager PyTorch has inf"),  # finite for an infinity
        ("specimen-k-geometry", "mismatch-471624391769", "elements are wrong"),  # of places that meet, the first wins
        ("specimen-narrow-index", "nonfinite", "the process died of signal"),
    ],
)
def test_a_flaw_exits_1_and_an_honest_twin_0(folder, kind, said, tmp_path):
    saved = saved_of(folder, kind)
    code, output = run(script(saved), tmp_path)
    assert (code, said in output) == (1, True), output
    code, output = run(script(replace(saved, target="specimen:tiled", expect=())), tmp_path)
    assert code == 0, output


def test_an_error_that_was_not_found_is_no_finding(tmp_path):
    text = script(saved_of("specimen-size-one-stride", "mismatch"))
    code, output = run(text.replace("result = call(", "result = absent("), tmp_path)
    assert (code, "this is not the error that was found" in output) == (3, True), output


@pytest.mark.parametrize(
    ("folder", "kind", "said", "honest"),
    [
        ("specimen-gradient-sign", "gradient", "WRONG: d", "specimen:differentiable"),
        ("specimen-gradient-detached", "gradient-1251c79b6d84", "the graph was cut", "specimen:differentiable"),
        ("specimen-attention-no-delta", "gradient", "WRONG: d", "variant:attention-eager-grad"),
        ("specimen-qk-no-offset", "mismatch", "WRONG: scores", "variant:qk-twin"),
        ("specimen-placed-dense", "mismatch", "elements are wrong", "kernels.rope_placed"),
        ("specimen-batched-cut", "mismatch", "elements are wrong", "kernels.rope_batched"),
    ],
)
def test_gradients_and_the_other_operations_are_shown(folder, kind, said, honest, tmp_path):
    saved = saved_of(folder, kind)
    code, output = run(script(saved), tmp_path)
    assert (code, said in output) == (1, True), output
    code, output = run(script(replace(saved, target=honest, expect=())), tmp_path)
    assert code == 0, output


def test_a_product_that_only_a_gpu_rounds_is_not_said_to_be_right(tmp_path):
    code, output = run(script(saved_of("specimen-qk-tf32", "mismatch")), tmp_path)
    assert (code, "tl.dot is exact" in output) == (3, True), output


def test_a_target_that_cannot_be_imported_here_is_not_accused(tmp_path):
    text = script(saved_of("specimen-size-one-stride", "mismatch"))
    needed = "import triton\nimport triton.language as tl\n"
    assert text.count(needed) == 1
    code, output = run(text.replace(needed, "raise AssertionError('no GPU')\n"), tmp_path)
    assert (code, "it cannot be imported, AssertionError: no GPU" in output) == (3, True), output


def test_answers_that_eager_pytorch_does_not_give_accuse_nobody(tmp_path):
    text = script(saved_of("specimen-size-one-stride", "mismatch"))
    code, output = run(text.replace("x1 * cos - x2 * sin", "x1 * cos + x2 * sin"), tmp_path)
    assert (code, "eager PyTorch's own answers are not the expected ones" in output) == (3, True), output


@pytest.mark.parametrize(("folder", "kind"), [("specimen-k-geometry", "out_of_bounds"), ("specimen-extra-heads", "no")])
def test_what_a_script_cannot_show_is_refused(folder, kind):
    with pytest.raises(ReproError):
        script(saved_of(folder, kind))


def test_a_library_that_is_not_there_is_said_in_one_line():
    absent = Target("wild:x", "fuzzrope.wild.x:ModelNew", needs="no_such_library", install="'fuzzrope[x]'")
    assert absent.missing == "wild:x: no_such_library is not installed; pip install 'fuzzrope[x]'"
    assert not Target("wild:x", "fuzzrope.wild.x:ModelNew", needs="torch", install="'fuzzrope[x]'").missing
