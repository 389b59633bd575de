"""What a typed command means: its options, their help, its configuration file, and what is wrong with it. No torch."""
