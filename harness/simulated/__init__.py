"""The simulated engine that `harness.simserver` starts: its steps in wall time, its HTTP routes and its bytes."""
