"""The axolotl command and the plugins inside it; changes with Axolotl's hooks."""
