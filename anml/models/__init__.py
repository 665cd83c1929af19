"""The networks. Every model has an encoder (images to features), maybe a gate, and a head (features to logits)."""
