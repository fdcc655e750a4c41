"""The classifier zoo: every model by name, its heads, its weights from elsewhere, and other backends."""

import socket

import h5py
import numpy as np
import pytest

from hpacell.models import pretrained, set_backbone_trainable, zoo
from hpacell.models.blocks import HEADS, conv_norm, keras, layers, location_head
from hpacell.models.pretrained import cached_weights, inflate_kernel
from hpacell.models.transfer import TRANSFER
from hpacell.models.zoo import CONVNETS, ZOO, describe_zoo, make_classifier

TWO = {"filters": (4, 8), "kernels": (5, 3)}
RESNET = {"filters": (64,), "blocks": (2,), "weights": "none"}
# The two of keras.applications have one size.
SMALL = {
    "conv_basic3": {"filters": (4, 8)}, "conv_basic": TWO, "mini_convnet2": TWO, "mini_convnet4": TWO | {"units": 32},
    "batch_norm": TWO, "batch_norm_after": TWO, "invert_conv": TWO | {"filters": (8, 4)}, "invert_conv_dropout": TWO | {"filters": (8, 4)},
    "efficientnet_v2_b0": {"weights": "none"}, "resnet50": {"weights": "none"}, "resnet18": RESNET, "resnet18_v2": RESNET,
    "efficientnet_v2_small": {"weights": "none", "width": 0.25, "depth": 0.2},
}  # fmt: skip
LARGE = ("efficientnet_v2_b0", "resnet50")
QUICK = [name for name in SMALL if name not in (*LARGE, "efficientnet_v2_small")]
SHAPES = [(64, 64, 4), (32, 48, 1), (96, 96, 6)]


def crops_of(shape, n=2, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, *shape), np.uint8)


def answer(model, crops):
    return keras.ops.convert_to_numpy(model(crops, training=False))


def test_the_zoo_is_what_it_says():
    assert list(SMALL) == list(ZOO) == [*CONVNETS, *TRANSFER]


@pytest.mark.parametrize(("name", "shape"), [(name, shape) for name in SMALL for shape in SHAPES[: 1 if name in LARGE else 3]])
def test_any_size_and_channels(name, shape):
    model = make_classifier(name, shape, 5, **SMALL[name])
    out = answer(model, crops_of(shape))
    assert out.shape == (2, 5) and out.dtype == np.float32 and ((out >= 0) & (out <= 1)).all()
    assert model.layers[-1].name == "locations" and model.name == name


@pytest.mark.parametrize("name", sorted(CONVNETS))
def test_default_sizes_fit_the_smallest_crops(name):
    assert make_classifier(name, (32, 32, 4), 3).output_shape == (None, 3)
    assert make_classifier(name, (32, 32, 4), 3, strides=2, head="logits").output_shape == (None, 3) if name != "conv_basic3" else True


@pytest.mark.parametrize("name", QUICK)
def test_heads_share_weights_and_seeds_decide_them(name, tmp_path):
    crops, models = crops_of((32, 32, 4)), {}
    for head in HEADS:
        keras.utils.set_random_seed(7)
        models[head] = make_classifier(name, (32, 32, 4), 5, head=head, **SMALL[name])
    out = {head: answer(model, crops) for head, model in models.items()}
    np.testing.assert_allclose(out["sigmoid"], 1 / (1 + np.exp(-out["logits"])), rtol=1e-4, atol=1e-6)
    powers = np.exp(out["logits"] - out["logits"].max(axis=1, keepdims=True))
    np.testing.assert_allclose(out["softmax"], powers / powers.sum(axis=1, keepdims=True), rtol=1e-4, atol=1e-6)
    keras.utils.set_random_seed(8)
    other = make_classifier(name, (32, 32, 4), 5, **SMALL[name])
    assert not np.allclose(answer(other, crops), out["sigmoid"])
    models["logits"].save_weights(tmp_path / "x.weights.h5")
    other.load_weights(tmp_path / "x.weights.h5")
    np.testing.assert_array_equal(answer(other, crops), out["sigmoid"])


