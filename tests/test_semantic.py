"""Tissue as a mask: its scores, its losses, the models by name, and the whole from images to Dice."""

import json
import os
from dataclasses import dataclass, replace

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from hpacell.feed.instance_augment import INSTANCE_AUGMENTATIONS
from hpacell.feed.patches import PatchFeed
from hpacell.fields.intensity import normalise_intensity
from hpacell.metrics.tissue import (
    THRESHOLDS,
    choose_thresholds_by_organ,
    count_reached,
    dice,
    dice_curve,
    image_influence,
    score_tissue,
    summarise_tissue,
)
from hpacell.models import tissue
from hpacell.models.region_losses import REGION_LOSSES, RegionLoss, check_region_loss, keras
from hpacell.models.semantic import SEMANTIC, SemanticConfig, make_semantic, predict_mask, predict_probability
from hpacell.models.tissue import cross_validate_tissue, load_tissue, train_tissue
from hpacell.models.tissue_recipe import ReducedImage, TissueSettings, split_tissue
from hpacell.models.weights import keep_weights

SHAPES = st.tuples(st.integers(1, 12), st.integers(1, 12))
MASKS = SHAPES.flatmap(
    lambda shape: st.tuples(arrays(np.uint8, shape, elements=st.sampled_from([0, 1, 1, 3, 255])), arrays(bool, shape), arrays(np.float32, shape, elements=st.floats(0, 1, width=32)))
)


def plain_dice(truth, pred):
    """Pixel by pixel, as the definition says."""
    both = n = 0
    for true, found in zip(truth.ravel().tolist(), pred.ravel().tolist(), strict=True):
        if true != 255:
            both += bool(true) and found
            n += bool(true) + found
    return 2 * both / n if n else 1.0


@given(MASKS)
@settings(deadline=None, max_examples=80)
def test_dice_is_its_definition(drawn):
    truth, pred, probability = drawn
    assert dice(truth, pred) == pytest.approx(plain_dice(truth, pred))
    flipped = np.where(truth == 255, truth, truth == 0).astype(np.uint8)
    row = score_tissue([(truth, pred)], ["kidney"]).iloc[0]
    assert row["dice_with_background"] == pytest.approx((plain_dice(truth, pred) + plain_dice(flipped, ~pred)) / 2)
    assert row["n_ignored"] == (truth == 255).sum() and row["n_truth"] == ((truth != 0) & (truth != 255)).sum()
    assert dice(truth, pred, ignore=None) == pytest.approx(plain_dice((truth != 0).astype(np.uint8), pred))
    steps = (0.0, 0.25, 0.5, 1.0)
    np.testing.assert_allclose(dice_curve(truth, probability, steps), [plain_dice(truth, probability >= step) for step in steps])


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_the_curve_and_the_mask_agree_on_what_reaches_a_threshold(dtype):
    rng = np.random.default_rng(0)
    steps = np.array(THRESHOLDS)
    probability = np.concatenate([steps, rng.choice(steps, 163), rng.integers(0, 256, 200) / 255]).astype(dtype).reshape(16, 25)
    probability[0, :5] = np.nextafter(probability[0, :5], dtype(0))
    truth = rng.integers(0, 2, probability.shape).astype(np.uint8)
    each = [dice(truth, probability >= step) for step in THRESHOLDS]
    np.testing.assert_array_equal(dice_curve(truth, probability), each)
    np.testing.assert_array_equal(count_reached(probability), np.sum([probability >= step for step in THRESHOLDS], axis=0))
    best = choose_thresholds_by_organ([(truth, probability)], ["kidney"])[""]
    assert dice(truth, probability >= best) == max(each)


def random_pairs(n, seed=0):
    rng = np.random.default_rng(seed)
    truths = [(rng.random((20, 20)) < 0.3).astype(np.uint8) for _ in range(n)]
    return [(truth, truth.astype(bool) ^ (rng.random((20, 20)) < rng.uniform(0, 0.4))) for truth in truths]


