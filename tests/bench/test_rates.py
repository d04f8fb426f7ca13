"""Speeds leave the compiler's steps out, and shares compare with the processor as it was in the same round."""

import pytest
import rates


def test_steady_speed_leaves_out_the_first_two_steps_and_their_tokens():
    times, seen = [50.0, 60.0, 61.0, 62.0], [700, 800, 900, 1000]
    assert rates.steady(times, seen, 1000) == pytest.approx(100)  # 200 tokens in 2 s


def test_tokens_counted_with_padding_share_out_the_real_ones():
    assert rates.steady([1.0, 2.0, 4.0], [20, 40, 80], tokens=40) == pytest.approx(10)


@pytest.mark.parametrize("seen", [None, [1, 2]])
def test_steps_count_alike_where_the_trainer_counts_no_tokens(seen):
    assert rates.steady([9.0, 10.0, 11.0, 12.0], seen, 400) == pytest.approx(100)


def test_there_is_no_steady_speed_of_two_steps():
    assert rates.steady([1.0, 2.0], None, 100) is None


def test_frozen_weights_cost_four_operations_a_token_and_the_head_only_where_a_label_is():
    flops = rates.Flops(linear=1000, head=100, lora=10)
    assert flops.of(tokens=10, trained=3) == 10 * 4 * 1000 + 10 * 6 * 10 + 3 * 4 * 100


def test_weights_are_counted_on_the_model_itself(tmp_path):
    from lora_recipes.config import runfile
    from lora_recipes.rendering import render

    import transformers

    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = transformers.LlamaConfig(num_hidden_layers=3, vocab_size=50, tie_word_embeddings=True, **sizes)
    config.save_pretrained(tmp_path / "model")
    settings = (f"base_model={tmp_path}/model", "lora_r=4", "lora_target_modules=[q_proj, v_proj]")
    (tmp_path / "run.yaml").write_text(render.render("phi1.5-alpaca-gpt4", "lora", settings))
    found = rates.flops(runfile.load(tmp_path / "run.yaml"))
    attention, mlp = 2 * 16 * 16 + 2 * 16 * 8, 3 * 16 * 32
    assert found == rates.Flops(linear=3 * (attention + mlp), head=16 * 50, lora=3 * 4 * ((16 + 16) + (16 + 8)))


def test_a_share_is_of_the_matrix_rate_of_its_own_round():
    measured = {
        "matmul": [{"gflops": 100.0}, {"gflops": 50.0}],
        "fast": [{"tokens_per_second": 40, "steady_tokens_per_second": 50}, {"tokens_per_second": 40}],
        "failed": [],
    }
    rates.add_shares(measured, flops_per_token=1e9)
    first, second = measured["fast"]
    assert (first["rate_share"], first["steady_rate_share"]) == (0.4, 0.5)
    assert second["rate_share"] == 0.8 and "steady_rate_share" not in second
    assert measured["matmul"] == [{"gflops": 100.0}, {"gflops": 50.0}]
