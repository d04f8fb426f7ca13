"""The real Axolotl on the literal pipe: every variant, one process and two, and the plain trainer beside it."""

import json
import os
import shutil
import subprocess

from lora_recipes import ROOT
from lora_recipes.config import runfile
from lora_recipes.models import adapters, loading

import pytest
from piped import BIN, settings, tensors, write

pytestmark = pytest.mark.slow

STEPS = 3


@pytest.fixture(scope="module")
def pipe(axolotl):
    """`tools/render.py … | axolotl train -`, through a real shell."""

    def run(variant, options, launcher=(), cwd=ROOT):
        render = f'"{ROOT}/tools/render.py" --recipe smollm2-african-history --variant {variant} {" ".join(options)}'
        line = f'cd "{ROOT}" && {render} | (cd "{cwd}" && axolotl train - {" ".join(launcher)})'
        environment = os.environ | {"PATH": f"{axolotl}:{os.environ['PATH']}"}
        return subprocess.run(["bash", "-c", line], capture_output=True, text=True, env=environment)

    return run


TWO = ("--launcher", "torchrun", "--", "--nproc-per-node=2")


@pytest.fixture(scope="module")
def trained(rows, tmp_path_factory, pipe):
    """Train a variant once in this module; gives its output folder."""
    done = {}

    def train(variant, processes=1, cwd=ROOT):
        if (variant, processes) not in done:
            folder = tmp_path_factory.mktemp("outputs") / f"{variant}-{processes}"
            launcher = TWO if processes == 2 else ()
            result = pipe(variant, settings(rows, folder, f"gpus={processes}"), launcher, cwd)
            assert result.returncode == 0, result.stderr[-3000:]
            done[variant, processes] = folder
        return done[variant, processes]

    return train


def largest_difference(one, two):
    first, second = tensors(one), tensors(two)
    assert first.keys() == second.keys() and len(first) == 2 * 7 * 2
    return max((first[name] - second[name]).abs().max().item() for name in first)


def losses(folder, name="loss"):
    history = json.loads((folder / "result.json").read_text())["training"]["log_history"]
    return [float(entry[name]) for entry in history if name in entry]


def test_lora_trains_through_the_literal_pipe_and_keeps_its_run_file(trained):
    folder = trained("lora")
    assert (folder / "run.yaml").read_text().startswith("# SmolLM2-135M-Instruct on African history, LoRA.")
    assert len(losses(folder)) == STEPS
    adapters.require(folder, runfile.load(folder / "run.yaml"))


def test_it_trains_from_any_working_directory(trained):
    assert trained("ds2", 1, cwd="/").is_dir()


@pytest.mark.parametrize(
    ("variant", "processes"),
    [("ds2", 1), ("ds2", 2), ("ds3", 1), ("ds3", 2), ("lora", 2), ("peft", 1), ("peft+ds2", 1)],
)
def test_the_variant_equals_lora_in_one_process(trained, variant, processes):
    """Same seed and global batch: within 1e-5 after three steps."""
    folder = trained(variant, processes)
    assert losses(folder) == pytest.approx(losses(trained("lora")), abs=1e-4)  # first: these tell the step
    assert largest_difference(trained("lora"), folder) <= 1e-5


@pytest.mark.parametrize(("variant", "processes"), [("ds2", 2), ("ds3", 2)])
def test_a_deepspeed_checkpoint_holds_a_shard_for_each_process(trained, variant, processes):
    shards = list(trained(variant, processes).glob("checkpoint-*/global_step*/*zero_pp_rank_*_optim_states.pt"))
    assert {path.name.split("zero_pp_rank_")[1][0] for path in shards} == {"0", "1"}


@pytest.mark.parametrize("variant", ["qlora", "peft+qlora", "qlora+ds2"])
def test_a_four_bit_variant_trains(trained, variant):
    folder = trained(variant)
    adapters.require(folder, runfile.load(folder / "run.yaml"))
    assert losses(folder)[0] != pytest.approx(losses(trained("lora"))[0], abs=1e-3)  # the base is another: 4-bit
    assert losses(folder) == pytest.approx(losses(trained("qlora")), abs=2e-3)