def test_scores_of_organs_are_means_of_their_images():
    pairs, organs = random_pairs(9), ["lung"] * 3 + ["spleen"] * 5 + ["kidney"]
    scores = score_tissue(iter(pairs), organs, names=[f"i{i}" for i in range(9)], n_bootstrap=400, seed=1)
    each = np.array([plain_dice(*pair) for pair in pairs])
    means = scores[scores["level"] != "image"].set_index("image")
    assert list(means.index) == ["kidney", "lung", "spleen", "all"] and list(means["n_images"]) == [1, 3, 5, 9]
    np.testing.assert_allclose(means["dice"], [each[8], each[:3].mean(), each[3:8].mean(), each.mean()])
    assert means.loc["kidney", ["dice_low", "dice_high"]].isna().all(), "one image has no interval"
    assert means.loc[["lung", "spleen"], ["dice_low", "dice_high"]].isna().all(axis=None), "and neither have five"
    assert means.loc["all", "dice_low"] <= means.loc["all", "dice"] <= means.loc["all", "dice_high"]
    # The interval of a mean of many images is that of the normal distribution.
    many = score_tissue(random_pairs(80), ["lung"] * 80, n_bootstrap=2000).iloc[-1]
    each = np.array([plain_dice(*pair) for pair in random_pairs(80)])
    assert many["dice_high"] - many["dice_low"] == pytest.approx(2 * 1.96 * each.std() / np.sqrt(80), rel=0.1)
    again = score_tissue(pairs, organs, names=[f"i{i}" for i in range(9)], n_bootstrap=400, seed=1)
    assert again.equals(scores)


def test_empty_masks_and_what_they_are_worth():
    nothing, some = np.zeros((5, 5), np.uint8), np.zeros((5, 5), bool)
    some[2] = True
    assert dice(nothing, nothing) == 1 and np.isnan(dice(nothing, nothing, empty=np.nan))
    assert dice(nothing, some) == 0 and dice(some.astype(np.uint8), nothing) == 0
    assert dice(np.full((5, 5), 255), some) == 1, "nothing is known, so nothing is wrong"
    pairs = [(nothing, nothing), (some.astype(np.uint8), some), (nothing, some)]
    row = score_tissue(pairs, ["lung"] * 3).iloc[-1]
    assert row["dice"] == pytest.approx(2 / 3) and row["n_empty"] == 2
    assert score_tissue(pairs, ["lung"] * 3, empty=np.nan).iloc[-1]["dice"] == pytest.approx(1 / 2)


def test_influence_is_the_mean_without_the_image():
    pairs = random_pairs(6)
    influence = image_influence(score_tissue(pairs, ["lung"] * 6))
    each = np.array([plain_dice(*pair) for pair in pairs])
    assert influence["image"].iloc[0] == str(each.argmin())
    for row in influence.itertuples():
        rest = np.delete(each, int(row.image)).mean()
        assert row.without == pytest.approx(rest) and row.influence == pytest.approx(rest - each.mean())
    assert np.isnan(image_influence(score_tissue(pairs[:1], ["lung"]))["influence"].iloc[0])


def test_thresholds_are_the_best_of_all_that_were_tried():
    rng = np.random.default_rng(3)
    pairs, organs = [], []
    for organ, level in (("lung", 0.35), ("spleen", 0.8), ("rare", 0.1)):
        for _ in range(1 if organ == "rare" else 4):
            truth = (rng.random((30, 30)) < 0.4).astype(np.uint8)
            pairs.append((truth, np.clip(truth * level + rng.uniform(0, 0.5, truth.shape), 0, 1)))
            organs.append(organ)
    chosen = choose_thresholds_by_organ(iter(pairs), organs)
    for organ in ("lung", "spleen"):
        own = [pair for pair, one in zip(pairs, organs, strict=True) if one == organ]
        means = {step: np.mean([plain_dice(truth, found >= step) for truth, found in own]) for step in THRESHOLDS}
        assert means[chosen[organ]] == pytest.approx(max(means.values()))
    assert chosen["rare"] == chosen[""], "a single image chooses nothing"
    assert choose_thresholds_by_organ(pairs, organs, least=1)["rare"] != chosen[""]


