"""fuzzrope.interpreter.formats against torch, and against a rounding in exact rational arithmetic.

Long because that exact rounding, which everything here is held against, stands beside its uses.
"""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from fuzzrope.interpreter import formats
from fuzzrope.interpreter.formats import decode, encode, float_to_int, fma, int_to_float, round_tf32, round_to

NARROW = ("f16", "bf16", "f8E4M3FN", "f8E5M2", "f8E4M3FNUZ", "f8E5M2FNUZ", "f8E4M3B11FNUZ")
IEEE = ("f16", "bf16", "f8E5M2")
TORCH = {
    "f16": torch.float16,
    "bf16": torch.bfloat16,
    "f8E4M3FN": torch.float8_e4m3fn,
    "f8E5M2": torch.float8_e5m2,
    "f8E4M3FNUZ": torch.float8_e4m3fnuz,
    "f8E5M2FNUZ": torch.float8_e5m2fnuz,
}
INF, NAN = math.inf, math.nan
F32, F64 = np.float32, np.float64


@pytest.fixture(autouse=True)
def _quiet():
    with np.errstate(all="ignore"):
        yield


def bits_of(fmt):
    return np.arange(256, dtype=np.uint8) if fmt.startswith("f8") else np.arange(65536, dtype=np.uint16)


def finite(fmt):
    """All finite values of a narrow format, ascending, zero once, as float64."""
    values = decode(bits_of(fmt), fmt).astype(F64)
    return np.unique(values[np.isfinite(values)])


def same(left, right):
    """Element by element: equal with equal signs, or both NaN."""
    return ((left == right) & (np.signbit(left) == np.signbit(right))) | (np.isnan(left) & np.isnan(right))


def assert_same(got, wanted, given=None):
    assert got.dtype == wanted.dtype
    assert got.shape == wanted.shape
    bad = np.flatnonzero(~same(got, wanted))
    of = bad if given is None else np.ravel(given)[bad]
    assert not len(bad), (len(bad), of[:5], np.ravel(got)[bad][:5], np.ravel(wanted)[bad][:5])


def random_bits(count, seed=0, dtype=np.uint32):
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max, count, dtype=dtype, endpoint=True)


def random_f32(count, seed=0):
    return random_bits(count, seed).view(F32)


def random_f64(count, low=-1074, high=1024, seed=0, digits=53):
    """Random significands, of few digits now and then so that ties come up, and exponents in a range."""
    generator = np.random.default_rng(seed)
    mantissa = generator.integers(2**52, 2**53, count)
    drop = np.minimum(generator.integers(53 - digits, 53, count), 52)
    mantissa = (mantissa >> drop) << drop
    sign = generator.choice([-1.0, 1.0], count)
    return sign * np.ldexp(mantissa.astype(F64), generator.integers(low, high, count) - 52)


SPECIAL = np.array([0.0, -0.0, INF, -INF, NAN, -NAN, 1e-45, -1e-45, 3.4028235e38, -3.4028235e38], dtype=F32)


def around_the_middles(fmt):
    """Each middle between neighbours of a format and its neighbours in float32, and where overflow begins."""
    values = finite(fmt)
    beyond = values[-1] + (values[-1] - values[-2])
    values = np.concatenate([[-beyond], values, [beyond]])
    middles = ((values[1:] + values[:-1]) / 2).astype(F32)
    if fmt != "bf16":  # of which the outermost overflow float32
        assert (middles.astype(F64) == (values[1:] + values[:-1]) / 2).all()
    return np.concatenate([values.astype(F32), *(np.nextafter(middles, F32(x)) for x in (-INF, INF)), middles, SPECIAL])


# An exact rounding that shares nothing with the module: grids of integers, ties decided on fractions.

