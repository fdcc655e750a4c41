"""What is refused is refused at once: before TensorFlow is loaded, with the nearest word that was meant."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hpacell.arguments import make_parser
from hpacell.cli import main
from hpacell.fields.simulate import simulate_fields
from hpacell.models import limits
from hpacell.pipeline.extract import ExtractSettings, extract_fields
from hpacell.settings import OTHER_VARIABLES, read_settings


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Path:
    """Four labelled fields, a store of them, a folder without a model, and a training that was stopped."""
    folder = tmp_path_factory.mktemp("work")
    simulate_fields(folder / "fields", n_fields=4, seed=5, size=(128, 128))
    extract_fields(folder / "fields", folder / "store", labels=folder / "fields" / "labels.csv", settings=ExtractSettings(crop_size=16), workers=1)
    (folder / "empty").mkdir()
    (folder / "stopped").mkdir()
    (folder / "stopped" / "unfinished.json").write_text("{}")
    return folder


CASES = {
    "predict fields --model nomodel --out found": "got no such file or folder",
    "predict fields --model empty --out found": "a folder without them",
    "predict fields --model stopped --out found": "a training that was stopped",
    "predict nofields --model empty --out s3://b/found": "expected a local folder for predictions",
    "train store --out model": "expected at least 5 labelled fields with cells, got 4 of 4",
    "train nostore --out model": "expected a crop store in nostore",
    "train store --out model --model resnet999": "did you mean 'resnet50'?",
    "train store --out model --epochs 0": "expected a whole number at least 1, got 0",
    "train store --out model --batch-size 0": "expected a whole number at least 1, got 0",
    "train store --out model --seed -1": "expected a whole number at least 0, got -1",
    "train store --out model --folds 2": "expected a whole number at least 3, got 2",
    "train store --out model --augment flip,blurr": "did you mean 'blur'?",
    "train store --out model --weak max --balance weights": "expected balance 'none' with weak='max'",
    "train store --out model --folds 4 --truth empty": "expected cells.csv in empty",
    "train store --out model --folds 3 --duplicates nolist.csv": "nolist.csv",
    "train store --out s3://b/model": "expected a local folder for a classifier",
    "segment fields --out masks --method unett": "did you mean 'unet'?",
    "segment fields --out masks --method empty": "got 'empty', a folder without card.json",
    "segment fields --out masks --method stopped": "got 'stopped', a training that was stopped before its end",
    "extract fields --out other --size 3": "expected a whole number from 8 to 4096, got 3",
    "run train_classifier.yaml -p epochs=0": "train_classifier: expected epochs of at least 1",
    "run train_classifier.yaml -p learning_rate=-1": "train_classifier: expected learning_rate of at least 0, got -1",
    "run train_classifier.yaml -p warmup=1": "train_classifier: expected warmup of at least 0 and below 1, got 1",
    "run train_classifier.yaml -p ema=1.5": "train_classifier: expected ema of at least 0 and below 1, got 1.5",
    "run train_classifier.yaml -p augment=[flip,blurr]": "train_classifier: expected a known augmentation, got 'blurr': did you mean 'blur'?",
    "run train_classifier.yaml -p model=resnet999": "did you mean 'resnet50'?",
    "run train_segmenter.yaml -p patch=3": "train_segmenter: expected patch of at least 32",
    "run tissue.yaml -p threshold=org": "did you mean 'organ'?",
    "run extract.yaml -p border=cell": "extract: expected border among keep, nuclei, cells",
    "run predict.yaml -p model=nomodel": "predict: expected a classifier",
}


def test_refusals_load_no_tensorflow(work):
    """All in one process, since each takes seconds to start."""
    for name in ("train_classifier", "train_segmenter", "tissue", "extract", "predict"):
        (work / f"{name}.yaml").write_text("seed: 1\n" if name.startswith("t") else "workers: 1\n")
    code = (
        "import io, sys, contextlib\nfrom hpacell.cli import main\n"
        f"for words in {list(CASES)!r}:\n    shown = io.StringIO()\n    with contextlib.redirect_stderr(shown):\n        code = main(words.split())\n"
        "    print(code, 'tensorflow' in sys.modules or 'keras' in sys.modules, repr(shown.getvalue()))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=work, env=os.environ | {"HPACELL_PATHS_RUNS": str(work / "runs")})
    assert ran.returncode == 0, ran.stderr
    for (words, message), line in zip(CASES.items(), ran.stdout.splitlines(), strict=True):
        code, loaded, shown = line.split(" ", 2)
        assert (code, loaded) == ("2", "False") and message in shown and shown.count("\\n") == 1, (words, line)
    assert not (work / "runs").exists() and not (work / "model").exists()


def test_the_words_are_those_of_the_networks():
    from hpacell.feed.augment import AUGMENTATIONS
    from hpacell.models.objectives import LOSSES, OPTIMIZERS, SCHEDULES
    from hpacell.models.recipe import TrainingSettings
    from hpacell.models.semantic import SEMANTIC
    from hpacell.models.transfer import TRANSFER
    from hpacell.models.zoo import ZOO

    assert limits.MODELS == tuple(ZOO) and limits.BACKBONES == tuple(TRANSFER) and limits.TISSUE_MODELS == tuple(SEMANTIC)
    assert limits.AUGMENTATIONS == AUGMENTATIONS
    assert [limits.CHOICES[name] for name in ("loss", "optimizer", "schedule")] == [tuple(table) for table in (LOSSES, OPTIMIZERS, SCHEDULES)]
    asked = make_parser().parse_args("train s --out m --patience 3 --learning-rate 0.01 --augment flip,blur --balance weights --folds 4".split())
    from hpacell.pipeline.checks import training_options

    settings = TrainingSettings(**training_options(asked))
    assert (settings.patience, settings.learning_rate, settings.augment, settings.balance, settings.n_folds) == (3, 0.01, ("flip", "blur"), "weights", 4)
    assert TrainingSettings(**training_options(make_parser().parse_args("train s --out m --augment none".split()))).augment == ()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("extrct f", "expected a command, got 'extrct': did you mean 'extract'? see hpacell --help"),
        ("zzz", "expected a command, got 'zzz': hpacell --help lists them; see hpacell --help"),
        ("extract f --out s --methd auto", "got --methd auto: did you mean '--method'? see hpacell extract --help"),
        ("runs more", "expected options of hpacell runs, got more; see hpacell runs --help"),
        ("train s --out m --weak max2", "did you mean 'max'?"),
        ("predict f --model m --out o --method own:segment", "expected none, since predict finds cells by the method of the store that the model was trained on, got 'own:segment': leave it out"),
    ],
)
def test_a_slip_is_answered_with_the_nearest_word(words, message, capsys):
    assert main(words.split()) == 2
    assert message in capsys.readouterr().err


def test_misspelt_variables_are_told_once(tmp_path, capsys):
    environ = {"HPACELL_ENGIN_WORKERS": "2", "HPACELL_SOMETHING_QUITE_DIFFERENT": "1", "HPACELL_ENGINE_WORKERS": "3"} | dict.fromkeys(OTHER_VARIABLES, "")
    assert [read_settings(tmp_path, environ=environ).engine_workers for _ in range(2)] == [3, 3]
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and "HPACELL_ENGIN_WORKERS is no setting" in lines[0] and "did you mean HPACELL_ENGINE_WORKERS?" in lines[0]


@pytest.mark.parametrize("name", ["PATHS_RUNS", "PATHS_CACHE", "PATHS_DATA"])
def test_an_empty_folder_is_refused(tmp_path, name):
    with pytest.raises(ValueError, match=f"HPACELL_{name}: expected a folder for {name.lower()}, got an empty text"):
        read_settings(tmp_path, environ={f"HPACELL_{name}": " "})
    (tmp_path / "settings.ini").write_text("[paths]\nruns =\n")
    with pytest.raises(ValueError, match="expected a folder for paths_runs"):
        read_settings(tmp_path, environ={})


def test_a_run_counts_steps_and_the_bar_of_fields_reaches_the_terminal(tmp_path, monkeypatch):
    """What papermill counts is called a step, since cells are what people count; fields are counted on the same terminal."""
    import fcntl
    import pty
    import struct
    import termios

    import papermill

    from hpacell.pipeline.runs import _execute
    from hpacell.progress import PROGRESS_VARIABLE, progress

    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 110, 0, 0))
    seen = {}

    def executed(*arguments, progress_bar, **options):
        seen.update(progress_bar)
        seen["target"] = os.environ[PROGRESS_VARIABLE]
        for _ in progress(range(3), 3, "extract"):
            pass

    monkeypatch.setattr(papermill, "execute_notebook", executed)
    with os.fdopen(slave, "w") as terminal, monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", terminal)
        _execute("extract", {}, tmp_path)
        assert (seen["desc"], seen["unit"]) == ("extract", "step") and seen["target"] == os.ttyname(slave)
        shown = os.read(master, 65536).decode()
    os.close(master)
    assert "extract:" in shown and "field" in shown and "cell" not in shown and "0/3 [00:00<" in shown


def test_help_names_all_that_is_taken():
    commands = make_parser().commands
    shown = {name: " ".join(commands[name].format_help().split()) for name in ("segment", "import", "predict")}
    assert "the name of an entry point in the group hpacell.segmenters" in shown["segment"]
    assert "what export has written (tfrecord, webdataset, png, hdf5, zarr)" in shown["import"]
    assert "--method" not in shown["predict"], "the store of its model says it"