def plain_losses(truth, logits):
    """Of one image (N,) with truth 0 and 1, by loops and definitions."""
    p = 1 / (1 + np.exp(-logits.astype(np.float64)))
    hits, false, missed = (truth * p).sum(), ((1 - truth) * p).sum(), (truth * (1 - p)).sum()
    found = {
        "bce": -np.mean(truth * np.log(p) + (1 - truth) * np.log(1 - p)),
        "dice": 1 - (2 * hits + 1) / (2 * hits + false + missed + 1),
        "tversky": 1 - (hits + 1) / (hits + 0.3 * false + 0.7 * missed + 1),
    }
    # Lovász: the errors in falling order, each times what its pixel adds to the Jaccard loss of the set of wrong pixels.
    errors = 1 - logits.astype(np.float64) * (2 * truth - 1)
    wrong, before, total = np.zeros(len(truth), bool), 0.0, 0.0
    for i in np.argsort(-errors, kind="stable"):
        wrong[i] = True
        now = wrong.sum() / ((truth > 0) | wrong).sum()
        total += max(errors[i], 0) * (now - before)
        before = now
    return found | {"lovasz": total}


@given(st.integers(0, 10_000), st.floats(0, 1), st.floats(0.1, 6))
@settings(deadline=None, max_examples=30)
def test_losses_are_their_definitions(seed, share, scale):
    rng = np.random.default_rng(seed)
    truth = rng.choice([0, 1, 255], (2, 5, 6, 1), p=[0.8 * (1 - share), 0.8 * share, 0.2]).astype(np.uint8)
    logits = rng.normal(0, scale, truth.shape).astype(np.float32)
    for name in REGION_LOSSES:
        got = np.asarray(RegionLoss(name).each(truth, logits))
        for i in range(2):
            known = truth[i].ravel() != 255
            expected = plain_losses(truth[i].ravel()[known].astype(float), logits[i].ravel()[known])[name] if known.any() else 0
            assert got[i] == pytest.approx(expected, abs=2e-4, rel=2e-4), name


def test_losses_agree_with_keras_and_with_each_other():
    rng = np.random.default_rng(0)
    truth, logits = rng.integers(0, 2, (3, 8, 8, 1)), rng.normal(0, 2, (3, 8, 8, 1)).astype(np.float32)
    keras_bce = keras.losses.BinaryCrossentropy(from_logits=True)
    assert float(RegionLoss("bce")(truth, logits)) == pytest.approx(float(keras_bce(truth, logits)), rel=1e-5)
    halves = RegionLoss({"tversky": {"alpha": 0.5, "beta": 0.5, "smooth": 0.5}})
    assert float(halves(truth, logits)) == pytest.approx(float(RegionLoss("dice")(truth, logits)), rel=1e-5)
    # Of hard answers the Lovász hinge with margin 1 is the Jaccard loss times the size of the errors.
    hard = np.where(rng.random(truth.shape) < 0.8, truth, 1 - truth)
    jaccards = [1 - (t & p).sum() / (t | p).sum() for t, p in zip(truth, hard, strict=True)]
    assert float(RegionLoss("lovasz")(truth, (2 * hard - 1).astype(np.float32))) == pytest.approx(2 * np.mean(jaccards), rel=1e-5)


@pytest.mark.parametrize("name", [*REGION_LOSSES, "bce+dice+lovasz"])
def test_losses_lead_to_the_truth(name):
    """Logits as weights: each loss has slopes that are finite, 0 where nothing is known, and lead to the mask."""
    truth = np.zeros((1, 8, 8, 1), np.float32)
    truth[0, 2:5, 2:6], truth[0, 0] = 1, 255

    class Logits(keras.layers.Layer):
        def build(self, shape):
            self.logits = self.add_weight(shape=(1, 8, 8, 1), initializer=keras.initializers.RandomNormal(stddev=0.1, seed=0))

        def call(self, x):
            return self.logits + 0 * x

    model = keras.Sequential([keras.Input((8, 8, 1)), Logits()])
    model.compile(keras.optimizers.Adam(0.3), loss=RegionLoss(name))
    before = np.array(model.get_weights()[0])
    x = np.zeros((1, 8, 8, 1), np.float32)
    first = float(model.train_on_batch(x, truth))
    for _ in range(60):
        model.train_on_batch(x, truth)
    after = model.get_weights()[0]
    assert np.isfinite(after).all()
    np.testing.assert_allclose(after[0, 0], before[0, 0], atol=1e-6)
    assert dice(truth[0, ..., 0].astype(int), after[0, ..., 0] > 0) == 1
    assert float(RegionLoss(name)(truth, after)) < 0.7 * first


