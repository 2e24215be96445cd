"""Merging: hand-computed tensors (base 0, A = (2, -1, 0.1), B = (-1, -3, 0.2)), folders on disk."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from trainorder.config import MergeConfig
from trainorder.merge import merge_folders, tune_scale
from trainorder.merge.methods import Whole, cut_of, dare, merge_tensors
from trainorder.streams import torch_stream

ZERO = torch.zeros(3)
A = torch.tensor([2.0, -1.0, 0.1])
B = torch.tensor([-1.0, -3.0, 0.2])


def test_average_is_the_mean_of_the_weights():
    merged = merge_tensors(torch.ones(3), [A, B], MergeConfig(method="average", scale=9.0))
    torch.testing.assert_close(merged, torch.tensor([0.5, -2.0, 0.15]))


def test_task_arithmetic_adds_scaled_deltas_to_the_base():
    # base 1: 1 + 0.5 * ((2 - 1) + (-1 - 1)) = 0.5
    merged = merge_tensors(torch.ones(3), [A, B], MergeConfig(method="task_arithmetic", scale=0.5))
    torch.testing.assert_close(merged, torch.tensor([0.5, -2.0, 0.15]))


def test_ties_keeps_two_of_three_and_the_elected_sign():
    # trimmed A = (2, -1, 0), B = (-1, -3, 0); signs +, -: 2 stands alone, -1 and -3 agree on -2
    config = MergeConfig(method="ties", density=2 / 3, trim="tensor")
    torch.testing.assert_close(merge_tensors(ZERO, [A, B], config), torch.tensor([2.0, -2.0, 0.0]))


def test_ties_scale_multiplies_the_merged_delta():
    merged = merge_tensors(
        ZERO + 1,
        [A + 1, B + 1],
        MergeConfig(method="ties", density=0.67, scale=0.5, trim="tensor"),
    )
    torch.testing.assert_close(merged, torch.tensor([2.0, 0.0, 1.0]))


def test_ties_trims_over_the_whole_task_vector_or_each_tensor(tmp_path: Path):
    # deltas (10, 9) and (.1, .2), in two shards: half of all entries are 10 and 9, half of each tensor 10 and .2
    large, small = torch.tensor([10.0, 9.0]), torch.tensor([0.1, 0.2])
    base, one = (
        shards(tmp_path / n, {"large": large * v, "small": small * v})
        for n, v in (("base", 0), ("one", 1))
    )
    found = {}
    configs = {"default": MergeConfig(method="ties", density=0.5)}
    configs["tensor"] = MergeConfig(method="ties", density=0.5, trim="tensor")
    for trim, config in configs.items():
        merge_folders(base, [one], tmp_path / "out", config)
        files = [load_file(file) for file in sorted((tmp_path / "out").glob("*.safetensors"))]
        found[trim] = [
            files[0]["large"].tolist(),
            [round(x, 6) for x in files[1]["small"].tolist()],
        ]
    assert found == {"default": [[10.0, 9.0], [0.0, 0.0]], "tensor": [[10.0, 0.0], [0.0, 0.2]]}


def shards(path: Path, tensors: dict[str, torch.Tensor]) -> Path:
    """A file for each tensor."""
    path.mkdir()
    for i, (name, tensor) in enumerate(tensors.items()):
        save_file({name: tensor}, path / f"model-{i + 1:05d}-of-00002.safetensors")
    return path


@pytest.mark.parametrize("density", [1e-9, 0.013, 0.5, 0.999, 1.0])
@pytest.mark.parametrize("kind", ["normal", "bfloat16", "zeros", "equal", "tiny"])
def test_the_cut_is_the_smallest_of_the_kept_share_of_all_entries(kind: str, density: float):
    values = torch.randn(3001, generator=torch_stream("cut"))
    values = {
        "normal": values,
        "bfloat16": values.bfloat16().float(),  # many entries of equal magnitude
        "zeros": torch.where(values > 1, values, 0.0),
        "equal": torch.full_like(values, -0.25),
        "tiny": values * 1e-41,  # below the smallest normal number
    }[kind]
    parts = [values[:1000].view(10, 100), values[1000:1001], values[1001:]]
    kept = max(1, round(density * 3001))
    assert cut_of(lambda: parts, density) == float(values.abs().sort(descending=True)[0][kept - 1])


def test_dare_divides_what_it_keeps_by_the_density():
    kept = dare(torch.full((1000,), 3.0), density=0.5, generator=torch_stream("test"))
    assert sorted(set(kept.tolist())) == [0.0, 6.0]
    assert 430 < (kept > 0).sum() < 570  # 500 expected, sd 16


def test_dare_ties_elects_signs_among_what_dare_kept():
    # density 1 keeps all: sums (1, -4, .3) have signs +, -, +; 2, (-1 - 3) / 2, (.1 + .2) / 2
    whole = MergeConfig(method="dare_ties", density=1.0)
    streams = [torch_stream("dare_ties", i) for i in range(2)]
    merged = merge_tensors(ZERO, [A, B], whole, Whole(generators=streams))
    torch.testing.assert_close(merged, torch.tensor([2.0, -2.0, 0.15]))
    thin = MergeConfig(method="dare_ties", density=0.5)
    kept = merge_tensors(torch.zeros(400), [torch.ones(400)] * 2, thin, Whole(generators=streams))
    assert sorted(set(kept.tolist())) == [0.0, 2.0]  # a mean, where DARE alone would add to 4


def test_sce_weighs_by_energy_and_erases_the_minority_sign():
    # all entries: energies 5.01 and 10.04; signs of the sums +, -, +: 2 and -3 -> (-1 * 5.01 - 3 * 10.04) / 15.05
    merged = merge_tensors(ZERO, [A, B], MergeConfig(method="sce"))
    third = (0.1 * 5.01 + 0.2 * 10.04) / 15.05
    torch.testing.assert_close(merged, torch.tensor([2.0, -35.13 / 15.05, third]))


def test_sce_selects_where_the_deltas_differ_most():
    # variances 2.25, 1, .0025: two of three stay; energies 4 + 1 and 1 + 9, so -1 and -3 give (-1 * 5 - 3 * 10) / 15
    config = MergeConfig(method="sce", density=2 / 3, scale=0.5)
    merged = merge_tensors(ZERO, [A, B], config)
    torch.testing.assert_close(merged, torch.tensor([1.0, -35 / 30, 0.0]))


def test_sce_of_deltas_that_cancel_or_do_not_differ_is_defined():
    config = MergeConfig(method="sce", density=0.5)
    torch.testing.assert_close(merge_tensors(ZERO, [A, -A], config), ZERO)
    torch.testing.assert_close(merge_tensors(ZERO, [A, A], config), A)
    torch.testing.assert_close(merge_tensors(ZERO, [ZERO, ZERO], config), ZERO)


def test_ram_averages_what_several_changed_and_keeps_what_one_changed():
    one, two = torch.tensor([2.0, -1.0, 0.0, 1e-6]), torch.tensor([4.0, 0.0, 3.0, 0.0])
    zero = torch.zeros(4)
    merged = merge_tensors(zero, [one, two], MergeConfig(method="ram"))
    torch.testing.assert_close(merged, torch.tensor([3.0, -1.0, 3.0, 0.0]))
    scaled = MergeConfig(method="ram", scale=0.5)
    merged = merge_tensors(zero, [one, two], scaled, Whole(factors=[1.2, 1.0]))
    torch.testing.assert_close(merged, torch.tensor([1.5, -0.6, 1.5, 0.0]))


def test_ram_counts_what_is_shared_over_all_tensors(tmp_path: Path):
    # one: 1 shared, 2 of its own (factor 1 + .2 * 1 / 2); two: 1 shared, 1 of its own (factor 1.2)
    values = {
        "b": ([0.0, 0.0], [0.0, 0.0]),
        "1": ([1.0, 1.0], [1.0, 0.0]),
        "2": ([3.0, 0.0], [0.0, 1.0]),
    }
    base, *parents = (
        folder(tmp_path / n, {"x": torch.tensor(x), "y": torch.tensor(y)})
        for n, (x, y) in values.items()
    )
    merge_folders(base, parents, tmp_path / "out", MergeConfig(method="ram", unique_scale=1.2))
    found = load_file(tmp_path / "out" / "model.safetensors")
    torch.testing.assert_close(found["x"], torch.tensor([2.0, 1.1]))
    torch.testing.assert_close(found["y"], torch.tensor([1.1, 1.2]))


def test_settings_of_ram_change_no_other_merge():
    assert "threshold" not in MergeConfig(method="ties").results()
    assert MergeConfig(method="ram").results()["unique_scale"] == 1.0


def test_the_scale_with_the_best_score_is_kept_and_nothing_else_is_left(tmp_path: Path):
    base, one = (
        folder(tmp_path / n, {"w": torch.full((2,), v)}) for n, v in (("b", 0.0), ("1", 1.0))
    )
    config = MergeConfig(method="task_arithmetic", scale=[0.5, 2.0, 1.0])

    def nearness_to_two(merged: Path) -> float:
        return -abs(2.0 - float(load_file(merged / "model.safetensors")["w"][0]))

    found = tune_scale(base, [one], tmp_path / "out", config, nearness_to_two)
    assert list(found.items()) == [(2.0, 0.0), (1.0, -1.0), (0.5, -1.5)]
    assert load_file(tmp_path / "out" / "model.safetensors")["w"].tolist() == [2.0, 2.0]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["1", "b", "out"]


def test_dare_masks_differ_between_parents_and_repeat_with_the_seed(tmp_path: Path):
    delta = {"w": torch.ones(64)}
    base, one, two = (
        folder(tmp_path / n, t)
        for n, t in (("b", {"w": torch.zeros(64)}), ("1", delta), ("2", delta))
    )
    config = MergeConfig(method="dare", density=0.5)
    for out in ("x", "y"):
        merge_folders(base, [one, two], tmp_path / out, config)
    merge_folders(base, [one, two], tmp_path / "z", MergeConfig(method="dare", density=0.5, seed=1))
    x, y, z = (load_file(tmp_path / n / "model.safetensors")["w"] for n in "xyz")
    assert sorted(set(x.tolist())) == [0.0, 2.0, 4.0]  # 0, one or both parents kept
    assert torch.equal(x, y)
    assert not torch.equal(x, z)


def folder(path: Path, tensors: dict[str, torch.Tensor]) -> Path:
    path.mkdir()
    save_file(tensors, path / "model.safetensors", {"format": "pt"})
    (path / "config.json").write_text("{}")
    return path


def test_merging_one_checkpoint_onto_its_base_returns_its_bytes(tmp_path: Path):
    tensors = {"a": torch.randn(5, 3, generator=torch_stream("a")), "b": torch.arange(4.0)}
    base = folder(tmp_path / "base", {n: torch.zeros_like(t) for n, t in tensors.items()})
    one = folder(tmp_path / "one", tensors)
    for method in ("average", "task_arithmetic", "ties", "sce", "ram"):
        out = tmp_path / method
        merge_folders(base, [one], out, MergeConfig(method=method))
        assert (out / "model.safetensors").read_bytes() == (one / "model.safetensors").read_bytes()
        assert (out / "config.json").read_text() == "{}"


def test_a_merged_folder_replaces_an_old_one_and_leaves_nothing_else(tmp_path: Path):
    base = folder(tmp_path / "base", {"w": ZERO})
    one = folder(tmp_path / "one", {"w": A})
    out = folder(tmp_path / "out", {"w": B})
    (out / "stale.txt").write_text("old")
    merge_folders(base, [one], out, MergeConfig(method="average"))
    assert sorted(f.name for f in out.iterdir()) == ["config.json", "model.safetensors"]
    assert sorted(f.name for f in tmp_path.iterdir()) == ["base", "one", "out"]


def test_bfloat16_weights_stay_bfloat16_and_are_merged_in_float32(tmp_path: Path):
    # 0.5 - 256 = -255.5 has no bfloat16 between -255 and -256; in float32 the merge is exact
    base = folder(tmp_path / "base", {"w": torch.tensor([256.0]).bfloat16()})
    parent = folder(tmp_path / "parent", {"w": torch.tensor([0.5]).bfloat16()})
    merge_folders(base, [parent], tmp_path / "out", MergeConfig(method="task_arithmetic"))
    merged = load_file(tmp_path / "out" / "model.safetensors")["w"]
    assert merged.dtype == torch.bfloat16
    assert merged.item() == 0.5


def test_other_tensors_than_the_bases_are_refused(tmp_path: Path):
    base = folder(tmp_path / "base", {"w": ZERO})
    other = folder(tmp_path / "other", {"w": torch.zeros(4)})
    with pytest.raises(
        ValueError, match=r"other cannot be merged onto .*base: w is \(4,\) there and \(3,\)"
    ):
        merge_folders(base, [other], tmp_path / "out", MergeConfig(method="average"))
    assert not (tmp_path / "out").exists()


def test_a_folder_without_weights_is_refused(tmp_path: Path):
    (tmp_path / "empty").mkdir()
    base = folder(tmp_path / "base", {"w": ZERO})
    with pytest.raises(ValueError, match="empty holds no model"):
        merge_folders(base, [tmp_path / "empty"], tmp_path / "out", MergeConfig(method="average"))
