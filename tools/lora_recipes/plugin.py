"""The plugins under the names that run files write."""

from lora_recipes.axolotl.plugins import CpuPlugin, PlainTrainerPlugin, RunPlugin

__all__ = ["CpuPlugin", "PlainTrainerPlugin", "RunPlugin"]