def test_a_mixture_is_checked():
    assert check_region_loss({"bce": 0.5, "dice": None}) == [("bce", 0.5, {}), ("dice", 1.0, {"smooth": 1.0})]
    for wrong in ("", "bce+", {}, 3, None, {"bce": -1}, {"bce": True}, {"lovasz": {"alpha": 1}}, {"bce": {"weight": "much"}}):
        with pytest.raises(ValueError, match="expected"):
            check_region_loss(wrong)


SMALL = {
    "unet": {"stem": 4, "filters": [6, 8]},
    "unet_efficientnet_v2_b0": {"weights": "none", "filters": [16, 8, 8, 8, 8]},
    "deeplab_v3_plus": {"weights": "none", "filters": [64, 16, 16, 16], "units": 16},
    "segformer_b0": {"dims": [8, 16, 20, 32], "depths": [1, 1, 1, 1], "units": 16},
}


# The last normalisation of keras-cv's backbone lies behind what DeepLab reads of it.
@pytest.mark.filterwarnings("ignore:Gradients do not exist for variables .'post_bn/gamma', 'post_bn/beta'.")
@pytest.mark.parametrize(("name", "channels"), [("unet", 1), ("unet", 4), ("unet_efficientnet_v2_b0", 4), ("deeplab_v3_plus", 1), ("segformer_b0", 4)])
def test_models_take_any_channels_and_learn(name, channels):
    keras.utils.set_random_seed(0)
    config = SemanticConfig(name, SMALL[name], n_channels=channels, tile=64, overlap=16)
    network = make_semantic(config, fresh=True)
    rng = np.random.default_rng(0)
    truth = np.zeros((2, 64, 64, 1), np.float32)
    truth[:, 16:48, 8:40], truth[:, :4] = 1, 255
    images = (truth == 1) * 0.7 + rng.uniform(0, 0.3, (2, 64, 64, channels)).astype(np.float32)
    logits = np.asarray(network(images))
    assert logits.shape == (2, 64, 64, 1) and logits.dtype == np.float32
    assert logits.std() > 1e-6 and not np.allclose(logits, logits.flat[0]), "a softmax of one number would be 1 everywhere"
    network.compile(keras.optimizers.Adam(3e-3), loss=RegionLoss("bce+dice"))
    before = [np.array(weight) for weight in network.get_weights()]
    losses = [float(network.train_on_batch(images, truth)) for _ in range(6)]
    assert np.isfinite(losses).all() and losses[-1] < losses[0]
    moved = [not np.array_equal(old, new) for old, new in zip(before, network.get_weights(), strict=True)]
    assert np.mean(moved) > 0.9, "nearly all weights take part"
    if name != "segformer_b0":
        assert np.asarray(network(np.zeros((1, 128, 192, channels), np.float32))).shape == (1, 128, 192, 1)
    image = rng.random((100, 150, channels)).astype(np.float32)
    assert predict_probability(network, image, config).shape == (100, 150)


def test_every_name_is_made_from_the_same_kinds():
    assert set(SMALL) <= set(SEMANTIC) and {f"unet_efficientnet_v2_b{i}" for i in range(4)} <= set(SEMANTIC)
    for wrong in ({"model": "unet3"}, {"parameters": {"filter": 3}}, {"tile": 65}, {"overlap": 300}, {"thresholds": {}}, {"thresholds": {"": 2}}, {"reduce": 0}):
        with pytest.raises(ValueError, match="expected"):
            SemanticConfig(**wrong)
    config = SemanticConfig("deeplab_v3_plus", SMALL["deeplab_v3_plus"], 4, 2, 256, 32, thresholds={"": 0.4, "lung": 0.3})
    assert SemanticConfig.from_json(config.to_json()) == config and config.threshold("lung") == 0.3 and config.threshold("heart") == 0.4


@pytest.fixture(scope="module")
def network():
    keras.utils.set_random_seed(1)
    made = make_semantic(SemanticConfig("unet", SMALL["unet"], n_channels=2, tile=64, overlap=16))
    for weight in made.weights:  # as after a training: no channel is normalised as any other
        if "moving_variance" in weight.path or "gamma" in weight.path:
            weight.assign(np.random.default_rng(2).uniform(0.5, 1.5, weight.shape))
    return made


def plain(network, image):
    return 1 / (1 + np.exp(-np.asarray(network(image[None]), np.float64)))[0, ..., 0]


