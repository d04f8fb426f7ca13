"""What the tests of the axolotl command share."""

from lora_recipes import ROOT

import pytest


@pytest.fixture(scope="module")
def rows(tmp_path_factory, tiny):
    """A dozen real rows, enough for three steps, and beside them the model that is trained on them."""
    folder = tmp_path_factory.mktemp("given") / "rows"
    folder.mkdir()
    (folder.parent / "model").symlink_to(tiny)
    for part, count in (("train", 12), ("validation", 4), ("test", 4)):
        lines = (ROOT / "data" / "african_history" / f"{part}.jsonl").read_text().splitlines()[:count]
        (folder / f"{part}.jsonl").write_text("\n".join(lines) + "\n")
    return folder