@pytest.mark.parametrize("name", ZOO)
def test_a_few_steps_lower_the_loss(name):
    keras.utils.set_random_seed(0)
    model = make_classifier(name, (32, 32, 4), 3, head="logits", dropout=0.0, **SMALL[name])
    crops, targets = crops_of((32, 32, 4), n=8), np.eye(3, dtype="float32")[np.arange(8) % 3]
    before = {weight.path: keras.ops.convert_to_numpy(weight) for weight in model.trainable_weights}
    model.compile(keras.optimizers.SGD(0.02), keras.losses.BinaryCrossentropy(from_logits=True), run_eagerly=True)
    losses = [float(model.train_on_batch(crops, targets)) for _ in range(4)]
    # Not the last alone: a deep backbone that normalises over so few crops goes up and down.
    assert np.isfinite(losses).all() and min(losses[1:]) < losses[0], losses
    after = {weight.path: keras.ops.convert_to_numpy(weight) for weight in model.trainable_weights}
    assert all(np.isfinite(values).all() for values in after.values())
    # A kernel that stays is cut off from the loss.
    assert not [path for path, values in after.items() if values.ndim > 1 and np.array_equal(values, before[path])]


def test_batch_norm_is_as_it_was():
    """Weights on old cards are read by order and shape."""
    model = make_classifier("batch_norm", (32, 32, 2), 3, filters=(4,), kernels=(5,), units=6)
    assert [layer.__class__.__name__ for layer in model.layers] == [
        "InputLayer", "Rescaling", *["Conv2D", "BatchNormalization", "Activation"] * 2, "MaxPooling2D",
        "GlobalAveragePooling2D", "GlobalMaxPooling2D", "Concatenate", "Dense", "BatchNormalization", "Activation", "Dropout", "Dense",
    ]  # fmt: skip
    assert [tuple(weight.shape) for weight in model.weights] == [(5, 5, 2, 4), *[(4,)] * 4, (3, 3, 4, 4), *[(4,)] * 4, (8, 6), *[(6,)] * 4, (6, 3), (3,)]
    assert make_classifier("batch_norm", (64, 64, 4), 12).count_params() == 1_280_908


def test_models_are_what_their_names_say():
    def kinds(name, **parameters):
        return [layer.__class__.__name__ for layer in make_classifier(name, (32, 32, 4), 3, **parameters).layers]

    assert "BatchNormalization" not in kinds("conv_basic3") + kinds("invert_conv_dropout")
    convolutions = [layer for layer in make_classifier("conv_basic3", (32, 32, 4), 3).layers if isinstance(layer, layers.Conv2D)]
    assert {layer.kernel_size for layer in convolutions} == {(3, 3)} and len(convolutions) == 3
    assert kinds("conv_basic", filters=(4,), kernels=(3,))[2:7] == ["Conv2D", "Activation", "Conv2D", "Activation", "MaxPooling2D"]
    assert kinds("batch_norm_after")[2:5] == ["Conv2D", "Activation", "BatchNormalization"]
    falling = [layer.filters for layer in make_classifier("invert_conv", (32, 32, 4), 3).layers if isinstance(layer, layers.Conv2D)]
    assert falling == sorted(falling, reverse=True) and len(set(falling)) == 4
    rates = [layer.rate for layer in make_classifier("invert_conv_dropout", (32, 32, 4), 3).layers if isinstance(layer, layers.Dropout)]
    assert rates == [0.1] * 4 + [0.5]
    first = {name: make_classifier(name, (32, 32, 4), 3) for name in ("mini_convnet2", "mini_convnet4")}
    assert next(layer for layer in first["mini_convnet2"].layers if isinstance(layer, layers.Conv2D)).kernel_size == (11, 11)
    assert first["mini_convnet4"].layers[-4].units == 8 * first["mini_convnet2"].layers[-4].units


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("invertconv", {}, "did you mean 'invert_conv'"),
        ("conv_basic3", {"kernels": (3, 3, 3)}, "expected a known parameter of conv_basic3, got 'kernels'"),
        ("conv_basic", {"filters": (8,)}, "give one for each block"),
        ("conv_basic", {"filters": (), "kernels": ()}, "at least one"),
        ("conv_basic", {"norm": "befor"}, "did you mean 'before'"),
        ("conv_basic", {"head": "linear"}, "expected a known head, got 'linear': known: sigmoid, softmax, logits"),
        ("resnet18", {"filters": (32,), "blocks": (1,)}, "begin with 64"),
        ("resnet18_v2", {"filters": (64, 64), "blocks": (2,)}, "give a number for each stage"),
        ("resnet18_v2", {"filters": (64,), "blocks": (1,)}, "2 or more blocks"),
        ("efficientnet_v2_small", {"depth": 0}, "above 0"),
    ],
)
def test_wrong_names_and_parameters(name, parameters, message):
    with pytest.raises(ValueError, match=message):
        make_classifier(name, (32, 32, 4), 3, **parameters)