def test_an_image_that_fits_a_tile_is_seen_as_it_is(network):
    image = np.random.default_rng(0).random((128, 192, 2)).astype(np.float32)
    config = SemanticConfig("unet", SMALL["unet"], n_channels=2, tile=192, overlap=16)
    np.testing.assert_allclose(predict_probability(network, image, config), plain(network, image), atol=1e-5)
    found = predict_probability(network, image, replace(config, flips=True))
    mirrors = [plain(network, np.ascontiguousarray(image[::i, ::j]))[::i, ::j] for i in (1, -1) for j in (1, -1)]
    np.testing.assert_allclose(found, np.mean(mirrors, axis=0), atol=1e-5)
    np.testing.assert_allclose(predict_probability(network, np.ascontiguousarray(image[:, ::-1]), replace(config, flips=True)), found[:, ::-1], atol=1e-5)


def test_tiles_say_what_the_whole_says_away_from_their_borders(network):
    """The network sees 22 pixels far; where one tile alone reaches, further than that from its border, nothing may differ."""
    image = np.random.default_rng(0).random((256, 256, 2)).astype(np.float32)
    whole = plain(network, image)
    assert whole.std() > 1e-3, "the network looks at the image"
    found = predict_probability(network, image, SemanticConfig("unet", SMALL["unet"], n_channels=2, tile=128, overlap=0))
    far = np.zeros((256, 256), bool)
    for row in (0, 128):
        for col in (0, 128):
            far[row + (24 if row else 0) : row + (128 if row else 104), col + (24 if col else 0) : col + (128 if col else 104)] = True
    np.testing.assert_allclose(found[far], whole[far], atol=1e-5)
    assert np.abs(found - whole).max() > 1e-4, "at the borders of the tiles it does"
    shared = predict_probability(network, image, SemanticConfig("unet", SMALL["unet"], n_channels=2, tile=128, overlap=64))
    assert np.abs(shared - whole).mean() < 0.5 * np.abs(found - whole).mean(), "tiles that overlap differ less"


@given(st.integers(1, 150), st.integers(1, 150), st.integers(1, 4), st.booleans())
@settings(deadline=None, max_examples=15)
def test_any_size_and_reduction_gives_a_mask_of_that_size(height, width, reduce, flips):
    inputs = keras.Input((None, None, 1))
    pointwise = keras.Model(inputs, keras.layers.Conv2D(1, 1, kernel_initializer="ones")(inputs))
    image = np.random.default_rng(height).random((height, width, 1)).astype(np.float32)
    config = SemanticConfig(n_channels=1, tile=64, overlap=16, reduce=reduce, flips=flips, thresholds={"": 0.6})
    found = predict_probability(pointwise, image, config)
    assert found.shape == (height, width) and found.dtype == np.float32
    if reduce == 1:
        np.testing.assert_allclose(found, plain(pointwise, image), atol=1e-5)
    np.testing.assert_array_equal(predict_mask(pointwise, image, config), found >= 0.6)


@dataclass(frozen=True)
class Painted:
    """Bright discs on grey ground, with a border that nobody knows."""

    image_id: str
    kind: str
    seed: int
    size: int = 96

    def read(self):
        rng = np.random.default_rng(self.seed)
        rows, cols = np.mgrid[: self.size, : self.size]
        mask = np.zeros((self.size, self.size), np.int32)
        for row, col in rng.uniform(10, self.size - 10, (4, 2)):
            mask[(rows - row) ** 2 + (cols - col) ** 2 < 120] = 1
        image = 90 + 80 * mask[..., None] + rng.normal(0, 12, (self.size, self.size, 3))
        mask[:, :8] = 255
        return image.clip(0, 255).astype(np.uint8), mask

    def read_image(self):
        return self.read()[0]


IMAGES = [Painted(f"t{i}", ("kidney", "lung")[i % 2], i) for i in range(10)]
TINY = TissueSettings(
    parameters={"stem": 4, "filters": [8]}, patch=64, tile=64, overlap=16, epochs=3, steps_per_epoch=6, batch_size=4, augment=("flip", "rotate90"), flips=False,
    learning_rate=0.03,
)  # fmt: skip


