#!/usr/bin/env python3
"""Merge a LoRA adapter into its base model, and verify what was written."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_recipes.config import runfile
from lora_recipes.config.runfile import RunFile
from lora_recipes.results import result_files, systems
from lora_recipes.support import files, libraries, processes, terminal

import click

if TYPE_CHECKING:
    from lora_recipes.merging.merge_plan import Plan


def _print_plan(plan: "Plan", output: Path) -> None:
    total = sum(entry.size for entry in plan.weights)
    base = f"{plan.base}, linear layers rounded to NF4 as in training" if plan.onto == "quantized" else plan.base
    lines = {
        "base": base,
        "adapter": plan.adapter,
        "weights changed": f"{len(plan.changes)} by the adapter of {len(plan.weights)}",
        "weights rounded to NF4": len(plan.quantized),
        "dtype": str(plan.dtype).removeprefix("torch."),
        "output": output,
        "output size": f"{total / 1e6:,.0f} MB in {len(plan.files)} shard{'s' * (len(plan.files) > 1)}",
    }
    for name, value in lines.items():
        click.echo(f"{name:<24}{value}")


def _print_verdict(output: Path, record: dict[str, Any]) -> None:
    click.echo(f"{'merged':<24}{output}")
    for name, value in record["kl"].items():
        first, *second = name.removeprefix("kl_").split("_")
        words = "noise floor" if first == "noise" else f"KL({first}, {second[0]})"
        click.echo(f"{words:<24}{value:.2g}")
    reason = {"inconclusive": ": the adapter moves the model less than rounding does; its tensors are right"}
    click.echo(f"{'verdict':<24}{record['verdict']}{reason.get(record['verdict'], '')}")
    if "kl_trained_merged" in record["kl"]:
        click.echo("The adapter was trained on a 4-bit base: --onto quantized keeps what was trained.", err=True)


def _merge(run: RunFile, plan: "Plan", output: Path, verify: bool, watch: result_files.Stopwatch) -> dict[str, Any]:
    """Write, verify and publish the merged folder; its record."""
    from lora_recipes.merging import divergence, verification

    examples = divergence.examples(run) if verify else []
    with files.locked(output), files.whole_folder(output) as folder:
        intended = _write(run, plan, folder)
        merged = watch.seconds()
        compared = verification.require_tensors(plan, folder)
        kl = _divergences(run, plan, folder, examples) if verify else {}
        record = {
            "base_model": run.config["base_model"],
            "onto": plan.onto,
            "dtype": str(plan.dtype).removeprefix("torch."),
            "adapter": verification.adapter_hashes(plan.adapter),
            "run_file_sha256": run.sha256,
            "weights_changed": len(plan.rewritten),
            "weights_compared": compared,
            "kl": kl,
            "verdict": divergence.verdict(kl) if kl else "tensors only",
            "seconds": {"merging": merged, "verifying": round(watch.seconds() - merged, 2)},
            "files": {path.name: intended.get(path.name) or files.sha256(path) for path in sorted(folder.iterdir())},
        }
        (folder / verification.RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return record


def _divergences(run: RunFile, plan: "Plan", folder: Path, examples: list[dict[str, list[int]]]) -> dict[str, float]:
    """The divergences, or none for a model that cannot be streamed. Raises click.ClickException for a wrong merge."""
    from lora_recipes.merging import divergence, streaming

    try:
        kl = divergence.measure(run, plan, folder, examples)
    except streaming.Unknown as error:
        click.echo(f"No divergences: transformers converts {error} of {plan.base} when it loads it.", err=True)
        return {}
    if divergence.verdict(kl) == "failed":
        raise click.ClickException(
            f"the merged model differs from its adapter by KL {kl['kl_adapter_merged']:.2g} "
            f"(noise floor {kl['kl_noise_floor']:.2g}, the adapter's own effect {kl['kl_adapter_base']:.2g}); "
            f"nothing was kept. Does base_model name the base that {plan.adapter} was trained on?"
        )
    return kl


def _write(run: RunFile, plan: "Plan", folder: Path) -> dict[str, str]:
    """Write the merged model; the sha256 of each safetensors file as it was meant to be written."""
    from lora_recipes.merging import folding

    label = f"Merging {len(plan.weights)} weights"
    with click.progressbar(length=len(plan.weights), label=label, file=sys.stderr) as bar:
        return folding.write(run, plan, folder, lambda: bar.update(1))


@click.command(cls=terminal.Tool)
@click.argument("source", metavar="RUN")
@click.option("--adapter", type=click.Path(file_okay=False, path_type=Path), help="adapter, not the run's own")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="folder, not OUTPUT_DIR/merged")
@click.option("--onto", type=click.Choice(["quantized", "full"]), help="base of a QLoRA adapter")
@click.option("--dry-run", is_flag=True, help="show the plan, write nothing")
@click.option("--no-verify", is_flag=True, help="skip measuring divergences")
def main(
    source: str,
    adapter: Path | None,
    output: Path | None,
    onto: str | None,
    dry_run: bool,
    no_verify: bool,
) -> None:
    """Merge the adapter of a run into its base model.

    RUN is a run file, or - for stdin. An adapter trained in 4 bit is merged onto the base as it was
    quantized in training; --onto full takes the full-precision base.

    \b
    Example:
      tools/merge.py recipes/smollm2-african-history/lora.yaml --dry-run
    """
    libraries.quiet()
    run = runfile.load(source)
    if onto == "quantized" and not run.config.get("load_in_4bit"):
        raise click.UsageError(f"--onto quantized: {run.name} trains on a full-precision base (no load_in_4bit).")
    adapter = adapter or run.output_dir
    output = (output or run.output_dir / "merged").resolve()
    from lora_recipes.merging import merge_plan, verification

    watch = result_files.Stopwatch()
    plan = merge_plan.plan(run, adapter, onto or ("quantized" if run.config.get("load_in_4bit") else "full"))
    files.require_ours(output, verification.RECORD, "merge")
    if dry_run:
        return _print_plan(plan, output)
    files.require_writable(output.parent)
    remedy = "close what else uses the GPU, or merge on the CPU: CUDA_VISIBLE_DEVICES= tools/merge.py"
    with processes.enough_memory(remedy):
        record = _merge(run, plan, output, not no_verify, watch)
    metrics = {**record["kl"], "weights_changed": record["weights_changed"]}
    more = {name: record[name] for name in ("verdict", "seconds", "onto", "dtype", "adapter", "files")}
    systems.of_run(run, adapter).record("merge", result_files.section(run, metrics, watch, **more))
    _print_verdict(output, record)
    return None


if __name__ == "__main__":
    main()
