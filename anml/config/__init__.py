"""Typed, frozen experiment configs out of strict YAML. Nothing here imports torch."""
