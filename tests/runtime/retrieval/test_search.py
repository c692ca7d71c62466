"""The same neighbours as faiss, whichever way they are found, and upstream's blend where upstream's is a number."""

from __future__ import annotations

from pathlib import Path

import faiss
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from rvc_coreml.errors import UsageError
from rvc_coreml.runtime.retrieval import FeatureIndex, Retriever, cells, load_index, open_index, read_index, store_index
from support.indexes import NO_FEATURES, SHARED, clustered, ivf, write

NONE = np.float32(3.4028235e38)
TIE = 1e-5  # relative; closer scores may come in any order
STRATEGIES = ("listed", "padded", "dense")


def index_of(theirs: object, folder: Path) -> FeatureIndex:
    return read_index(write(theirs, folder / "some.index"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("indexes")


def assert_like_faiss(ours: tuple[torch.Tensor, torch.Tensor], scores: NDArray[np.float32], ids: NDArray[np.int64]) -> None:
    """Scores within rounding; ids equal, but for those whose scores lie closer together than that."""
    np.testing.assert_allclose(ours[0].numpy(), scores, rtol=TIE, atol=1e-7)
    differs = ours[1].numpy() != ids
    wide = np.concatenate([np.full((len(scores), 1), -np.inf), scores, np.full((len(scores), 1), np.inf)], 1).astype(np.float64)
    gap = np.minimum(wide[:, 1:-1] - wide[:, :-2], wide[:, 2:] - wide[:, 1:-1])
    gap[:, -1] = (wide[:, 1:-1] - wide[:, :-2])[:, -1]  # what faiss has ninth is not known
    last = np.zeros_like(differs)
    last[:, -1] = True
    assert not (differs & (gap > TIE * scores) & ~last).any()
    assert (differs & last).mean() < 0.001


def own_blend(theirs: object, features: NDArray[np.float32], rate: float, vectors: NDArray[np.float32]) -> NDArray[np.float64]:
    """rvc_inference.md section 6, in float64 on faiss's neighbours."""
    scores, ids = theirs.search(features, 8)
    weight = np.square(1 / scores.astype(np.float64))
    weight /= weight.sum(1, keepdims=True)
    return rate * (weight[:, :, None] * vectors[ids]).sum(1) + (1 - rate) * features


@settings(max_examples=60, deadline=None)
@given(
    width=st.sampled_from([1, 3, 16, 40, 256]),
    count=st.integers(1, 200),
    share=st.integers(1, 40),
    frames=st.integers(1, 30),
    nprobe=st.integers(1, 5),
    k=st.sampled_from([1, 8]),
    strategy=st.sampled_from(STRATEGIES),
    seed=st.integers(0, 99),
)
def test_any_shape_finds_what_faiss_finds(
    folder: Path, width: int, count: int, share: int, frames: int, nprobe: int, k: int, strategy: str, seed: int
) -> None:
    vectors = clustered(count, width, seed)
    theirs = ivf(vectors, max(1, count // share), nprobe)
    queries = clustered(frames, width, seed + 1000)
    assert_like_faiss(
        Retriever(index_of(theirs, folder), k=k, strategy=strategy).search(torch.from_numpy(queries)), *theirs.search(queries, k)
    )


@pytest.fixture(scope="module")
def many_cells(folder: Path) -> tuple[object, FeatureIndex]:
    """700 cells: bounds by directions are used."""
    theirs = ivf(clustered(4000, 256, groups=300, spread=0.2), 700)
    return theirs, index_of(theirs, folder)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("frames", [1, 2, 300])
def test_many_cells(many_cells: tuple, frames: int, strategy: str) -> None:
    theirs, index = many_cells
    queries = clustered(frames, 256, seed=5, groups=300, spread=0.2)
    ours = Retriever(index, strategy=strategy)
    assert strategy != "listed" or ours._search.cells.bounds is not None
    assert_like_faiss(ours.search(torch.from_numpy(queries)), *theirs.search(queries, 8))


@pytest.mark.parametrize("nprobe", [1, 4, 600])
@pytest.mark.parametrize("make", ["far apart", "no direction", "one direction", "one place", "large offset", "silence"])
def test_cells_are_the_nearest_whatever_the_bounds_are_worth(make: str, nprobe: int) -> None:
    """Centroids for which the bounds prove nothing, or everything, against float64."""
    random = torch.Generator().manual_seed(3)
    centroids = torch.randn(700, 200, generator=random)
    queries = torch.randn(40, 200, generator=random)
    if make == "far apart":
        centroids *= torch.logspace(3, -3, 200)
        queries *= torch.logspace(3, -3, 200)
    elif make == "one direction":
        centroids = centroids[:, :1] * torch.ones(200)
    elif make == "one place":
        centroids = 1 + 1e-3 * centroids
    elif make == "large offset":
        centroids, queries = centroids + 1000, queries + 1000
    elif make == "silence":  # more centroids nearly in one place than are looked at closely
        centroids[:300] = centroids[0] + 1e-4 * centroids[:300]
        queries = centroids[:40] + 1e-4 * queries
    expected = torch.cdist(queries.double(), centroids.double(), compute_mode="donot_use_mm_for_euclid_dist")
    for finder in (cells.BoundedCells, cells.DeviceCells):
        found = finder(centroids, nprobe).nearest(queries)
        assert all(len(set(row)) == nprobe for row in found.tolist())
        best = expected.sort(1).values[:, :nprobe]
        if make == "silence" and finder is cells.DeviceCells:
            continue  # takes one of those
        torch.testing.assert_close(expected.gather(1, found), best, rtol=1e-2 if make == "silence" else 2e-6, atol=1e-6)


@settings(max_examples=60, deadline=None)
@given(frames=st.integers(1, 40), columns=st.integers(1, 700), count=st.integers(1, 20), values=st.integers(2, 2000))
def test_the_lowest_of_a_row_are_found_among_columns_taken_together(frames: int, columns: int, count: int, values: int) -> None:
    scores = torch.randint(values, (frames, columns), generator=torch.Generator().manual_seed(columns)).float()
    count = min(count, columns)
    best, chosen = cells.lowest(scores, count)
    assert best.equal(scores.sort(1).values[:, :count])
    assert scores.gather(1, chosen).equal(best)
    assert all(len(set(row)) == count for row in chosen.tolist())


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("offset", [0, 30])
def test_vectors_that_hardly_differ_are_told_apart(folder: Path, strategy: str, offset: int) -> None:
    """Silence: hundreds of vectors nearer to one another than |x|^2 - 2xy + |y|^2 resolves."""
    random = np.random.default_rng(0)
    vectors = (offset + random.standard_normal(64) + 1e-3 * random.standard_normal((600, 64))).astype(np.float32)
    vectors[300:] += 3
    theirs = ivf(vectors, 2)
    queries = (vectors[:50] + 1e-3 * random.standard_normal((50, 64))).astype(np.float32)
    scores, ids = theirs.search(queries, 8)
    ours = Retriever(index_of(theirs, folder), strategy=strategy).search(torch.from_numpy(queries))
    assert_like_faiss(ours, scores, ids)


@pytest.mark.parametrize("budget", [1, 10_000, 1 << 20])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_any_budget_finds_the_same(many_cells: tuple, strategy: str, budget: int) -> None:
    theirs, index = many_cells
    queries = clustered(20, 256, seed=6, groups=300, spread=0.2)
    ours = Retriever(index, strategy=strategy, budget=budget).search(torch.from_numpy(queries))
    assert_like_faiss(ours, *theirs.search(queries, 8))


@pytest.mark.parametrize("strategy", ["padded", "dense"])
def test_half_precision_only_finds_candidates(many_cells: tuple, strategy: str) -> None:
    theirs, index = many_cells
    queries = clustered(40, 256, seed=7, groups=300, spread=0.2)
    ours = Retriever(index, dtype=torch.float16, strategy=strategy)
    assert ours._search.rough.dtype == torch.float16
    assert_like_faiss(ours.search(torch.from_numpy(queries)), *theirs.search(queries, 8))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("budget", [1, 1 << 24])
def test_exact_mode_is_a_search_of_all_vectors(many_cells: tuple, budget: int, dtype: torch.dtype) -> None:
    _theirs, index = many_cells
    flat = faiss.IndexFlatL2(256)
    vectors = np.empty((index.count, 256), np.float32)
    vectors[index.ids.numpy()] = index.vectors.numpy()
    flat.add(vectors)
    queries = clustered(10, 256, seed=8, groups=300, spread=0.2)
    ours = Retriever(index, mode="exact", dtype=dtype, budget=budget, strategy="dense")
    assert_like_faiss(ours.search(torch.from_numpy(queries)), *flat.search(queries, 8))


def test_exact_and_faithful_differ_where_the_nearest_is_in_another_cell(many_cells: tuple) -> None:
    _theirs, index = many_cells
    queries = torch.from_numpy(clustered(100, 256, seed=8, groups=300, spread=0.2))
    exact, faithful = (Retriever(index, mode=mode).search(queries)[0] for mode in ("exact", "faithful"))
    assert bool((exact <= faithful * (1 + TIE)).all())
    assert bool((exact < faithful * 0.99).any())


@pytest.mark.parametrize("rate", [0.3, 1.0])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_blend_is_upstreams(many_cells: tuple, strategy: str, rate: float) -> None:
    theirs, index = many_cells
    queries = clustered(60, 256, seed=9, groups=300, spread=0.2)
    full = theirs.search(queries, 8)[1].min(1) >= 0
    assert full.sum() > 3
    ours = Retriever(index, strategy=strategy).blend(torch.from_numpy(queries), rate)
    expected = own_blend(theirs, queries, rate, theirs.reconstruct_n(0, theirs.ntotal))
    np.testing.assert_allclose(ours.numpy()[full], expected[full], atol=3e-6)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_short_cells_share_the_weight_among_what_they_hold(folder: Path, strategy: str) -> None:
    vectors = np.array([[0, 0], [0, 1], [100, 100]], np.float32)
    theirs = ivf(vectors, 2)
    ours = Retriever(index_of(theirs, folder), strategy=strategy)
    queries = torch.tensor([[0.0, 0.25], [99.0, 100.0]])
    scores, ids = ours.search(queries)
    assert ids.tolist() == [[0, 1, -1, -1, -1, -1, -1, -1], [2, -1, -1, -1, -1, -1, -1, -1]]
    assert (scores.numpy()[ids.numpy() < 0] == NONE).all()
    near, far = 1 / 0.25**4, 1 / 0.75**4
    torch.testing.assert_close(ours.blend(queries, 1.0), torch.tensor([[0.0, far / (near + far)], [100.0, 100.0]]))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_exact_hits_take_all_the_weight(folder: Path, strategy: str) -> None:
    vectors = clustered(60, 16)
    vectors[7] = vectors[3]
    ours = Retriever(index_of(ivf(vectors, 2), folder), strategy=strategy)
    queries = torch.from_numpy(vectors[[3, 20]])
    scores, ids = ours.search(queries)
    assert scores[:, 0].tolist() == [0, 0]
    assert sorted(ids[0, :2].tolist()) == [3, 7]
    torch.testing.assert_close(ours.blend(queries, 1.0), queries, rtol=0, atol=1e-6)
    assert ours.blend(queries + 1e-25, 0.5).isfinite().all()


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_frames_without_any_neighbour_stay_as_they_are(folder: Path, strategy: str) -> None:
    vectors = np.concatenate([clustered(40, 8), clustered(40, 8) + 50])
    theirs = ivf(vectors, 2, added=40)  # nothing is in the far cell
    ours = Retriever(index_of(theirs, folder), strategy=strategy)
    queries = torch.from_numpy(vectors[[1, 60]] + np.float32(0.1))
    assert ours.search(queries)[1][1].tolist() == [-1] * 8
    blended = ours.blend(queries, 1.0)
    assert blended[1].equal(queries[1])
    assert not blended[0].equal(queries[0])


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_frames_that_are_not_finite_do_no_harm(many_cells: tuple, strategy: str) -> None:
    _theirs, index = many_cells
    queries = torch.from_numpy(clustered(4, 256, seed=10, groups=300, spread=0.2))
    odd = queries.clone()
    odd[1, 3], odd[2, 0] = torch.nan, torch.inf
    ours = Retriever(index, strategy=strategy)
    ids = ours.search(odd)[1]
    assert ids[[0, 3]].equal(ours.search(queries)[1][[0, 3]])
    assert ids[[1, 2]].tolist() == [[-1] * 8] * 2
    torch.testing.assert_close(ours.blend(odd, 0.5)[[1, 2]], odd[[1, 2]], equal_nan=True)


def test_rate_zero_leaves_features_and_others_are_refused(many_cells: tuple) -> None:
    ours = Retriever(many_cells[1])
    features = torch.from_numpy(clustered(3, 256))
    assert ours.blend(features, 0.0).equal(features)
    assert ours.blend(features.half(), 0.7).dtype == torch.float16
    assert ours.search(features[:0])[0].shape == ours.search(features[:0])[1].shape == (0, 8)
    assert ours.blend(features[:0], 0.7).shape == (0, 256)
    for rate in (-0.1, 1.5, float("nan")):
        with pytest.raises(UsageError, match="give 0 to 1"):
            ours.blend(features, rate)
    with pytest.raises(UsageError, match="width 256"):
        ours.search(features[:, :-1])
    with pytest.raises(UsageError, match="faithful or exact"):
        Retriever(many_cells[1], mode="approximate")


def test_the_callers_random_numbers_are_not_touched(many_cells: tuple) -> None:
    torch.manual_seed(5)
    expected = torch.randn(4)
    torch.manual_seed(5)
    Retriever(many_cells[1]).search(torch.from_numpy(clustered(3, 256)))
    assert torch.randn(4).equal(expected)


def real(jitter: float = 0.0, count: int | None = None, seed: int = 0) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Vectors to index and frames to look up, which are not among them."""
    if not SHARED.exists():
        pytest.skip(NO_FEATURES)
    features = np.load(SHARED)
    random = np.random.default_rng(seed)
    order = random.permutation(len(features))
    if count is None:
        return features[order[:1700]], features
    chosen = features[random.integers(0, len(features), count)]
    noise = (random.standard_normal((len(chosen), 768), np.float32), random.standard_normal(features.shape, np.float32))
    return chosen + np.float32(jitter) * noise[0], features + np.float32(jitter) * noise[1]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_real_features_over_1700_real_vectors(folder: Path, strategy: str) -> None:
    """All but 43 of the frames are exact hits, where the score has to be 0."""
    vectors, queries = real()
    queries = queries[:: 1 if strategy == "listed" else 6]
    theirs = ivf(vectors, 43)
    ours = Retriever(load_stored(theirs, folder), strategy=strategy)
    assert_like_faiss(ours.search(torch.from_numpy(queries)), *theirs.search(queries, 8))
    jittered = queries + np.float32(0.05) * np.random.default_rng(4).standard_normal(queries.shape, np.float32)
    assert_like_faiss(ours.search(torch.from_numpy(jittered)), *theirs.search(jittered, 8))
    full = theirs.search(jittered, 8)[1].min(1) >= 0
    blended = ours.blend(torch.from_numpy(jittered), 0.75).numpy()
    np.testing.assert_allclose(blended[full], own_blend(theirs, jittered, 0.75, vectors)[full], atol=5e-6)


def load_stored(theirs: object, folder: Path) -> FeatureIndex:
    """As a library keeps it."""
    store_index(open_index(write(theirs, folder / "some.index")), folder / "some.safetensors")
    return load_index(folder / "some.safetensors")


@pytest.mark.slow
def test_real_features_over_200000_jittered_vectors(folder: Path) -> None:
    vectors, queries = real(0.07, 200_000)
    theirs = faiss.index_factory(768, "IVF5128,Flat")
    theirs.cp.niter = 2
    theirs.train(vectors[:40_000])
    theirs.add(vectors)
    index = load_stored(theirs, folder)
    for strategy in STRATEGIES:
        some = queries if strategy == "listed" else queries[::17]
        assert_like_faiss(Retriever(index, strategy=strategy).search(torch.from_numpy(some)), *theirs.search(some, 8))
