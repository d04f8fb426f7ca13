"""What cannot be merged is refused in a sentence, and nothing is left behind."""

import shutil
from collections.abc import Callable
from types import SimpleNamespace

import pytest
from merges import (
    assert_refused,
    merge,
    spoil,
)


def _zero(setting: SimpleNamespace) -> None:
    spoil(setting.adapter, lambda held: [held[name].zero_() for name in held if "lora_B" in name])


def _nan(setting: SimpleNamespace) -> None:
    spoil(setting.adapter, lambda held: held[sorted(held)[-1]].fill_(float("nan")))


def _truncated(setting: SimpleNamespace) -> None:
    path = setting.adapter / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def _rank(setting: SimpleNamespace) -> None:
    path = setting.adapter / "adapter_config.json"
    path.write_text(path.read_text().replace('"r": 4', '"r": 8'))


def _other_name(setting: SimpleNamespace) -> None:
    shutil.copytree(setting.base, setting.run.parent / "other")
    setting.run.write_text(setting.run.read_text().replace(str(setting.base), str(setting.run.parent / "other")))


def _other_shape(setting: SimpleNamespace) -> None:
    spoil(setting.adapter, lambda held: held.update({k: v[:, :32].clone() for k, v in held.items() if "lora_A" in k}))


def _pissa(setting: SimpleNamespace) -> None:
    path = setting.adapter / "adapter_config.json"
    path.write_text(path.read_text().replace('"init_lora_weights": true', '"init_lora_weights": "pissa"'))


def _absent_base(setting: SimpleNamespace) -> None:
    setting.run.write_text(setting.run.read_text().replace(str(setting.base), str(setting.run.parent / "base")))


def _strangers_folder(setting: SimpleNamespace) -> None:
    setting.merged.mkdir()
    (setting.merged / "thesis.tex").write_text("mine")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spoiled", "word"),
    [
        (_zero, "every lora_B is zero"),
        (_nan, "not finite"),
        (_truncated, "not a whole safetensors file"),
        (_rank, "has rank 4, adapter_config.json says 8"),
        (_other_name, "was trained on"),
        (_other_shape, "the adapter belongs to another base model"),
        (_pissa, "init_lora_weights: pissa is not merged here"),
        (_absent_base, "there is no folder"),
        (_strangers_folder, "holds thesis.tex, which no merge wrote"),
    ],
)
def test_what_cannot_be_merged_is_refused_in_a_sentence(
    setting: SimpleNamespace, spoiled: Callable[[SimpleNamespace], None], word: str
) -> None:
    spoiled(setting)
    before = sorted(setting.run.parent.rglob("*"))
    assert_refused(merge(setting.run), word)
    assert sorted(setting.run.parent.rglob("*")) == before
