"""Several experiments side by side: which of their evaluations are the same, and what each model makes of them."""