SHAPES = {  # digits, exponent of the smallest subnormal, largest
    "f16": (11, -24, Fraction(65504)),
    "bf16": (8, -133, Fraction(255 * 2**120)),
    "f32": (24, -149, Fraction((2**24 - 1) * 2**104)),
    "f64": (53, -1074, Fraction((2**53 - 1) * 2**971)),
    "f8E4M3FN": (4, -9, Fraction(448)),
    "f8E5M2": (3, -16, Fraction(57344)),
    "f8E4M3FNUZ": (4, -10, Fraction(240)),
    "f8E5M2FNUZ": (3, -17, Fraction(57344)),
    "f8E4M3B11FNUZ": (4, -13, Fraction(30)),
    "tf32": (11, -136, Fraction((2**11 - 1) * 2**117)),
}


def rounded(value, fmt, mode="rtne", saturate=False):
    """A Fraction, or a float for a signed zero, an infinity or NaN, rounded slowly; a float."""
    digits, lowest, largest = SHAPES[fmt]
    infinity = INF if fmt in (*IEEE, "f32", "f64", "tf32") else NAN
    unsigned = fmt.endswith("FNUZ")
    negative = value < 0
    if isinstance(value, float):
        if math.isnan(value):
            return NAN
        if math.isinf(value):
            return math.copysign(float(largest) if saturate else infinity, value)
        if value == 0:
            return 0.0 if unsigned else value
        value = Fraction(value)
    size = abs(value)
    exponent = size.numerator.bit_length() - size.denominator.bit_length()
    if Fraction(2) ** exponent > size:
        exponent -= 1
    grid = Fraction(2) ** max(exponent - digits + 1, lowest)
    count, rest = divmod(size, grid)
    twice = 2 * rest
    if mode != "rtz" and (twice > grid or (twice == grid and (mode == "rna" or count % 2))):
        count += 1
    result = count * grid
    beyond = float(largest) if saturate or mode == "rtz" else infinity
    answer = beyond if result > largest else float(result)
    return 0.0 if unsigned and answer == 0 else math.copysign(answer, -1 if negative else 1)


def reference(values, fmt, mode="rtne", saturate=False):
    return np.array([rounded(x, fmt, mode, saturate) for x in values.astype(F64).tolist()]).astype(F32)


# Bits and values


