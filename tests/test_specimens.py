"""The corpus is what it says, every specimen is caught, and the correct twin is not."""

from pathlib import Path

import pytest

from fuzzrope import corpus
from fuzzrope.campaign import run_campaign
from fuzzrope.case import FLOATS
from fuzzrope.draw import Draw, search
from fuzzrope.events import Event, Minimized
from fuzzrope.findings import KINDS
from fuzzrope.judge import judge
from fuzzrope.operations import OPERATIONS
from fuzzrope.replaying import replay
from fuzzrope.settings import Settings
from fuzzrope.targets import REGISTERED, find
from tests.test_hunts import HUNTED

CORPUS = Path(__file__).parents[1] / "corpus"
FOLDERS = sorted(folder.name for folder in CORPUS.iterdir())
CORRECT = ("specimen:tiled", "specimen:differentiable")
SPECIMENS = [t.name for t in REGISTERED if t.name.startswith("specimen:") and t.name not in CORRECT]
#: Those of arithmetic and state are looked for in each dtype: test_hunts.
FLAWED = [name for name in SPECIMENS if name not in HUNTED]
FUSED = [t.name for t in REGISTERED if t.name.startswith("variant:") and t.operation != "rope"]
GRADIENTS = [name for name in FLAWED if find(name).gradients]

#: What a fair judge has to say about each specimen, at the least.
FAIR = {
    "specimen:unfused-baseline": {"out_of_bounds", "uninitialized", "dtype", "exception", "mismatch"},
    "specimen:k-geometry": {"mismatch"},
    "specimen:ragged-tail": {"out_of_bounds"},
    "specimen:table-overread": {"out_of_bounds"},
    "specimen:narrow-dtype": {"dtype"},
    "specimen:nan-swallower": {"nonfinite"},
    "specimen:in-place": {"mutation", "alias"},
    "specimen:size-one-stride": {"mismatch", "out_of_bounds"},
    "specimen:boundary-row": {"out_of_bounds"},
    "specimen:falls-back": {"no_launch"},
    "specimen:table-scribbler": {"mutation"},
    "specimen:extra-heads": {"uninitialized"},
    "specimen:narrow-index": {"overflow", "out_of_bounds"},
    "specimen:placed-first-batch": {"mismatch"},
    "specimen:placed-clamped": {"nonfinite"},
    "specimen:placed-dense": {"mismatch"},
    "specimen:placed-below": {"nonfinite"},
    "specimen:batched-first-batch": {"mismatch"},
    "specimen:batched-cut": {"mismatch"},
    "specimen:batched-by-cos": {"mismatch"},
    **{name: {"gradient"} for name in GRADIENTS},
    "specimen:gradient-strides": {"gradient", "out_of_bounds"},
    "specimen:qk-low-accumulator": {"mismatch"},
    "specimen:qk-tf32": {"mismatch"},
    "specimen:qk-late-scale": {"mismatch", "nonfinite"},
    "specimen:qk-no-offset": {"mismatch", "nonfinite"},
    "specimen:attention-low-accumulator": {"mismatch"},
    "specimen:attention-tf32": {"mismatch"},
    "specimen:attention-late-scale": {"mismatch", "nonfinite"},
    "specimen:attention-no-offset": {"mismatch"},
    "specimen:attention-rough-exp": {"mismatch"},
    "specimen:attention-no-rescale": {"mismatch"},
    "specimen:attention-tail-counts": {"mismatch"},
    "specimen:attention-empty-rows": {"nonfinite"},
}


def saved(folder: str):
    return [(path, corpus.load(path)) for path in corpus.files([CORPUS / folder])]


def test_every_specimen_has_a_fair_verdict_and_a_docstring_that_names_its_flaw():
    assert set(FAIR) == set(FLAWED)
    package = Path(__file__).parents[1] / "fuzzrope" / "specimens"
    for name in FLAWED:
        source = (package / (find(name).entry.partition(":")[0].rpartition(".")[2] + ".py")).read_text()
        assert "flaw" in source.split('"""')[1].lower()


@pytest.mark.parametrize("name", FLAWED)
def test_the_corpus_holds_a_minimized_case_of_each_fair_kind(name):
    items = saved(find(name).folder)
    shown = {kind for _, item in items for kind, _ in item.expect}
    assert shown >= FAIR[name]
    for path, item in items:
        assert item.note == "", f"{path} is not minimized"
        assert path.name.split("-")[0] in KINDS
        assert path.name.endswith(f"{item.case.id}.json")


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_saved_case_shows_exactly_what_it_should(zygote, folder):
    results = list(replay(saved(folder), Settings(), zygote))
    assert results
    wrong = [f"{result.path.name}: {result.shown}" for result in results if not result.as_expected]
    if folder.startswith("wild-"):  # of a library that need not be installed; then nothing may be said of any case
        absent = [result for result in results if "not installed" in result.verdict.skipped]
        assert len(absent) in (0, len(results))
        wrong = [] if absent else wrong
    assert not wrong


@pytest.mark.parametrize("name", ["kernels.ModelNew", *CORRECT])
def test_a_correct_rope_passes(runner, name):
    events: list[Event] = []
    settings = Settings(seed=11, max_examples=350, max_time=300.0)
    finished = run_campaign(find(name), settings, None, events.append, runner)
    found = [event.finding for event in events if isinstance(event, Minimized)]
    assert found == []
    assert finished.executed == 350


@pytest.mark.parametrize(
    "name", [t.name for t in REGISTERED if t.name.startswith("variant:") and t.operation != "rope"]
)
def test_a_correct_fused_kernel_passes(runner, name):
    events: list[Event] = []
    settings = Settings(seed=11, max_examples=60, max_time=300.0)
    finished = run_campaign(find(name), settings, None, events.append, runner)
    assert [event.finding for event in events if isinstance(event, Minimized)] == []
    assert finished.executed == 60


@pytest.mark.parametrize(
    "name", ["specimen:narrow-index", "specimen:falls-back", "specimen:size-one-stride", "specimen:qk-no-offset"]
)
def test_a_campaign_finds_a_specimen_afresh(runner, name):
    events: list[Event] = []
    settings = Settings(seed=12, max_findings=1, max_time=20.0, grace=10.0)
    run_campaign(find(name), settings, None, events.append, runner)
    kinds = {event.finding.kind for event in events if isinstance(event, Minimized)}
    assert kinds & FAIR[name]


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", GRADIENTS)
def test_a_flawed_gradient_shows_in_every_dtype(runner_of, name, dtype):
    target = find(name)
    operation = OPERATIONS[target.operation]
    inputs = [name for name in operation.inputs if name != "positions"]
    pins = {"gradients": "some", "backward": True, "dtypes": (dtype,) * len(inputs)}

    def shows(draw: Draw) -> bool:
        case = operation.draw(draw, pins, (16,))
        found.update(finding.kind for finding in judge(case, runner_of(target).run(case), target).findings)
        return "gradient" in found

    found: set[str] = set()
    search(shows, 200, f"{name} {dtype}")
    assert "gradient" in found