@pytest.mark.parametrize("norm", ["before", "after", "none"])
def test_place_of_the_normalisation(norm):
    x = keras.Input((8, 8, 2))
    model = keras.Model(x, conv_norm(x, 3, 3, norm=norm))
    out = np.asarray(model(np.random.default_rng(0).normal(5, 3, (16, 8, 8, 2)), training=True))
    means = out.mean(axis=(0, 1, 2))
    assert (np.abs(means).max() < 1e-3) == (norm == "after") and (out.min() >= 0) == (norm != "after")
    assert (model.layers[1].bias is None) == (norm == "before")


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision_answers_in_float32(policy):
    before = keras.mixed_precision.global_policy()
    keras.mixed_precision.set_global_policy(policy)
    try:
        models = [make_classifier(name, (32, 32, 4), 3, **SMALL[name]) for name in ("batch_norm", "resnet18")]
    finally:
        keras.mixed_precision.set_global_policy(before)
    for model in models:
        out = model(crops_of((32, 32, 4)))
        assert keras.backend.standardize_dtype(out.dtype) == "float32" and np.isfinite(np.asarray(out)).all()
        assert model.layers[2].compute_dtype == policy.removeprefix("mixed_") and model.layers[2].variable_dtype == "float32"
    assert keras.mixed_precision.global_policy().name == "float32"


def rgb_resnet(path, seed=3):
    """A backbone for RGB like that of `SMALL`, with averages of its own, in a file."""
    keras.utils.set_random_seed(seed)
    rgb = pretrained.make_resnet(3, RESNET["filters"], RESNET["blocks"])
    rng = np.random.default_rng(seed)
    for weight in rgb.weights:
        if weight.path.endswith(("moving_mean", "moving_variance")):
            weight.assign(rng.uniform(0.8, 1.2, weight.shape) - weight.path.endswith("mean"))
    rgb.save_weights(path)
    return rgb


@pytest.mark.parametrize("channels", [1, 3, 4, 6])
def test_a_grey_picture_gives_what_it_gave_in_rgb(channels, tmp_path):
    path = tmp_path / "rgb.weights.h5"
    rgb = rgb_resnet(path)
    model = make_classifier("resnet18", (32, 32, channels), 3, **RESNET | {"weights": str(path)})
    backbone = model.get_layer("backbone")
    assert backbone.pretrained
    grey = np.random.default_rng(0).random((2, 32, 32, 1), np.float32)
    want = answer(rgb, np.repeat(grey, 3, axis=3))
    np.testing.assert_allclose(answer(backbone, np.repeat(grey, channels, axis=3)), want, rtol=1e-3, atol=1e-4)
    assert want.std() > 0.01


def test_inflation_by_hand():
    kernel = np.array([1.0, 2.0, 6.0]).reshape(1, 1, 3, 1)
    np.testing.assert_array_equal(inflate_kernel(kernel, 4).ravel(), [2.25] * 4)
    np.testing.assert_array_equal(inflate_kernel(kernel, 1).ravel(), [9.0])
    np.testing.assert_array_equal(inflate_kernel(kernel, 3), kernel)
    with pytest.raises(ValueError, match="expected a kernel"):
        inflate_kernel(kernel[0], 4)


def test_imagenet_weights_in_keras_cache(tmp_path, monkeypatch):
    """The old h5 format, in which Keras keeps them."""
    from keras.src.legacy.saving.legacy_h5_format import save_weights_to_hdf5_group

    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    path = cached_weights("efficientnetv2-b0_notop.h5")
    assert path == tmp_path / "models" / "efficientnetv2-b0_notop.h5"
    path.parent.mkdir()
    rgb = keras.applications.EfficientNetV2B0(include_top=False, weights=None, input_shape=(None, None, 3))
    with h5py.File(path, "w") as file:
        save_weights_to_hdf5_group(file, rgb)
    backbone = make_classifier("efficientnet_v2_b0", (32, 32, 4), 3).get_layer("backbone")
    for source, target in zip(rgb.weights, backbone.weights, strict=True):
        values = keras.ops.convert_to_numpy(source)
        values = inflate_kernel(values, 4) if values.shape != tuple(target.shape) else values
        np.testing.assert_allclose(keras.ops.convert_to_numpy(target), values, rtol=1e-6)
    assert backbone.pretrained