@pytest.mark.parametrize("fmt", NARROW)
def test_all_values_of_a_narrow_format_come_back_with_the_same_bits(fmt):
    bits = bits_of(fmt)
    values = decode(bits, fmt)
    assert values.dtype == F32
    quieted = np.where(np.isnan(values), bits | 0x200, bits) if fmt == "f16" else bits
    assert (encode(values, fmt) == quieted).all()
    pieces = [encode(decode(piece, fmt), fmt) for piece in np.split(bits, len(bits) // 64)]
    assert (np.concatenate(pieces) == bits).all()


@pytest.mark.parametrize("fmt", TORCH)
def test_bits_mean_what_torch_says(fmt):
    bits = bits_of(fmt)
    wanted = torch.from_numpy(bits.copy()).view(TORCH[fmt]).float().numpy()
    assert_same(decode(bits, fmt), wanted)
    assert_same(decode(bits[:64], fmt), wanted[:64])


def test_the_format_torch_lacks_has_its_bias_of_eleven():
    values = decode(bits_of("f8E4M3B11FNUZ"), "f8E4M3B11FNUZ")
    positive = [m * 2.0**-13 for m in range(8)]
    positive += [(8 + m) * 2.0 ** (e - 14) for e in range(1, 16) for m in range(8)]
    assert values[:128].tolist() == positive
    assert math.isnan(values[128])
    assert (values[129:] == -values[1:128]).all()


@pytest.mark.parametrize("fmt", [*NARROW, "f32"])
@pytest.mark.parametrize("size", [100, 20_000])
def test_any_layout_and_read_only_arrays_are_taken(fmt, size):
    values = np.resize(finite(fmt) if fmt != "f32" else random_f32(100), 4 * size).astype(F32)
    views = (values[::-2], values.reshape(2, 2, size).transpose(2, 0, 1), np.broadcast_to(values[7], (2, size)))
    for view in (*views, values[3:4].reshape(())):
        wanted = view.copy()
        assert_same(round_to(view, fmt), wanted)
        bits = encode(view, fmt)
        assert (bits == encode(wanted, fmt)).all()
        assert_same(decode(np.resize(bits, 2 * view.size)[::2], fmt), decode(np.resize(bits, 2 * view.size), fmt)[::2])
        assert_same(decode(bits, fmt), wanted)


# Rounding


@pytest.mark.parametrize("fmt", TORCH)
def test_float32_is_rounded_as_torch_rounds_it(fmt):
    values = np.concatenate([around_the_middles(fmt), random_f32(10**7)])
    if fmt == "f8E4M3FN":  # beyond which some versions of torch saturate
        values = values[~(np.abs(values) > 464)]
    with torch.no_grad():
        wanted = torch.from_numpy(values).to(TORCH[fmt]).float().numpy()
    assert_same(round_to(values, fmt), wanted, values)


@pytest.mark.parametrize("fmt", NARROW)
@pytest.mark.parametrize("mode", ["rtne", "rtz"])
@pytest.mark.parametrize("saturate", [False, True])
def test_float32_is_rounded_as_fractions_are(fmt, mode, saturate):
    values = around_the_middles(fmt)
    step = max(1, len(values) // 4000)
    values = np.concatenate([values[::step], values[-1000:], random_f32(1000)])
    assert_same(round_to(values, fmt, mode, saturate), reference(values, fmt, mode, saturate), values)


@pytest.mark.parametrize("fmt", [*NARROW, "f32"])
@pytest.mark.parametrize("mode", ["rtne", "rtz"])
@pytest.mark.parametrize("saturate", [False, True])
def test_float64_is_rounded_once(fmt, mode, saturate):
    if fmt == "f32":
        near = np.abs(random_f32(500)).astype(F64)
        middles = near + np.spacing(near.astype(F32)).astype(F64) / 2
    else:
        values = finite(fmt)
        values = np.append(values, 2 * values[-1] - values[-2])
        middles = (values[1:] + values[:-1]) / 2
        middles = np.append(middles[:: max(1, len(middles) // 500)], middles[-2:])
    beside = [np.nextafter(middles, x) for x in (-INF, INF)]
    digits, lowest, _ = SHAPES[fmt]
    tiny = random_f64(200, lowest - 4, lowest + digits + 2)
    wide = random_f64(500, -1074, 1023)
    values = np.concatenate([middles, *beside, tiny, wide, SPECIAL, [5e-324, -5e-324, 1.7976931348623157e308]])
    assert_same(round_to(values, fmt, mode, saturate), reference(values, fmt, mode, saturate), values)


@pytest.mark.parametrize("fmt", ["f16", "bf16"])
def test_rounding_through_float32_or_by_cutting_would_be_seen(fmt):
    values = finite(fmt)
    beyond_middle = np.nextafter((values[1:] + values[:-1]) / 2, INF)
    twice = round_to(beyond_middle.astype(F32), fmt)
    cut = round_to(beyond_middle, fmt, "rtz")
    right = round_to(beyond_middle, fmt)
    assert (right == values[1:]).all()
    assert not same(twice, right).all()
    assert not same(cut, right).all()


@pytest.mark.parametrize(("fmt", "rounding"), [("f16", formats.round_f16), ("bf16", formats.round_bf16)])
@pytest.mark.parametrize("size", [0, 1, 64, 767, 768, 16383, 16384, 70000])
def test_the_hot_roundings_agree_at_every_size_and_in_place(fmt, rounding, size):
    values = np.resize(np.concatenate([SPECIAL, random_f32(5000)]), size)
    wanted = torch.from_numpy(values.copy()).to(TORCH[fmt]).float().numpy()
    kept = values.copy()
    assert_same(rounding(values), wanted)
    assert_same(values, kept)
    out = np.empty_like(values)
    assert rounding(values, out=out) is out
    assert_same(out, wanted)
    assert rounding(values, out=values) is values
    assert_same(values, wanted)


@pytest.mark.parametrize("mode", ["rtne", "rna", "rtz"])
def test_tf32_has_ten_explicit_bits(mode):
    values = random_f32(3000)
    ties = ((random_bits(1000, 1) & np.uint32(0xFFFFE000)) | np.uint32(0x1000)).view(F32)
    top = np.array([0x7F7FF000, 0x7F7FEFFF, 0xFF7FF000, 0x7FFFFFFF, 0xFFFFFFFF, 0x7F800001], dtype=np.uint32).view(F32)
    values = np.concatenate([values, ties, SPECIAL, top])
    wanted = reference(values, "tf32", mode)
    assert_same(round_tf32(values, mode), wanted, values)
    others = {"rtne", "rna", "rtz"} - {mode}
    assert not any(same(round_tf32(values, other), wanted).all() for other in others)


# Fused multiply-add


def exact_fma(a, b, c, fmt):
    """One lane; the signs of exact zeros and what is not finite are IEEE 754's, which float64 follows."""
    if not all(map(math.isfinite, (a, b))) or a == 0 or b == 0:
        return float(np.float64(a) * np.float64(b) + np.float64(c))
    if not math.isfinite(c):
        return c
    total = Fraction(a) * Fraction(b) + Fraction(c)
    return rounded(total, fmt) if total else 0.0


def fma_cases(fmt):
    """Operands that cancel, tie, vanish and overflow, held exactly by the format."""
    wide = F64 if fmt == "f64" else F32
    digits, lowest, largest = SHAPES[fmt]
    top = float(largest)
    emax = math.frexp(top)[1]

    def draw(seed, low, high, few=digits):
        return round_to(random_f64(800, low, high, seed, few), fmt).astype(wide)

    groups = []
    for seed, (low, high) in enumerate([(-3, 4), (-(emax // 2), emax // 2), (lowest // 2 - 3, lowest // 2 + digits)]):
        a, b = draw(10 * seed, low, high), draw(10 * seed + 1, low, high)
        groups += [(a, b, draw(10 * seed + 2, 2 * low, 2 * high))]
        product = round_to(a.astype(F64) * b, fmt).astype(wide)
        groups += [(a, b, -product)]
        groups += [(a, b, np.nextafter(product, wide(0)) if fmt in ("f32", "f64") else product)]
        a, b = draw(10 * seed + 3, low, high, 4), draw(10 * seed + 4, low, high, 4)
        groups += [(a, b, draw(10 * seed + 5, 2 * low, 2 * high, 3))]
    # A tie, or nearly one: (1 + k ulp) * (1 + 1/2 ...) beside a c that only decides it.
    one = 1 + np.arange(800) * 2.0 ** (1 - digits)
    half = np.full(800, 1.5)
    speck = round_to(random_f64(800, lowest, -2 * digits, 7), fmt)
    groups += [(one.astype(wide), half.astype(wide), speck.astype(wide))]
    whole = np.random.default_rng(8).integers(-40, 40, (3, 800)).astype(wide)
    groups += [tuple(whole)]
    marks = [0.0, -0.0, 1.0, -1.0, INF, -INF, NAN, top, -top, 2.0**lowest, -(2.0**lowest), 2.0**-8, 2.0**-14]
    grid = np.array(np.meshgrid(marks, marks, marks)).reshape(3, -1).astype(wide)
    groups += [tuple(grid)]
    return [np.concatenate(part) for part in zip(*groups, strict=True)]


@pytest.mark.parametrize("fmt", ["f16", "bf16", "f32", "f64"])
def test_fma_rounds_once(fmt):
    a, b, c = fma_cases(fmt)
    lanes = zip(a.tolist(), b.tolist(), c.tolist(), strict=True)
    wanted = np.array([exact_fma(*lane, fmt) for lane in lanes]).astype(a.dtype)
    assert_same(fma(a, b, c, fmt), wanted, np.stack([a, b, c], axis=1).astype(F64).view("f8,f8,f8"))
    for lane in range(0, len(a), 7):  # one by one, so that no lane hides behind another's exactness
        some = slice(lane, lane + 1)
        assert_same(fma(a[some], b[some], c[some], fmt), wanted[some])
    separate = round_to(round_to(a.astype(F64) * b, fmt).astype(F64) + c, fmt).astype(a.dtype)
    assert (~same(separate, wanted)).mean() > 0.02, "two roundings pass"


@pytest.mark.parametrize("fmt", ["bf16", "f32"])
def test_fma_in_float64_with_a_second_rounding_would_be_seen(fmt):
    a, b, c = fma_cases(fmt)
    careless = round_to(a.astype(F64) * b + c, fmt)
    assert not same(careless, fma(a, b, c, fmt)).all()


# Integers


@pytest.mark.parametrize("source", [F32, F64])
@pytest.mark.parametrize("bits", [8, 16, 32, 64])
@pytest.mark.parametrize("signed", [True, False])
def test_floats_become_integers_as_the_hardware_makes_them(source, bits, signed):
    edges = [2.0**k + d for k in (0, 7, 8, 15, 16, 31, 32, 53, 63, 64) for d in (-1, -0.5, 0, 0.5, 1)]
    values = np.concatenate([edges, np.negative(edges), random_f64(2000, -3, 70), SPECIAL, [1e300]]).astype(source)
    width = max(bits, 16)
    low, high = (-(2 ** (width - 1)), 2 ** (width - 1) - 1) if signed else (0, 2**width - 1)
    unknown = 2 ** (width - 1) if width == 64 or source is F64 else 0

    def one(value):
        if math.isnan(value):
            whole = unknown
        else:
            whole = max(low, min(high, math.trunc(value))) if math.isfinite(value) else (high if value > 0 else low)
        whole %= 2**bits
        return whole - 2**bits if signed and whole >= 2 ** (bits - 1) else whole

    got = float_to_int(values, bits, signed)
    assert got.dtype == np.dtype(f"{'i' if signed else 'u'}{bits // 8}")
    wanted = [one(value) for value in values.tolist()]
    assert got.tolist() == wanted
    assert [round(x) for x in values[np.isfinite(values)].tolist()] != wanted


@pytest.mark.parametrize("fmt", ["f16", "bf16", "f32", "f64"])
@pytest.mark.parametrize("kind", ["i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8"])
def test_integers_become_floats_with_one_rounding(fmt, kind):
    dtype = np.dtype(kind)
    limits = np.iinfo(dtype)
    digits = SHAPES[fmt][0]
    places = [2**k + s * 2 ** (k - digits) for k in range(digits, 64) for s in (1, 3)]
    ties = [
        v * sign + d for v in places for sign in (1, -1) for d in (-1, 0, 1) if limits.min <= v * sign + d <= limits.max
    ]
    random = random_bits(2000, 1, np.uint64) >> np.random.default_rng(2).integers(0, 64, 2000, dtype=np.uint64)
    values = np.concatenate([np.array([*ties, 0, 1, limits.min, limits.max], dtype=dtype), random.astype(dtype)])
    got = int_to_float(values, fmt)
    wanted = [rounded(Fraction(v), fmt) if v else 0.0 for v in values.tolist()]
    assert_same(got, np.array(wanted).astype(F64 if fmt == "f64" else F32), values)
    if fmt == "bf16" and dtype.itemsize >= 4:
        assert not same(round_to(values.astype(F32), fmt), got).all(), "two roundings pass"
