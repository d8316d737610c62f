"""What is timed, on a GPU and a host that are simulated."""

import pytest

from fuzzrope.bench import timing
from fuzzrope.bench.timing import GpuTime, HostBoundError, LaunchTime, Spread, in_turns
from tests.bench.simulated import SimulatedGpu

MICRO = 1e-6


def runs(gpu, on_host, on_gpu, sets=3, seen=None, launches=1):
    def run(i):
        if seen is not None:
            seen.append(i)
        for _ in range(launches):
            gpu.launch(on_host, on_gpu)

    return [lambda i=i: run(i) for i in range(sets)]


@pytest.mark.parametrize("on_host", [1 * MICRO, 50 * MICRO, 800 * MICRO])
def test_gpu_time_has_nothing_of_the_hosts_however_slow_that_is(on_host):
    gpu = SimulatedGpu()
    batch = GpuTime(gpu).start(runs(gpu, on_host, 10 * MICRO), 0)
    assert [batch() for _ in range(3)] == pytest.approx([10 * MICRO] * 3)


def test_a_batch_that_was_late_is_not_counted():
    gpu = SimulatedGpu()
    timing_of = GpuTime(gpu).start(runs(gpu, 800 * MICRO, 20 * MICRO), 0)
    assert len(gpu.waits) == 3  # the first was late
    assert gpu.waits[1] > 800 * MICRO
    assert timing_of() == pytest.approx(20 * MICRO)


def test_one_slow_batch_does_not_make_the_gpu_wait_for_ever():
    gpu = SimulatedGpu()
    slow = iter([0.05])
    batch = GpuTime(gpu).start([lambda: gpu.launch(next(slow, MICRO), 20 * MICRO)], 0)
    batch(), batch()
    assert max(gpu.waits) > 0.05
    assert gpu.waits[-1] == timing.SHORTEST_WAIT


def test_a_call_that_waits_for_the_gpu_is_refused():
    gpu = SimulatedGpu()
    with pytest.raises(HostBoundError):
        GpuTime(gpu).start([gpu.synchronize], 0)


def test_a_queue_that_is_full_makes_batches_shorter():
    gpu = SimulatedGpu(queue=100)
    batch = GpuTime(gpu).start(runs(gpu, MICRO, MICRO, launches=30), 0)
    assert batch() == pytest.approx(30 * MICRO)
    assert batch.calls * 30 < 100


def test_sets_are_taken_in_turn_from_batch_to_batch():
    gpu, seen = SimulatedGpu(), []
    batch = GpuTime(gpu).start(runs(gpu, MICRO, 1000 * MICRO, sets=5, seen=seen), 0)
    batch(), batch()
    assert seen == [i % 5 for i in range(len(seen))]


def test_batches_are_as_long_as_they_should_be_within_limits():
    gpu = SimulatedGpu()
    lengths = [GpuTime(gpu).start(runs(gpu, MICRO, s), 0).calls for s in (1 * MICRO, 395 * MICRO, 1.0)]
    assert lengths == [timing.MOST, 10, timing.FEWEST]
    assert GpuTime(gpu, most_bytes=100).start(runs(gpu, MICRO, MICRO), 50).calls == 2
    assert GpuTime(gpu, most_bytes=100).start(runs(gpu, MICRO, MICRO), 500).calls == 1


def test_results_are_kept_until_the_batch_is_over():
    gpu, alive, most = SimulatedGpu(), [0], [0]

    class Result:
        def __init__(self):
            alive[0] += 1
            most[0] = max(alive[0], most[0])

        def __del__(self):
            alive[0] -= 1

    def run():
        gpu.launch(MICRO, 395 * MICRO)
        return Result()

    batch = GpuTime(gpu).start([run], 0)
    batch()
    assert most == [batch.calls] == [10]
    assert alive == [0]


def test_launch_included_is_the_larger_of_the_hosts_time_and_the_gpus():
    for on_host, on_gpu, expected in ((50, 3, 50), (5, 30, 30)):
        gpu = SimulatedGpu()
        batch = LaunchTime(gpu).start(runs(gpu, on_host * MICRO, on_gpu * MICRO), 0)
        assert batch() == pytest.approx(expected * MICRO, rel=0.02)


def test_peers_take_turns_and_one_that_raises_costs_the_others_nothing():
    order = []

    def peer(name, fails_at=99):
        def batch():
            order.append(name)
            if order.count(name) == fails_at:
                raise ValueError(name)
            return 1.0

        return batch

    first, second, third = in_turns([peer("a"), peer("b", 2), peer("c")], 3)
    assert order == ["a", "b", "c", "a", "b", "c", "a", "c"]
    assert first == third == [1.0, 1.0, 1.0]
    assert isinstance(second, ValueError)


def test_an_interruption_is_no_peers_result():
    def interrupted():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        in_turns([interrupted], 3)


def test_a_spread_has_the_median_and_the_outer_tenths():
    assert Spread.of([float(i) for i in range(11)]) == Spread(5.0, 1.0, 9.0, 11)
    assert Spread.of([2.0]) == Spread(2.0, 2.0, 2.0, 1)
