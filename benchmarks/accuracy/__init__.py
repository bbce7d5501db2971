"""Accuracy over several seeds, whether the frameworks are equivalent, and how the recipes were chosen."""
