"""Jobs: planned, launched, submitted, watched."""
