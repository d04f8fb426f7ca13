"""Axolotl's prepared rows: what a kill cut off is removed, and nothing else."""

from lora_recipes.data import prepared

from datasets import Dataset


def test_rows_that_were_cut_off_are_removed_and_whole_ones_stay(tmp_path):
    folder = prepared.folder(tmp_path / "prepared")
    for name in ("whole", "no-end", "cut-off"):
        Dataset.from_list([{"input_ids": [1, 2]}]).save_to_disk(folder / name)
    (folder / "no-end" / "dataset_info.json").unlink()
    (folder / "cut-off" / "dataset_info.json").write_text("{")
    (folder / "process_counter.txt").write_text("1")
    prepared.remove_unfinished(folder)
    assert {path.name for path in folder.iterdir()} - {"datasets_prep.lock"} == {"whole", "process_counter.txt"}


def test_a_folder_that_is_not_there_is_not_made(tmp_path):
    prepared.remove_unfinished(prepared.folder(tmp_path / "prepared"))
    assert list(tmp_path.iterdir()) == []


def test_without_a_path_the_rows_are_below_axolotl_s_own():
    from axolotl.common.const import DEFAULT_DATASET_PREPARED_PATH

    assert str(prepared.folder(None)) == f"{DEFAULT_DATASET_PREPARED_PATH}/{prepared.FOLDER}"


def test_the_lock_is_axolotl_s():
    from axolotl.utils.data import lock

    assert lock.LOCK_FILE_NAME == prepared._LOCK