def test_fresh_weights_are_told_once_and_no_network_is_asked(tmp_path, monkeypatch, caplog):
    def no_network(*args, **kwargs):
        raise AssertionError("the network was asked")

    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.setattr(pretrained, "_said", set())
    for name in ("getaddrinfo", "create_connection"):
        monkeypatch.setattr(socket, name, no_network)
    parameters = {name: value for name, value in RESNET.items() if name != "weights"}
    for _ in range(2):
        assert not make_classifier("resnet18", (32, 32, 4), 3, **parameters).get_layer("backbone").pretrained
    make_classifier("efficientnet_v2_b0", (32, 32, 4), 3)
    lines = [record.getMessage() for record in caplog.records if record.name == "hpacell.models"]
    assert len(lines) == 2 and lines[0].startswith("resnet18 starts from fresh weights: Keras offers no ImageNet weights of it")
    assert lines[1].startswith("efficientnet_v2_b0 starts from fresh weights: efficientnetv2-b0_notop.h5 is not in Keras' cache")
    caplog.clear()
    make_classifier("resnet18_v2", (32, 32, 4), 3, fresh=True, **parameters)
    make_classifier("batch_norm", (32, 32, 4), 3, fresh=True, **TWO)  # has no such parameter
    assert not caplog.records


def test_a_download_that_fails(monkeypatch):
    whole, timeouts = keras.applications.ResNet50, []

    def offline(**parameters):
        if parameters["weights"] == "imagenet":
            timeouts.append(socket.getdefaulttimeout())
            raise Exception("URL fetch failure on here: None -- no route")
        return whole(**parameters)

    monkeypatch.setattr(keras.applications, "ResNet50", offline)
    before = socket.getdefaulttimeout()
    with pytest.raises(ConnectionError, match="ImageNet weights of resnet50, got: URL fetch failure .*start fresh with weights='none'"):
        make_classifier("resnet50", (32, 32, 4), 3, weights="download")
    assert timeouts == [20] and socket.getdefaulttimeout() == before
    with pytest.raises(ValueError, match="Keras offers no ImageNet weights of resnet18"):
        make_classifier("resnet18", (32, 32, 4), 3, **RESNET | {"weights": "download"})


def test_weights_that_do_not_fit(tmp_path):
    with pytest.raises(FileNotFoundError, match="got no such file: give 'cache', 'none', 'download' or a path"):
        make_classifier("resnet18", (32, 32, 4), 3, **RESNET | {"weights": str(tmp_path / "none.h5")})
    path = tmp_path / "rgb.weights.h5"
    rgb_resnet(path)
    with pytest.raises(ValueError, match="expected weights of resnet18_v2 .* of another architecture"):
        make_classifier("resnet18_v2", (32, 32, 4), 3, **RESNET | {"weights": str(path)})
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(ValueError, match="expected weights of resnet18 .* damaged or of another architecture; fetch it again"):
        make_classifier("resnet18", (32, 32, 4), 3, **RESNET | {"weights": str(path)})


def test_resnet50_sees_the_numbers_that_it_was_trained_on(tmp_path):
    """From 0 to 255 less the mean colour, although it gets them near 0."""
    rgb = pretrained.make_application("ResNet50", 3)
    rgb.save_weights(tmp_path / "rgb.weights.h5")
    model = make_classifier("resnet50", (32, 32, 4), 3, weights=str(tmp_path / "rgb.weights.h5"))
    stems = [keras.Model(net.input, net.get_layer("conv1_conv").output) for net in (rgb, model.get_layer("backbone"))]
    grey = crops_of((32, 32, 1)).astype("float32")
    want = answer(stems[0], np.repeat(grey, 3, axis=3) - 255 * 0.450)
    scaled = keras.Model(model.input, model.layers[2].output)
    np.testing.assert_allclose(answer(stems[1], answer(scaled, np.repeat(grey, 4, axis=3))), want, rtol=1e-3, atol=1e-2)
    assert want.std() > 1


