"""What a learner keeps of past samples: hard and reservoir buffers, parameter importance."""
