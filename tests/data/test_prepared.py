"""Axolotl's prepared rows: what a kill cut off is removed, and nothing else."""

from lora_recipes.config import runfile
from lora_recipes.data import prepared

from datasets import Dataset

WHOLE, NO_END, CUT_OFF = (letter * 32 for letter in "abc")


def test_rows_that_were_cut_off_are_removed_and_whole_ones_stay(tmp_path):
    for name in (WHOLE, NO_END, CUT_OFF):
        Dataset.from_list([{"input_ids": [1, 2]}]).save_to_disk(tmp_path / name)
    (tmp_path / NO_END / "dataset_info.json").unlink()
    (tmp_path / CUT_OFF / "dataset_info.json").write_text("{")
    (tmp_path / "process_counter.txt").write_text("1")
    prepared.remove_unfinished(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} - {"datasets_prep.lock"} == {WHOLE, "process_counter.txt"}


def test_a_folder_that_axolotl_did_not_name_stays(tmp_path):
    (tmp_path / "mine").mkdir()
    prepared.remove_unfinished(tmp_path)
    assert (tmp_path / "mine").is_dir()


def test_a_folder_that_is_not_there_is_not_made(tmp_path):
    prepared.remove_unfinished(tmp_path / "prepared")
    assert list(tmp_path.iterdir()) == []


def test_the_default_folder_the_lock_and_the_names_are_axolotl_s():
    from axolotl.common.const import DEFAULT_DATASET_PREPARED_PATH
    from axolotl.utils.data import lock, md5

    assert (DEFAULT_DATASET_PREPARED_PATH, lock.LOCK_FILE_NAME) == (runfile.DEFAULT_PREPARED, prepared._LOCK)
    assert prepared._NAME.fullmatch(str(md5("settings")))
