"""The merging benchmark: our simpler contender makes the model that tools/merge.py makes."""

from pathlib import Path

import merging
import merging_ways
import pytest
from merges import copy_setting, merge, tensors, write_originals

pytestmark = pytest.mark.slow


def test_one_whole_weight_at_a_time_gives_the_same_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    (tmp_path / "originals").mkdir()
    setting = copy_setting(write_originals(tmp_path / "originals"), tmp_path)
    assert merge(setting.run, "--no-verify").exit_code == 0
    monkeypatch.setattr(merging, "WORK", tmp_path)
    monkeypatch.setattr(merging, "ADAPTER", setting.adapter)
    monkeypatch.setattr(merging_ways, "OUTPUT", tmp_path / "whole")
    merging_ways.whole_weights()
    expected, found = tensors(setting.merged), tensors(tmp_path / "whole")
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)
