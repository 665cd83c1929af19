"""Meta-learned continual learning (ANML, SANML, OML): from one YAML file to a report."""

__version__ = "0.1.0"