@pytest.mark.parametrize("name", INSTANCE_AUGMENTATIONS)
def test_masks_keep_what_they_say_under_each_augmentation(name):
    if name in ("intensity", "invert", "noise", "blur"):
        augment = [{name: {"probability": 1}}]  # the mask is that of the plain patch
        drawn, plain_ = (PatchFeed(IMAGES, 64, 3, 3, augment=one, regions=True).batch(0, 0) for one in (augment, []))
        np.testing.assert_array_equal(drawn[1], plain_[1])
    images, masks = PatchFeed(IMAGES, 64, 4, 3, augment=[{name: {"probability": 1}}], regions=True).batch(0, 1)
    assert images.shape == (4, 64, 64, 3) and masks.shape == (4, 64, 64) and masks.dtype == np.int32
    assert set(np.unique(masks)) <= {0, 1, 255} and (masks == 1).any()
    if name in ("flip", "rotate90", "rotate", "scale", "shift", "mosaic", "copy_paste"):
        bright = images.mean(axis=3)
        inside = np.median(bright[masks == 1]) - np.median(bright[masks == 0])
        assert inside > 0.3, "tissue is where the mask says"


def test_patches_of_masks_are_pieces_of_them():
    images, masks = PatchFeed(IMAGES[:1], 48, 4, 3, regions=True).batch(0, 0)
    truth = IMAGES[0].read()[1]
    windows = np.lib.stride_tricks.sliding_window_view(truth, (48, 48)).reshape(-1, 48 * 48)
    for mask in masks:
        assert (windows == mask.ravel()).all(axis=1).any()


