"""The extra runs: what each shows, that a case alone shows it again, and that they are sampled by the case."""

import pytest

from fuzzrope.campaign import run_campaign
from fuzzrope.case import Values
from fuzzrope.corpus import files, load
from fuzzrope.events import Event, Minimized
from fuzzrope.examine import ALONE, EVERY, IDLE, RUNS, SAME_MEMORY, demanded, examine_afresh, other_values, sampled
from fuzzrope.operations import OPERATIONS
from fuzzrope.replaying import replay
from fuzzrope.settings import Settings
from fuzzrope.targets import find
from tests.conftest import rope_case, spec
from tests.gauntlet.judging import FILES

CASE = rope_case(2, 3, 8, 16)


@pytest.mark.parametrize(
    ("name", "bucket"),
    [
        ("specimen:by-address", f"stateful:{SAME_MEMORY}"),
        ("specimen:fifth-call", "stateful:again"),
        ("specimen:chance", "nondeterministic"),
        ("specimen:next-row", "mismatch:q:relation lonely row"),
    ],
)
def test_a_case_alone_shows_it_when_its_bucket_is_asked_for(runner, name, bucket):
    runner.turn_to(find(name))
    for _ in range(2):
        assert bucket in examine_afresh(CASE, runner, find(name), Settings(), (bucket,)).buckets
    assert not examine_afresh(CASE, runner, find("specimen:tiled"), Settings(), ("mismatch:q",)).findings


def test_every_extra_run_of_a_correct_kernel_is_clean(runner):
    every = [*(f"stateful:{check}" for check in RUNS), "nondeterministic"]
    every.append(f"no_launch:q:{IDLE}")
    every += [f"mismatch:q:relation {name}" for name in OPERATIONS["rope"].relations]
    runner.turn_to(find("specimen:tiled"))
    verdict = examine_afresh(CASE, runner, find("specimen:tiled"), Settings(), every)
    assert set(demanded(every)) == {*RUNS, IDLE, *OPERATIONS["rope"].relations}
    assert not verdict.findings


@pytest.mark.parametrize(
    ("name", "bucket"),
    [
        ("kernel_for_show", "no_launch:q:idle"),
        ("kernel_for_q_only", "no_launch:k:idle"),
        ("output_pool", "stateful:q:again"),
    ],
)
def test_what_owes_nothing_to_kernels_or_reuses_its_answers_is_shown_by_one_case(runner, name, bucket):
    target = find(str(FILES[name]))
    runner.turn_to(target)
    assert examine_afresh(CASE, runner, target, Settings(), (bucket,)).buckets == {bucket}


@pytest.mark.parametrize("values", ["zeros", "constant", "normal"])
@pytest.mark.parametrize("name", ["in_place_scratch", "two_launches", "cached_tables", "workspace_views"])
def test_kernels_that_work_on_copies_and_caches_owe_their_answer_to_their_launches(runner, name, values):
    target = find(str(FILES[name]))
    data = (1.0,) if values == "constant" else ()
    same = {tensor: spec(tensor, CASE[tensor].shape, values=Values(values, 0, data)) for tensor, _ in CASE.tensors}
    runner.turn_to(target)
    verdict = examine_afresh(CASE.with_tensors(same), runner, target, Settings(), ("no_launch:q:idle", "stateful"))
    assert not verdict.findings


REMEMBERS = """
import weakref
from fuzzrope.specimens.tiled import TiledRope

class ModelNew(TiledRope):
    known = None

    def forward(self, q, k, cos, sin):
        there = [(weakref.ref(x), VERSION, q.shape[2]) for x in (cos, sin)]
        if self.known is None or self.known[0] != there:
            self.known = there, cos.clone(), sin.clone()
        turned = super().forward(q, k, *self.known[1:])
        return *turned[:2], cos[: q.shape[2]], sin[: q.shape[2]]
"""


@pytest.mark.parametrize(("version", "found"), [("x._version", set()), ("0", {f"stateful:{SAME_MEMORY}"})])
def test_a_cache_has_to_notice_that_a_tensor_was_changed_and_is_right_if_it_does(runner, tmp_path, version, found):
    path = tmp_path / "candidate.py"
    path.write_text(REMEMBERS.replace("VERSION", version))
    target = find(str(path))
    runner.turn_to(target)
    verdict = examine_afresh(CASE, runner, target, Settings(), (f"stateful:{SAME_MEMORY}",))
    assert {bucket for bucket in verdict.buckets if bucket.startswith("stateful")} == found


def test_idle_launches_tell_nothing_where_an_output_is_small(runner):
    target = find(str(FILES["kernel_for_show"]))
    runner.turn_to(target)
    assert not examine_afresh(rope_case(1, 1, 1, 2), runner, target, Settings(), ("no_launch:q:idle",)).findings


def test_ordinary_buckets_demand_nothing():
    assert (
        demanded(["mismatch:q", "no_launch", "nonfinite:k", "out_of_bounds:load:relation_kernel", "crash:SIGSEGV"])
        == ()
    )


def test_checks_are_sampled_by_the_case_alone_and_at_their_rates():
    cases = [rope_case(q=spec("q", (1, 2, 3, 4), values=Values("normal", seed))) for seed in range(4000)]
    chosen = [sampled(case) for case in cases]
    assert chosen == [sampled(case) for case in cases]
    for check, every in EVERY.items():
        assert 0.3 < sum(check in some for some in chosen) * every / 4000 < 2.5
    assert any(ALONE in some for some in chosen)


def test_other_values_keep_what_is_one_tensor():
    same = rope_case(k=spec("q", (1, 2, 3, 4), values=Values("normal", 0)), q=spec("q", (1, 2, 3, 4)))
    same = same.with_tensors({"k": same["q"]})
    changed = other_values(same)
    assert changed["q"] == changed["k"] != same["q"]
    assert changed["cos"].values != changed["sin"].values


@pytest.mark.parametrize("name", ["specimen:by-address", "specimen:length-path"])
def test_what_an_extra_run_finds_is_saved_minimized_and_replayed(runner, zygote, name, tmp_path):
    events: list[Event] = []
    settings = Settings(seed=4, max_findings=1, max_examples=600, max_time=25.0, grace=5.0)
    run_campaign(find(name), settings, tmp_path, events.append, runner)
    found = [event for event in events if isinstance(event, Minimized) and event.path is not None]
    kept = {event.finding.bucket for event in found}
    assert any(bucket.startswith("stateful") or "relation" in bucket for bucket in kept)
    items = [(path, load(path)) for path in files([tmp_path])]
    assert items
    wrong = [(item.path.name, item.shown) for item in replay(items, settings, zygote) if not item.as_expected]
    assert not wrong


def test_relations_are_sampled_only_where_they_bind():
    cases = [rope_case(q=spec("q", (1, 2, 3, 4), values=Values("normal", seed))) for seed in range(400)]
    with_relations = [check for case in cases for check in sampled(case) if check.startswith("relation")]
    on_gpu = [check for case in cases for check in sampled(case, device="cuda") if check.startswith("relation")]
    assert len(with_relations) > 50
    assert not on_gpu


def test_a_target_exact_by_promise_needs_only_the_run_in_the_same_memory():
    cases = [rope_case(q=spec("q", (1, 2, 3, 4), values=Values("normal", seed))) for seed in range(400)]
    assert {check for case in cases for check in sampled(case, exact=True)} == {SAME_MEMORY}
