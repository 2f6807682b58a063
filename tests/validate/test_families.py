"""The inputs of a check: seeded families, real rows, and which rows go together."""

from pathlib import Path

import numpy as np
import pytest

from deploy.spec import BATCH, Dim, Spec, TensorSpec
from deploy.validate.cases import calls_of, make_cases
from deploy.validate.families import SEEDED, Pool, make_pools, pool_rows
from deploy.validate.samples import Samples


def spec(maximum: int = 8, *, dtype: str = "float32", size: int = 32) -> Spec:
    """One image in, ten logits out; static where the largest batch is 1."""
    first: int | str = BATCH if maximum > 1 else 1
    dims = (Dim(name=BATCH, minimum=1, maximum=maximum),) if maximum > 1 else ()
    return Spec(
        inputs=(TensorSpec(name="x", dtype=dtype, shape=(first, 3, size, size)),),
        outputs=(TensorSpec(name="y", dtype="float32", shape=(first, 10), decision_axis=1),),
        dims=dims,
    )


def pools_by_name(pools: tuple[Pool, ...]) -> dict[str, np.ndarray]:
    return {pool.family: pool.inputs[0] for pool in pools}


def test_the_families_are_what_they_are_called() -> None:
    pools = pools_by_name(make_pools(spec(), None, seed=0))
    assert tuple(pools) == SEEDED
    assert abs(pools["normal"].std() - 1) < 0.02
    assert pools["large"].std() > 20
    assert all(row.min() == row.max() for row in pools["constant"])
    assert len({float(row.flat[0]) for row in pools["constant"]}) == 4
    steps = np.abs(np.diff(pools["image"], axis=-1)).mean() / pools["image"].std()
    noise = np.abs(np.diff(pools["normal"], axis=-1)).mean() / pools["normal"].std()
    assert steps < noise / 4
    assert pools["image"].min() >= -2.0 and pools["image"].max() <= 2.5