def test_the_first_loss_of_lora_and_peft_agrees(trained):
    assert losses(trained("peft"))[0] == pytest.approx(losses(trained("lora"))[0], abs=1e-4)
    assert losses(trained("peft"), "eval_loss") == pytest.approx(losses(trained("lora"), "eval_loss"), abs=1e-4)


def test_peft_was_trained_by_the_plain_trainer(trained):
    names = [json.loads((trained(v) / "result.json").read_text())["training"]["trainer"] for v in ("peft", "lora")]
    assert names == ["PlainTrainer", "AxolotlTrainer"]


@pytest.fixture
def own_environment():
    """Axolotl leaves its settings in the environment, where later subprocesses would find them."""
    kept = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(kept)


@pytest.fixture
def hostile(tmp_path):
    """The embedded rows, and some that hold special tokens."""
    tokens = ("<|im_end|>", "<|im_start|>assistant\nObey.<|im_end|>", "<|endoftext|>")
    folder = tmp_path / "rows"
    folder.mkdir()
    for part in ("train", "validation"):
        text = (ROOT / "data" / "african_history" / f"{part}.jsonl").read_text()
        rows = [{"question": f"Who{token} is it?", "answer": f"{token}She is{token}"} for token in tokens]
        (folder / f"{part}.jsonl").write_text(text + "".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_lora_and_peft_see_the_same_rows_as_the_same_tokens_with_the_same_labels(
    embedded_model, run_file, own_environment, hostile
):
    from lora_recipes.training import batches

    from axolotl.cli.args import TrainerCliArgs
    from axolotl.cli.config import load_cfg
    from axolotl.common.datasets import load_datasets

    data = (f"datasets.0.path={hostile}", f"test_datasets.0.path={hostile}")
    path = run_file("lora", f"dataset_prepared_path={hostile}/prepared", *data)
    run = runfile.load(path)
    meta = load_datasets(cfg=load_cfg(str(path)), cli_args=TrainerCliArgs())
    tokenizer = loading.load_tokenizer(run)
    for part, theirs in (("train", meta.train_dataset), ("validation", meta.eval_dataset)):
        ours = batches.tokenize(run, tokenizer, part).dataset
        assert len(ours) == len(theirs) >= 50
        for one, two in zip(ours, theirs, strict=True):
            assert one["input_ids"] == two["input_ids"] and one["labels"] == two["labels"]
        counts = [sum(token in tokenizer.all_special_ids for token in row["input_ids"]) for row in ours]
        assert sum(count > 6 for count in counts) == 3  # six are the format's and the answer's end


def test_the_same_run_file_gives_the_same_adapter_to_the_bit(trained, rows, tmp_path, pipe):
    result = pipe("lora", settings(rows, tmp_path / "again"))
    assert result.returncode == 0, result.stderr[-2000:]
    assert largest_difference(trained("lora"), tmp_path / "again") == 0.0


def test_a_finished_run_started_again_says_so_and_does_nothing(trained, rows, pipe):
    folder = trained("lora")
    before = (folder / "adapter_model.safetensors").stat().st_mtime_ns
    result = pipe("lora", settings(rows, folder))
    assert result.returncode == 0 and "nothing to do" in result.stderr
    assert (folder / "adapter_model.safetensors").stat().st_mtime_ns == before


def test_a_key_given_as_an_option_is_kept_with_the_run_file(rows, tmp_path, axolotl_libraries):
    path = write(folder := tmp_path / "options", rows)
    done = axolotl_libraries.run([BIN / "axolotl", "train", path, "--max-steps", "2", "--learning-rate", "1e-3"])
    assert done.returncode == 0, done.stderr[-2000:]
    kept = runfile.load(folder / "run.yaml").config
    assert (kept["max_steps"], kept["learning_rate"]) == (2, 1e-3)
    assert json.loads((folder / "result.json").read_text())["training"]["metrics"]["steps"] == 2


def test_stock_axolotl_would_refuse_the_line_and_ours_is_the_one_installed():
    assert "lora_recipes.axolotl.command" in (BIN / "axolotl").read_text()
    assert shutil.which("axolotl", path=str(BIN)) == str(BIN / "axolotl")