def test_no_donor_and_no_twin_is_on_two_sides():
    images = [Painted(f"t{i}", ("lung", "kidney", "spleen")[i // 6], i) for i in range(18)]
    images[5] = Painted("t5", "lung", 0)  # the same picture as t0
    donors = {image.image_id: f"d{i // 2}" for i, image in enumerate(images)}
    scored = []
    for fold in range(4):
        sides = split_tissue(images, 4, fold, groups=donors, seed=3)
        assert set(sides.values()) == {"train", "valid", "test"} and sides["t0"] == sides["t5"] == sides["t4"]
        assert pd.Series(sides).groupby(pd.Series(donors)).nunique().max() == 1
        scored += [name for name, side in sides.items() if side == "test"]
    assert sorted(scored) == sorted(donors)
    donors["t0"] = donors["t6"] = "both"  # a donor of a lung and a kidney
    sides = split_tissue(images, leave_out="lung", groups=donors)
    assert sides["t6"] == "none" and {sides[f"t{i}"] for i in range(6)} == {"test"}
    twin = [*images, Painted("t18", "spleen", 1)]  # the same picture as a lung
    assert split_tissue(twin, leave_out="lung")["t18"] == "none" and split_tissue(twin, leave_out="kidney")["t18"] in ("train", "valid")
    for arguments, message in (({"n_folds": 2}, "3 folds or more"), ({"fold": 5}, "below their number"), ({"leave_out": "heart"}, "known organ"), ({"groups": {}}, "got none for t0")):
        with pytest.raises(ValueError, match=message):
            split_tissue(images, **arguments)
    with pytest.raises(ValueError, match="several times"):
        split_tissue([*images, images[0]])


def test_reduced_images_hold_means_and_majorities():
    pixels, mask = IMAGES[0].read()
    small, small_mask = ReducedImage(IMAGES[0], 4).read()
    np.testing.assert_allclose(small, pixels.reshape(24, 4, 24, 4, 3).mean(axis=(1, 3)), atol=0.51)
    assert small_mask.shape == (24, 24) and (small_mask[:, :2] == 255).all() and set(np.unique(small_mask)) == {0, 1, 255}


def test_a_training_ends_in_a_card_with_scores_of_images_that_chose_nothing(tmp_path, capsys):
    sides = {image.image_id: "test" if i < 2 else "valid" if i < 5 else "train" for i, image in enumerate(IMAGES)}
    trained = train_tissue(IMAGES, tmp_path / "m", TINY, sides)
    card = json.loads((tmp_path / "m" / "card.json").read_text())
    assert card["scores_of"] == "test" and card["data"]["n_images"] == {"train": {"kidney": 2, "lung": 3}, "valid": {"kidney": 2, "lung": 1}, "test": {"kidney": 1, "lung": 1}}
    assert card["chosen_on"] == {"epoch": ["t2", "t3", "t4"], "thresholds": ["t2", "t3", "t4"]} and card["thresholds"] == "chosen on 3 images not learned from"
    assert "thresholds: chosen on 3 images not learned from; scores: 2 images that chose nothing" in capsys.readouterr().err
    scores = pd.read_csv(tmp_path / "m" / "scores.csv")
    assert set(scores["side"]) == {"valid", "test"}
    again = load_tissue(tmp_path / "m")
    pairs = [(image.read()[1], again.segment(image.read()[0], image.kind)) for image in IMAGES[:2]]
    expected = score_tissue(pairs, ["kidney", "lung"]).iloc[-1]["dice"]
    assert card["scores"]["all"]["dice"][0] == pytest.approx(expected, abs=1e-4)
    assert set(card["config"]["thresholds"]) == {"", "kidney", "lung"}
    pairs = [(image.read()[1], trained.segment(image.read()[0], image.kind)) for image in IMAGES[2:5]]  # predicted once, to choose and to score
    chosen = scores[(scores["side"] == "valid") & (scores["level"] == "image")]
    pd.testing.assert_series_equal(chosen["dice"], score_tissue(pairs, ["kidney", "lung", "kidney"])["dice"][:3], check_index=False)
    pixels = IMAGES[3].read()[0]
    np.testing.assert_array_equal(again.probability(pixels), trained.probability(pixels))
    train_tissue(IMAGES, tmp_path / "m", TINY, sides)
    assert "was trained before" in capsys.readouterr().err
    (tmp_path / "m" / "model.weights.h5").write_bytes(b"other")
    with pytest.raises(ValueError, match="expected weights with hash"):
        load_tissue(tmp_path / "m")
    without = train_tissue(IMAGES, tmp_path / "n", TINY, {name: side.replace("test", "none") for name, side in sides.items()})
    assert without.card["scores_of"] == "valid, on which epoch was chosen" and without.card["config"]["thresholds"] == {"": 0.5}
    assert without.card["thresholds"].startswith("1/2, since fewer than 3 images are neither learned from nor scored")
    for wrong, message in (({}, "expected a side for each image"), (dict.fromkeys(sides, "valid"), "got none for 'train'")):
        with pytest.raises(ValueError, match=message):
            train_tissue(IMAGES, tmp_path / "x", TINY, {**wrong} or {"other": "train"})


def test_without_images_for_scores_half_of_those_to_choose_by_are_scored(tmp_path):
    sides = {image.image_id: "valid" if i < 6 else "train" for i, image in enumerate(IMAGES)}
    card = train_tissue(IMAGES, tmp_path / "m", replace(TINY, epochs=1, steps_per_epoch=2), sides).card
    table = pd.read_csv(tmp_path / "m" / "split.csv")
    kept = {side: set(table["image_id"][table["side"] == side]) for side in ("train", "valid", "test")}
    assert kept["train"] == {"t6", "t7", "t8", "t9"} and len(kept["valid"]) == len(kept["test"]) == 3
    assert card["scores_of"] == "test" and set(card["chosen_on"]["thresholds"]) == set(card["chosen_on"]["epoch"]) == kept["valid"]
    scores = pd.read_csv(tmp_path / "m" / "scores.csv")
    assert set(scores["image"][(scores["side"] == "test") & (scores["level"] == "image")]) == kept["test"] and card["scores"]["all"]["n_images"] == 3
    half = train_tissue(IMAGES, tmp_path / "h", replace(TINY, epochs=1, steps_per_epoch=2, threshold="half"), sides).card
    assert half["chosen_on"]["thresholds"] == [] and half["thresholds"] == "1/2, as the settings say" and half["scores_of"] == "test"


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """Folder and card of a model that has learned nothing."""
    folder, config = tmp_path_factory.mktemp("tissue"), SemanticConfig("unet", SMALL["unet"], tile=64, overlap=16)
    card = {"kind": "tissue", "config": json.loads(config.to_json()), "weights_blake2b": keep_weights(make_semantic(config), folder)}
    (folder / "card.json").write_text(json.dumps(card))
    assert load_tissue(folder).config == config
    return folder, card


@pytest.mark.parametrize("name", tissue.CARD_KEYS)
def test_a_card_that_lacks_something_names_it(kept, name):
    folder, card = kept
    (folder / "card.json").write_text(json.dumps({key: value for key, value in card.items() if key != name}))
    with pytest.raises(ValueError, match=f"card.json: expected the card of a model of tissue, got none of {name}: copy it again"):
        load_tissue(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "segmenter", "config": None}, "expected the card of a model of tissue, got a card of kind 'segmenter'"),
        ({"weights_blake2b": "0"}, "expected weights with hash 0, got .*copy weights and card again, together"),
        ({"config": {"parameters": {"stem": 4, "filters": [6, 12]}}}, "expected weights of a unet as the card says, got others"),  # other shapes
        ({"config": {"parameters": {"stem": 4, "filters": [6, 8, 8]}}}, "expected weights of a unet as the card says, got others"),  # more layers
        ({"config": {"model": "segformer_b0", "parameters": SMALL["segformer_b0"]}}, "expected weights of a segformer_b0 as the card says, got others"),
        ({"config": {"model": "unett"}}, "did you mean 'unet'"),
    ],
)
def test_weights_and_card_belong_together(kept, change, message):
    folder, card = kept
    config = {"config": card["config"] | (change.get("config") or {})}
    (folder / "card.json").write_text(json.dumps(card | change | config))
    with pytest.raises(ValueError, match=message):
        load_tissue(folder)


