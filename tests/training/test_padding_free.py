"""Rows laid end to end: the gradients of padded rows, on small models of every family. The GPU's path needs a GPU."""

import itertools

from lora_recipes.config import runfile
from lora_recipes.data import prompts
from lora_recipes.training import batches, chunked_loss, padding_free, row_attention

import pytest
import torch
import transformers
from tiny import padding_tokenizer

SIZES = dict(
    vocab_size=97,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    max_position_embeddings=64,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
)
FAMILIES = {
    "Llama": {},
    "Phi3": {"head_dim": None},
    "Phi": {"head_dim": None, "num_key_value_heads": 4},
    "Qwen3": {"tie_word_embeddings": True},
    "Gemma3Text": {"sliding_window": 8, "query_pre_attn_scalar": 8, "sliding_window_pattern": 2},
    "Mistral": {"sliding_window": 8},
    "GPT2": {"n_embd": 32, "n_head": 4, "n_layer": 2, "attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0},
}


def adapted(family, more=(), dtype=torch.float32):
    from peft import LoraConfig, get_peft_model

    sizes = {
        name: value for name, value in (SIZES | FAMILIES.get(family, {}) | dict(more)).items() if value is not None
    }
    torch.manual_seed(0)
    base = transformers.AutoModelForCausalLM.from_config(getattr(transformers, f"{family}Config")(**sizes), dtype=dtype)
    model = get_peft_model(base, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    return model.eval()


def examples(lengths=(5, 30, 1, 12)):
    made = []
    for number, length in enumerate(lengths):
        ids = torch.randint(3, 97, (length,), generator=torch.Generator().manual_seed(number)).tolist()
        made.append({"input_ids": ids, "labels": [prompts.IGNORED] * (length // 3) + ids[length // 3 :]})
    return made


def gradients(model, collator, rows, head=None):
    batch = collator(rows)
    labels = batch.pop("labels")[:, 1:]
    for name in ("columns", "kept", "targets"):
        del batch[name]
    hidden = model(**batch, use_cache=False).logits[:, :-1]
    if head is None:
        loss = torch.nn.functional.cross_entropy(hidden.float().flatten(0, 1), labels.flatten())
    else:
        kept = labels[0] != prompts.IGNORED
        loss = chunked_loss.loss(hidden[0, kept], head, labels[0, kept])
    loss.backward()
    found = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}
    model.zero_grad()
    return loss.item(), found


@pytest.fixture
def run(run_file):
    return runfile.load(run_file("peft"))


def sharing(beginning=20):
    """Rows of which four share two beginnings, one of these within the other's, and a row that has nothing of them."""
    first = torch.randint(3, 97, (beginning,), generator=torch.Generator().manual_seed(9)).tolist()
    rows = examples((6, 9, 7, 11, 13))
    for row, head in zip(rows, (first, first, first[:12] + [5] * 11, first[:12] + [5] * 11, []), strict=True):
        row["input_ids"], row["labels"] = (
            head + row["input_ids"],
            [prompts.IGNORED] * (len(head) + 1) + row["labels"][1:],
        )
    return [rows[at] for at in (2, 0, 4, 3, 1)]


@pytest.mark.parametrize("short", [512, 4], ids=["by products", "by PyTorch's kernel"])
@pytest.mark.parametrize("rows", [examples(), sharing()], ids=["nothing shared", "beginnings shared"])
@pytest.mark.parametrize("family", FAMILIES)
def test_loss_and_gradients_are_those_of_padded_rows(family, rows, short, run, monkeypatch, capsys):
    monkeypatch.setattr(row_attention, "_SHORT", short)
    monkeypatch.setattr(row_attention, "_BLOCK", 8)  # several blocks
    monkeypatch.setattr(chunked_loss, "_LOGITS", 97 * 7)  # several chunks
    model = adapted(family)
    expected_loss, expected = gradients(model, batches.Collator(padding_tokenizer()), rows)
    collator = padding_free.use(run, model)
    assert collator, capsys.readouterr()
    loss, found = gradients(model, padding_free.Collator(share=True), rows, chunked_loss.bypass_lm_head(model))
    assert loss == pytest.approx(expected_loss, abs=1e-5)
    assert found.keys() == expected.keys() and len(found) > 4
    for name, gradient in expected.items():
        assert gradient.abs().max() > 1e-4
        assert (found[name] - gradient).abs().max() <= 1e-5, name


def test_every_token_of_a_row_but_its_first_can_carry_loss():
    batch = padding_free.Collator()([{"input_ids": [5, 6, 7], "labels": [5, 6, 7]}, {"input_ids": [8], "labels": [8]}])
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8]] and batch["position_ids"].tolist() == [[0, 1, 2, 0]]
    assert batch["labels"].tolist() == [[prompts.IGNORED, 6, 7, prompts.IGNORED]]
    assert batch["row_parts"].tolist() == [[3, 0, 0], [1, 0, 0]] and batch["longest_row"] == 3
    assert batch["columns"].tolist() == [0, 1] and batch["targets"].tolist() == [6, 7]


def test_a_beginning_that_rows_share_is_laid_once_and_before_them():
    batch = padding_free.Collator(share=True)(sharing())
    alone = padding_free.Collator()(sharing())
    assert alone["input_ids"].shape[1] - batch["input_ids"].shape[1] == 20 + 23
    assert batch["longest_row"] == alone["longest_row"] == 20 + 9 + 23 - 18
    seen = []
    ids, labels, positions = (batch[name][0].tolist() for name in ("input_ids", "labels", "position_ids"))
    for part in row_attention.segments(batch["row_parts"]):
        places = [*range(part.beginning, part.beginning + part.before), *range(part.start, part.start + part.length)]
        assert [positions[at] for at in places] == list(range(len(places)))
        seen.append(([ids[at] for at in places], [labels[at] for at in places]))
    for row in sharing():
        assert (row["input_ids"], [prompts.IGNORED, *row["labels"][1:]]) in seen
    assert len(seen) == 5 + 2


def test_trained_tokens_are_never_shared_nor_predicted_from_a_shared_token():
    prompt, answer = list(range(10, 40)), [1, 2, 3]
    row = {"input_ids": prompt + answer, "labels": [prompts.IGNORED] * 30 + answer}
    batch = padding_free.Collator(share=True)([row, row, row])
    assert batch["row_parts"].tolist() == [[4, 29, 1], [4, 29, 0], [4, 29, 0]]
    assert batch["labels"][0].tolist() == [prompts.IGNORED] * 29 + [prompts.IGNORED, *answer] * 3
    whole = {"input_ids": prompt, "labels": prompt}
    assert padding_free.Collator(share=True)([whole, whole])["row_parts"].tolist() == [[30, 0, 0], [30, 0, 0]]


def test_rows_are_grouped_so_that_most_tokens_are_saved():
    long, short = list(range(50)), list(range(20))
    groups = padding_free.shared_beginnings([long, [*short, 99], [7], long, long[:30], [*short, 98]])
    assert sum(before * (len(members) - 1) for members, before in groups) == 80
    assert sorted(member for members, _ in groups for member in members) == list(range(6))
    assert padding_free.shared_beginnings([[1, 2, 3], [1, 2, 3]]) == [([0], 0), ([1], 0)]  # not worth it


def test_dropout_is_another_one_in_each_row_and_nothing_is_shared(run_file):
    collators = [
        padding_free.use(runfile.load(run_file("peft", f"lora_dropout={rate}")), adapted("Llama"))
        for rate in (0.0, 0.1)
    ]
    assert collators == [padding_free.Collator(share=True), padding_free.Collator(share=False)]


def test_transformers_counts_the_rows_and_not_the_sequence():
    from transformers.trainer_pt_utils import find_batch_size

    assert find_batch_size(padding_free.Collator()(examples())) == 4


def test_rows_are_padded_when_the_attention_is_more_than_what_is_computed_here(run, capsys):
    model = adapted("Gemma2", {"query_pre_attn_scalar": 8, "attn_logit_softcapping": 5.0})
    before = model.get_base_model().config._attn_implementation
    assert not padding_free.use(run, model)
    assert model.get_base_model().config._attn_implementation == before
    assert "rows are padded" in capsys.readouterr().err


def test_rows_are_padded_when_the_attention_drops_out(run, capsys):
    model = adapted("Granite", {"attention_dropout": 0.1})
    assert not padding_free.use(run, model)
    assert "dropout" in capsys.readouterr().err


def rounding(share):
    """A model in bf16 whose logits are off by a share of themselves, in each shape another: as a deep model rounds."""
    model = adapted("Llama", {"initializer_range": 0.2}, torch.bfloat16)

    def rounded(head, args, logits):
        generator = torch.Generator().manual_seed(logits.shape[0] * 1000 + logits.shape[1])
        return logits * (1 + share * torch.randn(logits.shape, generator=generator)).to(logits.dtype)

    model.get_base_model().get_output_embeddings().register_forward_hook(rounded)
    return model


def test_a_model_s_own_rounding_is_no_reason_to_pad(run, capsys):
    assert padding_free.use(run, rounding(0.06)), capsys.readouterr().err


def _blind(monkeypatch):
    """A row's first token is seen by itself alone."""
    bias = row_attention._bias

    def blind(length, *more):
        changed = bias(length, *more).clone()
        changed[1:, 0] = float("-inf")
        return changed

    monkeypatch.setattr(row_attention, "_bias", blind)


def _displaced(monkeypatch):
    """Positions count by twos."""
    collate = padding_free.Collator.__call__

    def displaced(self, rows):
        batch = collate(self, rows)
        return {**batch, "position_ids": batch["position_ids"] * 2}

    monkeypatch.setattr(padding_free.Collator, "__call__", displaced)


def _leaking(monkeypatch):
    """All rows are one."""
    true = row_attention.attention
    monkeypatch.setattr(row_attention, "attention", lambda *args, row_parts=None, **more: true(*args, **more))


@pytest.mark.parametrize("fault", [_blind, _displaced, _leaking])
@pytest.mark.parametrize("model", [lambda: adapted("Llama"), lambda: rounding(0.06)], ids=["float32", "rounding"])
def test_rows_are_padded_when_a_row_does_not_get_what_it_gets_alone(run, monkeypatch, capsys, model, fault):
    fault(monkeypatch)
    assert not padding_free.use(run, model())
    assert "rows are padded" in capsys.readouterr().err


@pytest.mark.parametrize("grouped", [True, False], ids=["torch 2.12 and later", "torch 2.11"])
@pytest.mark.parametrize("window", [None, 3])
def test_the_gpu_s_kernel_is_called_as_the_installed_torch_has_it(monkeypatch, grouped, window):
    """It computes what the products on a CPU compute; the ends of the rows come from the collator as they are."""
    from torch.nn.attention import varlen

    batch = padding_free.Collator()(examples())
    ends, longest = batch["row_ends"], batch["longest_row"]
    assert ends.dtype == torch.int32 and ends.tolist() == [0, 5, 35, 36, 48]
    q, k, v = (torch.randn(48, heads, 8) for heads in (4, 2, 2))

    def kernel(q, k, v, cu_seq_q, cu_seq_k, max_q, max_k, *, scale=None, window_size=(-1, -1), enable_gqa=False):
        assert cu_seq_q is ends and cu_seq_k is ends and max_q == max_k == 30
        assert enable_gqa or q.shape[1] == k.shape[1]
        back = None if window_size[0] < 0 else window_size[0] + 1
        rows = [slice(start, end) for start, end in itertools.pairwise(ends.tolist())]
        return torch.cat([row_attention.fused(q[row], k[row], v[row], scale, back) for row in rows])

    def older(q, k, v, cu_seq_q, cu_seq_k, max_q, max_k, *, scale=None, window_size=(-1, -1)):
        return kernel(q, k, v, cu_seq_q, cu_seq_k, max_q, max_k, scale=scale, window_size=window_size)

    monkeypatch.setattr(varlen, "varlen_attn", kernel if grouped else older)
    found = row_attention._flash(q, k, v, ends, longest, 0.3, window)
    sides = [side.transpose(0, 1).unsqueeze(0) for side in (q, k, v)]
    expected, _ = row_attention.attention(
        None, *sides, scaling=0.3, sliding_window=window, row_parts=batch["row_parts"], longest_row=longest
    )
    assert (found - expected[0]).abs().max() <= 1e-5


@pytest.mark.parametrize("setting", ["attn_implementation=eager", "deepspeed=deepspeed_configs/zero3.json"])
def test_a_run_file_can_have_its_rows_padded(run_file, setting):
    model = adapted("Llama")
    assert not padding_free.use(runfile.load(run_file("peft", setting)), model)
    assert model.get_base_model().config._attn_implementation != row_attention.NAME


@pytest.mark.parametrize("chunk", [1, 97 * 3, 2**26])
def test_the_head_s_loss_is_the_cross_entropy_of_all_its_logits(chunk, monkeypatch):
    monkeypatch.setattr(chunked_loss, "_LOGITS", chunk)
    torch.manual_seed(1)
    head, targets = torch.nn.Linear(16, 97), torch.randint(97, (10,))
    hidden = torch.randn(10, 16, requires_grad=True)
    expected = torch.nn.functional.cross_entropy(head(hidden), targets)
    (wanted,) = torch.autograd.grad(3 * expected, hidden)
    found = chunked_loss.loss(hidden, head, targets)
    (gradient,) = torch.autograd.grad(3 * found, hidden)
    assert found.item() == pytest.approx(expected.item(), abs=1e-6)
    assert (gradient - wanted).abs().max() <= 1e-6


def test_a_head_whose_logits_are_changed_afterwards_stays_in_the_model():
    model = adapted("Gemma2", {"query_pre_attn_scalar": 8, "final_logit_softcapping": 3.0})
    ids = torch.tensor([[3, 4]])
    before = model(input_ids=ids).logits
    assert chunked_loss.bypass_lm_head(model) is None
    assert torch.equal(model(input_ids=ids).logits, before)


def test_a_trained_head_stays_in_the_model():
    model = adapted("Llama")
    model.get_base_model().get_output_embeddings().weight.requires_grad_()
    assert chunked_loss.bypass_lm_head(model) is None
