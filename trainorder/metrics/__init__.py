"""What is measured: pure functions over scores, texts and log-probabilities."""
