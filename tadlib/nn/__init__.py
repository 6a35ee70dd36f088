"""Networks and what trains them: architectures, augmentation, training steps, and what makes the steps fast."""
