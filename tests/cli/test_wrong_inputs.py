"""Three wrong inputs for each command: one message that names the value and the rule, exit 2."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from pictures import write_noise

TEACHER = "timm/test_resnet?random=0&num_classes=2&image_size=32"
RECIPE = """
method: ferkd
data: {images: images, val: images, store: store, image_size: 32, batch_size: 4,
       crops_per_image: 2, workers: 0}
student: {name: timm/test_resnet}
schedule: {steps: 1}
"""
SUITE = """
base: {method: hard, data: {images: images, val: images, image_size: 32, batch_size: 4, workers: 0},
       student: {name: timm/test_resnet}}
seeds: [0]
budgets: {short: {steps: 1}}
methods: {hard: {}}
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A folder with images, a store, a recipe, a suite, a run, and what is none of them."""
    from ferkd.labelling import run as labelling
    from ferkd.training import train
    from ferkd.training.recipe import load_recipe

    root = tmp_path_factory.mktemp("made")
    names = [f"{c}/{i}.jpg" for c in ("ant", "bee") for i in range(3)]
    write_noise(root / "images", dict.fromkeys(names, (40, 36)))
    write_noise(root / "one", {"ant/0.jpg": (40, 36)})
    labelling.label(root / "images", TEACHER, root / "store", crops=2)
    (root / "recipe.yaml").write_text(RECIPE.replace("images: images", f"images: {root}/images"))
    text = RECIPE.replace("images", f"{root}/images", 2).replace(f"{root}/images:", "images:")
    text = text.replace("val: images", f"val: {root}/images").replace("store: ", f"store: {root}/")
    (root / "full.yaml").write_text(text)
    train(
        load_recipe(str(root / "full.yaml"), ["method=hard", "data.crops_per_image=1"]),
        root / "run",
    )
    (root / "suite.yaml").write_text(SUITE)
    (root / "text.txt").write_text("no picture, no recipe")
    (root / "empty").mkdir()
    (root / "full").mkdir()
    (root / "full/precious").write_text("x")
    return root


@pytest.fixture
def here(made, tmp_path, monkeypatch) -> Path:
    """A fresh copy of it, the working directory."""
    shutil.copytree(made, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


LABEL = f"label images --teacher {TEACHER} --out new"
# The command line -> words of its one message.
WRONG = {
    # label
    "label nowhere --teacher run --out new": "nowhere",
    "label images --teacher timm/no_such_net --out new": "no_such_net",
    f"{LABEL} --crops 0": "crops",
    f"{LABEL} --crops -3": "crops",
    f"{LABEL} --top-k -1": "-1",
    f"{LABEL} --seed -1": "seed",
    f"{LABEL} --batch-size 0": "batch",
    f"{LABEL} --workers -1": "workers",
    f"{LABEL} --image-size 0": "image",
    f"{LABEL} --max-unreadable nan": "nan",
    f"{LABEL} --max-unreadable 2": "2",
    f"{LABEL} --scale nan 1": "--scale",
    f"{LABEL} --scale 0.5 0.1": "--scale",
    f"{LABEL} --values f64": "f64",
    f"{LABEL} --kind boxes": "boxes",
    f"{LABEL} --device tpu": "tpu",
    f"{LABEL} --precision fp8": "fp8",
    f"label images --teacher {TEACHER} --out full": "full",
    f"label empty --teacher {TEACHER} --out new": "empty",
    f"label images --teacher {TEACHER}": "--into",
    f"label images --teacher {TEACHER} --into empty --signal more": "empty",
    f"{LABEL} --crops-from text.txt": "text.txt",
    f"{LABEL} --boxes-from empty": "empty",
    f"{LABEL} --add-to empty --crops 3": "empty",
    f"{LABEL} --shard 4/4": "4/4",
    f"{LABEL} --engine spark": "spark",
    f"{LABEL} --class-map nowhere.json": "nowhere.json",
    f"{LABEL} --kind features --layer nothing": "nothing",
    f"{LABEL} --finish": "new",
    # train
    "train nowhere.yaml --out new": "nowhere",
    "train text.txt --out new": "text.txt",
    "train full.yaml --out new --set schedule.steps=0": "schedule.steps",
    "train full.yaml --out new --set optimizer.lr=.nan": "optimizer.lr",
    "train full.yaml --out new --set schedule": "schedule",
    "train full.yaml --out full": "full",
    # evaluate
    "evaluate nowhere images": "nowhere",
    "evaluate run empty": "empty",
    "evaluate run images --batch-size 0": "batch",
    "evaluate run images --crop-fraction nan": "crop",
    "evaluate run images --image-size -1": "image",
    "evaluate run images --workers -2": "workers",
    "evaluate run images --precision fp12": "fp12",
    # inspect
    "inspect empty": "empty",
    "inspect store --thresholds 0.1,nan,0.9": "nan",
    "inspect store --thresholds 0.9,0.5,0.1": "order",
    "inspect store --calibration blur": "blur",
    "inspect store --score mean": "mean",
    "inspect store --truth text.txt": "text.txt",
    "inspect store --html text.txt": "text.txt",
    "inspect store --html page.html --images nowhere": "nowhere",
    # verify
    "verify empty": "empty",
    "verify store --teacher run": "--images",
    "verify store --images images --teacher run --sample 0": "sample",
    f"verify store --images images --teacher {TEACHER} --seed -1": "seed",
    # merge
    "merge store empty --out new": "empty",
    "merge store store --out new --weights 1,nan": "nan",
    "merge store store --out new --weights 1": "weight",
    "merge store store --out new --rule votes": "votes",
    "merge store store --out new --weights 1,x": "--weights",
    # subset
    "subset empty --out new": "empty",
    "subset store --out new --crops 0": "crops",
    "subset store --out new --crops 9": "9",
    "subset store --out new --values f8": "f8",
    # publish and fetch
    "publish empty memory://x": "empty",
    "publish store other": "other",
    "publish store nosuch://x/y": "nosuch",
    "fetch empty --out new": "empty",
    "fetch nosuch://x/y --out new": "nosuch",
    "fetch memory://nothing --out new": "nothing",
    # export-labels
    "export-labels store": "--parquet",
    "export-labels empty --parquet new": "empty",
    "export-labels store --fkd new --dtype fp8": "--dtype",
    "export-labels store --parquet new --classes words": "--classes",
    # import
    "import fkd nowhere --images images --out new": "nowhere",
    "import fkd empty --images images --out new": "empty",
    "import fkd empty --images nowhere --out new": "nowhere",
    "import fkd store --images images --out new --kind soft": "soft",
    "import fkd store --images images --out new --crops 0": "crops",
    # demo
    "demo --out full": "full",
    "demo --out new --seeds 0": "seeds",
    "demo --out new --images nowhere": "nowhere",
    "demo --out new --images images --held-out nan": "held-out",
    # distill
    "distill nowhere --out new": "nowhere",
    "distill images --out full": "full",
    "distill images --out new --val empty": "empty",
    "distill images --out new --budget soon": "soon",
    "distill images --out new --seeds 0": "seeds",
    "distill images --out new --held-out nan": "held_out",
    "distill images --out new --teacher timm/no_such_net": "no_such_net",
    # finetune
    "finetune nowhere --val images --teacher run --out new": "nowhere",
    "finetune images --val empty --teacher run --out new": "empty",
    "finetune images --val images --teacher timm/no_such_net --out new": "no_such_net",
    "finetune images --val images --teacher run --out full": "full",
    "finetune images --val images --teacher run --out new --epochs nan": "epochs",
    "finetune images --val images --teacher run --out new --precision fp8": "fp8",
    # export
    "export nowhere --to new": "nowhere",
    "export run --to full": "full",
    "export run --to new --uint8": "--uint8",
    "export run --to new --torchscript --images nowhere": "nowhere",
    # predict
    "predict nowhere images": "nowhere",
    "predict run nowhere": "nowhere",
    "predict run images --top-k 0": "top_k",
    "predict run images --csv text.txt": "text.txt",
    # signals
    "signals ls empty": "empty",
    "signals drop store nothing": "nothing",
    "signals copy empty --into store": "empty",
    "signals copy store#nothing --into store": "nothing",
    "signals copy store --into empty": "empty",
    # push and pull
    "push empty elsewhere": "empty",
    "push store images": "images",
    "pull empty --out new": "empty",
    "pull memory://nothing --out new": "nothing",
    # data
    "data flowers full --from images": "full",
    "data flowers new --from nowhere": "nowhere",
    "data flowers new --from text.txt": "text.txt",
    "data fashion-mnist full --from images": "full",
    "data fashion-mnist new --from nowhere": "nowhere",
    "data fashion-mnist new --from nowhere --wrong nan": "wrong",
    # compare
    "compare nowhere.yaml --out new": "nowhere",
    "compare suite.yaml --out new --jobs 0": "--jobs",
    "compare suite.yaml --out new --seeds 0": "--seeds",
    "compare suite.yaml --out full": "full",
    "compare empty full": "empty",
    "compare suite.yaml --out new --only hrd": "hrd",
    # plan
    "plan full.yaml": "--teacher",
    "plan full.yaml --teacher-rate inf": "inf",
    "plan full.yaml --teacher-rate 9 --student-rate 9 --decode-rate nan": "nan",
    "plan full.yaml --teacher-rate 9 --price inf": "inf",
    "plan full.yaml --teacher-rate 9 --price -1": "--price",
    "plan full.yaml --teacher-rate 9 --student-rate 9 --decode-rate 9 --images 0": "images",
    "plan full.yaml --teacher-rate 9 --student-rate 9 --decode-rate 9 --devices -1": "devices",
    # scenes
    "scenes --out full": "full",
    "scenes --out new --label-noise nan": "noise",
    "scenes --out new --images 7": "7",
    "scenes --out new --object-scale huge": "huge",
    "scenes --out new --seed -1": "seed",
    # recipes
    "recipes show nothing": "nothing",
    "recipes copy nothing new.yaml": "nothing",
    "recipes copy flowers-hard text.txt": "text.txt",
    "recipes copy flowers-hard no/such/folder.yaml": "folder.yaml",
    "recipes ls --nothing": "--nothing",
    # bench
    "bench store --repeats 0": "repeats",
    "bench store --images 0": "images",
    "bench store --ids-of nowhere": "nowhere",
    "bench distortion --store empty": "empty",
    "bench distortion --store store": "--values f32",
    "bench distortion --store nowhere": "nowhere",
    "bench loader --workers x": "--workers",
    "bench loader --images nowhere": "nowhere",
    "bench loader --crops-per-image 0": "crops",
    "bench label --teacher timm/no_such_net": "no_such_net",
    "bench label --images nowhere": "nowhere",
    "bench label --crops 0": "crops",
    "bench batch --batches x": "--batches",
    "bench batch --batches 0": "0",
    "bench batch --precision fp8": "fp8",
    "bench loss --classes x": "--classes",
    "bench loss --top-k 0": "top",
    "bench loss --temperature nan": "temperature",
    "bench step --calibration blur": "blur",
    "bench step --student timm/no_such_net": "no_such_net",
    "bench step --images nowhere": "nowhere",
}


@pytest.mark.parametrize("line", WRONG)
def test_one_message_and_status_2(line, here, command_line):
    status, out, said = command_line(*line.split())
    assert (status, out) == (2, ""), said
    assert WRONG[line] in said and "Traceback" not in said and "pydantic" not in said
    # A refused output is not begun; a lock may have been taken to find out.
    left = [p.name for p in (here / "new").rglob("*")] if (here / "new").exists() else []
    assert left in ([], [".lock"]), left
    assert (here / "full/precious").read_text() == "x"
