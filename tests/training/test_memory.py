"""What is resident stays within what the first steps needed."""

from lora_recipes.training import memory

import pytest
import torch


def test_free_memory_goes_back_when_a_run_has_grown_beyond_its_first_steps(monkeypatch):
    sizes, trimmed = iter([100] * 7 + [200] + [100, 259, 261, 300, 200]), []
    monkeypatch.setattr(memory.processes, "on_cpu", lambda: True)
    monkeypatch.setattr(memory, "resident", lambda: next(sizes))
    returned = memory.TrimWhenGrown()
    monkeypatch.setattr(memory, "trim", lambda: trimmed.append(returned.steps))
    for _ in range(13):
        returned.on_step_end(None, None, None)
    assert trimmed == [11, 12]


@pytest.mark.skipif(not memory.resident(), reason="no /proc")
def test_what_was_freed_between_tensors_that_stay_is_given_back():
    kept, holes = [], []
    for _ in range(3000):
        kept.append(torch.ones(16))
        holes.append(torch.ones(2**14))  # 64 kB: from the heap, not mapped
    full = memory.resident()
    del holes
    memory.trim()
    assert memory.resident() < full - 100_000_000
    assert len(kept) == 3000
