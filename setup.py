"""Lists the packages, which pyproject.toml cannot: the shipped configs and cluster profiles lie beside the package."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["anml*"]), "anml.configs", "anml.slurm"],
    package_dir={"anml.configs": "configs", "anml.slurm": "slurm"},
)