def test_frozen_then_unfrozen(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(pretrained, "_said", set())
    path = tmp_path / "rgb.weights.h5"
    rgb_resnet(path)
    model = make_classifier("resnet18", (32, 32, 4), 3, head="logits", **RESNET | {"weights": str(path)})
    backbone = model.get_layer("backbone")
    crops, targets = crops_of((32, 32, 4), n=8), np.eye(3, dtype="float32")[np.arange(8) % 3]

    def train():
        before = [keras.ops.convert_to_numpy(weight) for weight in backbone.weights]
        head = keras.ops.convert_to_numpy(model.layers[-1].kernel)
        model.compile(keras.optimizers.Adam(1e-3), keras.losses.BinaryCrossentropy(from_logits=True))
        model.fit(crops, targets, epochs=2, batch_size=4, verbose=0)
        assert not np.array_equal(keras.ops.convert_to_numpy(model.layers[-1].kernel), head)
        return [np.array_equal(keras.ops.convert_to_numpy(weight), values) for weight, values in zip(backbone.weights, before, strict=True)]

    set_backbone_trainable(model, False)
    assert not backbone.trainable_weights and len(model.trainable_weights) == 5
    assert all(train())
    pixels = crops.astype("float32") / 255
    np.testing.assert_array_equal(np.asarray(backbone(pixels, training=True)), np.asarray(backbone(pixels, training=False)))
    set_backbone_trainable(model, True)
    assert not any(train())
    assert not caplog.records
    # Inside another model, too; a fresh backbone has nothing to keep.
    outer = keras.Sequential([keras.Input((5, 32, 32, 4)), layers.TimeDistributed(model)])
    set_backbone_trainable(outer, False)
    assert not backbone.trainable_weights
    set_backbone_trainable(make_classifier("resnet18", (32, 32, 4), 3, **RESNET), False)
    assert "frozen with fresh weights" in caplog.text
    with pytest.raises(ValueError, match="got batch_norm: train it without frozen epochs"):
        set_backbone_trainable(make_classifier("batch_norm", (32, 32, 4), 3, **TWO), False)


def test_the_table(monkeypatch):
    monkeypatch.setattr(zoo, "ZOO", {name: ZOO[name] for name in ("conv_basic3", "invert_conv", "resnet18_v2")})
    table = describe_zoo((48, 64, 2), 7)
    assert list(table.index) == ["conv_basic3", "invert_conv", "resnet18_v2"] and list(table["kind"]) == ["convnet", "convnet", "transfer"]
    assert table.loc["conv_basic3", "weights"] == make_classifier("conv_basic3", (48, 64, 2), 7).count_params()
    assert list(table["map"]) == ["6 x 8", "1 x 2", "2 x 2"]
    assert table.loc["resnet18_v2", "megabytes"] == pytest.approx(4e-6 * table.loc["resnet18_v2", "weights"], abs=0.05)
    assert table["what"].str.endswith(".").all()


def test_a_head_needs_locations():
    with pytest.raises(ValueError, match="at least one location, got 0"):
        location_head(keras.Input((4, 4, 2)), 0)


STEP = """
import numpy as np
from hpacell.models.blocks import keras
from hpacell.models.zoo import make_classifier

rng = np.random.default_rng(0)
crops, targets = rng.integers(0, 256, (4, 32, 32, 4), np.uint8), np.eye(3, dtype="float32")[[0, 1, 2, 0]]
for name, parameters in [
    ("batch_norm", {"filters": (4,), "kernels": (5,)}), ("invert_conv_dropout", {"filters": (8, 4), "kernels": (5, 3)}),
    ("resnet18", {"filters": (64,), "blocks": (1,), "weights": "none"}),
]:
    model = make_classifier(name, (32, 32, 4), 3, head="logits", **parameters)
    model.compile(keras.optimizers.AdamW(1e-3), keras.losses.BinaryCrossentropy(from_logits=True))
    before = [keras.ops.convert_to_numpy(weight).copy() for weight in model.trainable_weights]
    loss = float(model.train_on_batch(crops, targets))
    moved = [not np.array_equal(keras.ops.convert_to_numpy(weight), values) for weight, values in zip(model.trainable_weights, before)]
    assert np.isfinite(loss) and all(moved), (name, loss, moved)
    assert model.predict_on_batch(crops).shape == (4, 3)
print("stepped under", keras.backend.backend())
"""


@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_a_train_step_under_other_backends(step_under, backend):
    step_under(backend, STEP)