def test_the_same_seed_gives_the_same_rows_and_another_seed_others() -> None:
    first, again, other = (pools_by_name(make_pools(spec(), None, seed=seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first["normal"], again["normal"])
    assert not np.array_equal(first["normal"], other["normal"])


def test_integers_are_zero_or_one_and_truth_values_both() -> None:
    for dtype in ("int64", "uint8", "bool"):
        values = pools_by_name(make_pools(spec(dtype=dtype), None, seed=0))["large"]
        assert values.dtype.name == dtype
        assert set(np.unique(values).tolist()) == {0, 1}


def test_vectors_and_short_axes_have_an_image_family_too() -> None:
    for shape in ((BATCH, 7), (BATCH, 1), (BATCH, 2, 1, 3), (BATCH,)):
        tensor = TensorSpec(name="x", dtype="float32", shape=shape)
        one = Spec(inputs=(tensor,), outputs=(tensor,), dims=(Dim(name=BATCH, minimum=1, maximum=8),))
        image = pools_by_name(make_pools(one, None, seed=0))["image"]
        assert image.shape == (4, *shape[1:])
        assert np.isfinite(image).all()


def test_real_rows_are_spread_over_the_file_and_keep_their_numbers() -> None:
    array = np.arange(100, dtype=np.float32).reshape(100, 1, 1, 1) * np.ones((1, 3, 32, 32), np.float32)
    samples = Samples(path=Path("s.npz"), inputs=(array,), digest="")
    real = make_pools(spec(), samples, seed=0)[0]
    assert real.family == "real"
    assert real.origin[0] == 0 and real.origin[-1] == 99 and len(real.origin) == 8
    assert [int(row.flat[0]) for row in real.inputs[0]] == list(real.origin)


def test_large_rows_make_small_pools() -> None:
    assert pool_rows(spec(size=32), 8) == 8
    assert pool_rows(spec(size=1024), 8) == 3


def batches(maximum: int) -> list[tuple[int, ...]]:
    pools = make_pools(spec(maximum), None, seed=0)
    return [case.rows for case in make_cases(spec(maximum), pools) if case.family == "normal"]


def test_each_family_is_asked_alone_in_pairs_in_threes_and_at_the_maximum() -> None:
    small = [(0,), (1,), (2,), (0, 1), (0, 1, 2)]
    assert batches(8) == [*small, (0, 3)]
    assert batches(2) == small[:4]
    assert batches(20) == [*small, (0, 3, 1, 2, 0)]


def test_families_share_their_largest_batches() -> None:
    pools = make_pools(spec(9), None, seed=0)
    *small, last = calls_of(make_cases(spec(9), pools))
    assert {call.size for call in small} == {1, 2, 3}
    assert [(case.family, case.rows) for case in last.cases] == [
        ("normal", (0, 3, 1)), ("image", (0, 3)), ("constant", (0, 3)), ("large", (0, 3)),
    ]  # fmt: skip
    (batch,) = last.inputs({pool.family: pool for pool in pools})
    assert batch.shape[0] == 9
    for case, (part,) in zip(last.cases, last.part([batch]), strict=True):
        (pool,) = (pool for pool in pools if pool.family == case.family)
        assert np.array_equal(part, pool.inputs[0][list(case.rows)])


def test_real_rows_that_one_largest_batch_does_not_hold_are_in_more() -> None:
    real = Samples(path=Path("s.npz"), inputs=(np.zeros((8, 3, 32, 32), np.float32),), digest="")
    calls = [call for call in calls_of(make_cases(spec(8), make_pools(spec(8), real, seed=0))) if call.size == 8]
    assert len(calls) == 2
    asked = {row for call in calls for case in call.cases if case.family == "real" for row in case.rows}
    assert asked >= {3, 4, 5, 6, 7}


@pytest.mark.parametrize("maximum", [1, 2, 3, 4, 8, 64])
def test_every_row_is_asked_twice(maximum: int) -> None:
    pools = make_pools(spec(maximum), None, seed=0)
    for pool in pools:
        for row in range(pool.rows):
            repeated = [
                case
                for case in make_cases(spec(maximum), pools)
                if case.family == pool.family and row in case.rows and case.repeat
            ]
            assert repeated


@pytest.mark.parametrize("rows", [8, 10])
def test_rows_that_are_lost_or_added_in_a_shared_batch_are_missed(rows: int) -> None:
    *_, last = calls_of(make_cases(spec(9), make_pools(spec(9), None, seed=0)))
    fits = [
        len(part) == len(case.rows) for case, (part,) in zip(last.cases, last.part([np.zeros((rows, 2))]), strict=True)
    ]
    assert fits == [True, True, True, False]


def test_rows_of_other_sizes_and_scales_from_the_batch_keep_batches_of_their_own() -> None:
    pools = make_pools(spec(32), None, seed=0)
    assert all(len(call.cases) == 1 for call in calls_of(make_cases(spec(32), pools, mixed=False)))
    wide = spec(32, size=40)
    real = Samples(path=Path("s.npz"), inputs=(np.zeros((8, 3, 40, 40), np.float32),), digest="")
    mixed = [*make_pools(wide, real, seed=0)[:1], *pools]
    largest = [call for call in calls_of(make_cases(spec(32), mixed)) if call.size == 32]
    assert [[case.family for case in call.cases] for call in largest] == [
        ["real"], ["normal", "image", "constant", "large"],
    ]  # fmt: skip


def test_a_static_program_is_asked_one_row_at_a_time() -> None:
    assert batches(1) == [(row,) for row in range(4)]


def test_every_row_of_every_pool_is_asked_for() -> None:
    for maximum in (1, 2, 3, 5, 8, 64):
        pools = make_pools(spec(maximum), None, seed=0)
        cases = make_cases(spec(maximum), pools)
        for pool in pools:
            asked = {row for case in cases if case.family == pool.family for row in case.rows}
            assert asked == set(range(pool.rows))


def test_a_bound_below_keeps_single_rows_out() -> None:
    pair = spec(8).model_copy(update={"dims": (Dim(name=BATCH, minimum=2, maximum=8),)})
    sizes = {call.size for call in calls_of(make_cases(pair, make_pools(pair, None, seed=0)))}
    assert sizes == {2, 3, 8}
