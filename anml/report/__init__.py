"""The report of an experiment: tables, figures and static pages. The only importer of pandas, matplotlib and jinja2."""
