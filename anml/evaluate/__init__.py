"""Test-train and test-test: what a trained model can learn of classes it has never seen."""
