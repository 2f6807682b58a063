"""The inputs of a check: seeded families, real rows, and which rows go together."""

from pathlib import Path

import numpy as np

from deploy.spec import BATCH, Dim, Spec, TensorSpec
from deploy.validate.cases import make_cases
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
    assert batches(8) == [(0,), (1,), (2,), (0, 1), (0, 1, 2), (0, 1, 2, 3, 0, 1, 2, 3)]
    assert batches(2) == [(0,), (1,), (2,), (0, 1)]
    assert [len(rows) for rows in batches(20)] == [1, 1, 1, 2, 3, 20]


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
    sizes = {len(case.rows) for case in make_cases(pair, make_pools(pair, None, seed=0))}
    assert sizes == {2, 3, 8}