@pytest.mark.parametrize(("text", "message"), [("{}", "got none of kind, config, weights_blake2b"), ("null", "got none of kind"), ("", "expected JSON")])
def test_what_is_no_card_is_refused(kept, text, message):
    (kept[0] / "card.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        load_tissue(kept[0])


def test_a_training_that_was_stopped_goes_on_to_the_same_end(tmp_path, monkeypatch):
    sides = {image.image_id: ("test", "valid", "train")[min(i // 2, 2)] for i, image in enumerate(IMAGES)}
    whole = train_tissue(IMAGES, tmp_path / "whole", TINY, sides)
    learn, seen = tissue._Training.learn, []

    def stops(self, epoch, batches, bar):
        if epoch == 2 and not seen:
            seen.append(epoch)
            raise KeyboardInterrupt
        return learn(self, epoch, batches, bar)

    monkeypatch.setattr(tissue._Training, "learn", stops)
    with pytest.raises(KeyboardInterrupt):
        train_tissue(IMAGES, tmp_path / "cut", TINY, sides)
    with pytest.raises(FileNotFoundError, match="unfinished.json"):
        load_tissue(tmp_path / "cut")
    resumed = train_tissue(IMAGES, tmp_path / "cut", TINY, sides)
    for mine, its in zip(whole.network.get_weights(), resumed.network.get_weights(), strict=True):
        np.testing.assert_allclose(mine, its, atol=2e-3)
    assert len(pd.read_csv(tmp_path / "cut" / "log.csv")) == 3
    assert resumed.card["scores"]["all"]["dice"][0] == pytest.approx(whole.card["scores"]["all"]["dice"][0], abs=0.02)


def test_over_the_folds_each_image_is_scored_once(tmp_path, monkeypatch):
    brief, grouped, group = replace(TINY, epochs=1, steps_per_epoch=2), [], tissue.group_tissue
    monkeypatch.setattr(tissue, "group_tissue", lambda images, groups: grouped.append(len(images)) or group(images, groups))
    scores = cross_validate_tissue(IMAGES, tmp_path / "folds", brief, n_folds=3)
    images = scores[scores["level"] == "image"]
    assert sorted(images["image"]) == sorted(image.image_id for image in IMAGES) and set(images["fold"]) == {"fold0", "fold1", "fold2"}
    assert scores.iloc[-1]["dice"] == pytest.approx(images["dice"].mean()) and np.isfinite(scores.iloc[-1]["dice_low"])
    left = cross_validate_tissue(IMAGES, tmp_path / "organs", brief, n_folds=3, by="organ")
    rows = left[left["level"] == "image"]
    assert (rows["fold"] == rows["organ"]).all() and len(rows) == 10 and grouped == [10, 10], "images are compared once for all folds"
    pd.testing.assert_frame_equal(summarise_tissue(rows, 1000, brief.seed)[["image", "dice"]], left[["image", "dice"]])


def test_brightness_is_the_same_in_training_and_use():
    image, _ = IMAGES[0].read()
    drawn, _ = PatchFeed(IMAGES[:1], 96, 1, 3, regions=True).batch(0, 0)
    np.testing.assert_allclose(drawn[0], normalise_intensity(image), atol=1e-6)
